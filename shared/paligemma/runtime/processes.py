"""Reads from the environment which processes work together. Does not import JAX, so it is fast."""

from __future__ import annotations

import os
from dataclasses import dataclass

from paligemma.errors import InputError
from paligemma.foreign_json import SMALL_BYTES, parse_json

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""Variables that Kubeflow Trainer's JAX runtime sets on every host."""
CLUSTER = "CLUSTER_SPEC"
"""JSON variable that Vertex AI sets in every replica of a custom job's worker pools:
https://cloud.google.com/vertex-ai/docs/training/distributed-training#cluster-spec-format."""


@dataclass(frozen=True)
class Processes:
    """The first process's address as host:port, the number of processes, and this process's index."""

    coordinator: str
    count: int
    index: int


def described() -> Processes | None:
    """The processes in the environment's description; None if there is only one.

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
