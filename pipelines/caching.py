"""Why KFP's cache serves no step. Every step has a reason, so that a new step gets a decision.

KFP's cache key consists of parameter texts and input artifact names, not of the contents behind them
(kubeflow/pipelines#12751). So a step could be served only if its parameters determine its result: they contain the sha256 of
every input artifact, which `check_caching` confirms and the task compares with its input, and the step reads nothing from an
address, and nothing named after the run. A step that is reused by its contents one day moves from this table to one of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

NOT_SERVED = {
    "fetch_checkpoint": "source is an address; its contents are cached by hash in $PALIGEMMA_CACHE",
    "prepare_data": "data is an address: a growing file has other rows each week; images too",
    "preflight": "it compiles for minutes at most, and caches its results by a hash of the job",
    "finetune": "its state is kept by the hash of checkpoint, records and recipe: a second try resumes there",
    "evaluate": "it is compared with the current champion, which is not an input",
    "publish": "it moves a pointer; a release is named by the hash of its inputs, and never written twice",
    "summarize": "it summarizes this run",
}
"""The reason of each step, for people."""


def check_caching(step: str, artifacts: list[str], parameters: Mapping[str, object]) -> bool:
    """Whether a task of a step may be served from KFP's cache.

    Args:
        step: name of the step.
        artifacts: names of the task's input artifacts.
        parameters: the task's parameters by name.

    Raises:
        ValueError: the table lacks the step, or an input's hash is not a parameter.
    """
    if unknown := [name for name in artifacts if f"{name}_sha256" not in parameters]:
        raise ValueError(f"the sha256 of {', '.join(unknown)} is no parameter of {step}")
    if step not in NOT_SERVED:
        raise ValueError(f"{step} has no reason in {__name__}")
    return False
