"""Which steps KFP may serve from its cache, and why. Every step must be listed, so that a new step gets a decision.

KFP's cache key consists of parameter texts and input artifact names, not of the contents behind them
(kubeflow/pipelines#12751). So a step may be served only if its parameters determine its result. They must contain the sha256 of
every input artifact, which every task has (and compares with its input), and nothing may be read from an address or named after
the run. No step qualifies today; content-addressed caches save work instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Caching:
    """Whether a step may be served from KFP's cache.

    Attributes:
        served: whether it may. If so, each input artifact has a parameter NAME_sha256, which `check_caching` confirms.
        why: the reason, for people.
    """

    served: bool
    why: str


CACHING = {
    "fetch_checkpoint": Caching(False, "source is an address; its contents are cached by hash in $PALIGEMMA_CACHE"),
    "prepare_data": Caching(False, "data is an address: a growing file has other rows each week; images too"),
    "preflight": Caching(False, "it compiles for minutes at most, and caches its results by a hash of the job"),
    "finetune": Caching(False, "its state is kept by the hash of checkpoint, records and recipe: a second try resumes there"),
    "evaluate": Caching(False, "it is compared with the current champion, which is not an input"),
    "publish": Caching(False, "it moves a pointer; a release is named by the hash of its inputs, and never written twice"),
    "summarize": Caching(False, "it summarizes this run"),
}


def check_caching(step: str, artifacts: list[str], parameters: Mapping[str, object]) -> bool:
    """Whether a task of a step may be served from the cache.

    Args:
        step: name of the step.
        artifacts: names of the task's input artifacts.
        parameters: the task's parameters by name.

    Raises:
        KeyError: the table lacks the step.
        ValueError: an input's hash is not a parameter.
    """
    policy = CACHING[step]
    unknown = [name for name in artifacts if f"{name}_sha256" not in parameters]
    if unknown:
        raise ValueError(f"the sha256 of {', '.join(unknown)} is no parameter of {step}")
    return policy.served
