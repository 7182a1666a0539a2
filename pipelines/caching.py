"""Which steps KFP may serve from its cache, and why. Explicit for every step, so that a new one has to be thought about.

KFP's cache key is made of the text of parameters, and of names of input artifacts, not of the contents behind either
(kubeflow/pipelines#12751). So a step may be served only if whatever its result depends on is said in its parameters: the sha256
of every input artifact, which every task has (and compares with what it finds), and nothing that is read from an address or
named after the run. No step qualifies today; what saves work instead is content-addressed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Caching:
    """Whether a step may be served from KFP's cache.

    Attributes:
        served: whether it may; each of its input artifacts has a parameter NAME_sha256, as `check_caching` makes sure.
        why: the reason, for people.
    """

    served: bool
    why: str


CACHING = {
    "fetch_checkpoint": Caching(False, "source is an address; what is behind it is found by its hash in $PALIGEMMA_CACHE"),
    "prepare_data": Caching(False, "data is an address: a growing file has other rows each week; images too"),
    "preflight": Caching(
        False, "it compiles for minutes at most, and finds what it has compiled before by the hash of the job"
    ),
    "finetune": Caching(False, "its state is kept by the hash of checkpoint, records and recipe: a second try goes on there"),
    "evaluate": Caching(False, "it is compared with the champion of now, which is no input"),
    "publish": Caching(False, "it moves a pointer; a release is named by the hash of its inputs, and never written twice"),
    "summarize": Caching(False, "it says what became of this run"),
}


def check_caching(step: str, artifacts: list[str], parameters: Mapping[str, object]) -> bool:
    """Whether a task of a step may be served from the cache.

    Args:
        step: whose task.
        artifacts: names of the input artifacts that it is given.
        parameters: by name, those that it is given.

    Raises:
        KeyError: the table does not say.
        ValueError: the hash of an input is no parameter.
    """
    policy = CACHING[step]
    unknown = [name for name in artifacts if f"{name}_sha256" not in parameters]
    if unknown:
        raise ValueError(f"the sha256 of {', '.join(unknown)} is no parameter of {step}")
    return policy.served
