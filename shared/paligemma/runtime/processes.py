"""What the environment of a process says of the others that work with it. Knows nothing of JAX, so that it is asked at once."""

from __future__ import annotations

import os
from dataclasses import dataclass

from paligemma.errors import InputError
from paligemma.foreign_json import SMALL_BYTES, parse_json

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""What Kubeflow Trainer's JAX runtime sets on every host."""
CLUSTER = "CLUSTER_SPEC"
"""What Vertex AI sets in every replica of a custom job's worker pools, as JSON:
https://cloud.google.com/vertex-ai/docs/training/distributed-training#cluster-spec-format."""


@dataclass(frozen=True)
class Processes:
    """The first process's address as host:port, how many there are, and which one this is."""

    coordinator: str
    count: int
    index: int


def described() -> Processes | None:
    """The processes that the environment describes; None when it describes no more than one.

    Raises:
        InputError: only some of the variables are set, or one of them is wrong.
    """
    given = {name: os.environ[name] for name in (COORDINATOR, COUNT, INDEX) if os.environ.get(name)}
    if given:
        try:
            return Processes(given[COORDINATOR], int(given[COUNT]), int(given[INDEX]))
        except (KeyError, ValueError):
            raise InputError(
                f"The run is said to have several processes, but only {given} is given.",
                expected=f"{COORDINATOR} as host:port, {COUNT} and {INDEX} as numbers",
            ) from None
    if not os.environ.get(CLUSTER):
        return None
    where, what = f"${CLUSTER}", "The description of the worker pools"
    said = parse_json(os.environ[CLUSTER], where, what, most=SMALL_BYTES, error=InputError)
    try:
        pools = sorted(said["cluster"])
        hosts = [(pool, number, host) for pool in pools for number, host in enumerate(said["cluster"][pool])]
        here = (said["task"]["type"], int(said["task"]["index"]))
        index = [host[:2] for host in hosts].index(here)
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{what} cannot be read: it lacks a part.", where=where) from None
    return Processes(hosts[0][2], len(hosts), index) if len(hosts) > 1 else None
