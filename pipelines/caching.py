"""Which steps can take the result of an earlier run, which cannot, and why. A new step gets a decision here.

KFP's cache serves none of them. Its key consists of parameter texts and input artifact names, not of the contents behind them
(kubeflow/pipelines#12751): a data set that grew would be the old one. A step looks for itself, by the contents of its inputs,
by settings, code and packages: `paligemma.artifacts.results`.
"""

from __future__ import annotations

from collections.abc import Mapping

REUSED = {
    "fetch_checkpoint": "files, tokenizer, image size; before a download, an address that always gives the same files",
    "prepare_data": "rows, images, checkpoint, settings",
    "preflight": "checkpoint, recipe, target, its compiler, its memory, prices",
    "finetune": "checkpoint, records, settled recipe, devices",
    "evaluate": "model, records, decoding, metrics, baseline, champion, devices",
}
"""What determines the result of each step that can be reused, besides code and packages; for people."""

NOT_REUSED = {
    "publish": "it moves a pointer; a release is named by the hash of its inputs, and never written twice",
    "summarize": "it summarizes this run",
}
"""The reason of each step that always runs; for people."""


def check_caching(step: str, artifacts: list[str], parameters: Mapping[str, object]) -> bool:
    """Whether KFP's cache may serve a task of a step, which is never so.

    Args:
        step: name of the step.
        artifacts: names of the task's input artifacts.
        parameters: the task's parameters by name.

    Raises:
        ValueError: the tables lack the step, an input's hash is not a parameter, or nobody can ask for it.
    """
    if unknown := [name for name in artifacts if f"{name}_sha256" not in parameters]:
        raise ValueError(f"the sha256 of {', '.join(unknown)} is no parameter of {step}")
    if (step in REUSED) == (step in NOT_REUSED):
        raise ValueError(f"{step} has no reason in {__name__}")
    if step in REUSED and "fresh" not in parameters:
        raise ValueError(f"{step} is reused, and has no parameter fresh")
    return False
