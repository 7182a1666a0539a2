"""Many processes as one: who takes part, and who writes what they made. The same command runs on each host."""

from __future__ import annotations

import logging
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from paligemma.errors import InputError

log = logging.getLogger(__name__)

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""What Kubeflow Trainer's JAX runtime sets on every host."""


def join_processes() -> None:
    """Joins the other processes of the run, if there are any; to be called before anything else of JAX.

    By the three variables above; on a slice of several TPU hosts, which know of each other, without them.

    Raises:
        InputError: only some of the variables are set, or one of them is wrong.
    """
    if jax.distributed.is_initialized():
        return
    given = {name: os.environ[name] for name in (COORDINATOR, COUNT, INDEX) if os.environ.get(name)}
    if given:
        try:
            address, count, index = given[COORDINATOR], int(given[COUNT]), int(given[INDEX])
        except (KeyError, ValueError):
            raise InputError(
                f"The run is said to have several processes, but only {given} is given.",
                expected=f"{COORDINATOR} as host:port, {COUNT} and {INDEX} as numbers",
            ) from None
        jax.distributed.initialize(address, count, index)
    elif "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize()
    else:
        return
    log.info("process %d of %d", jax.process_index(), jax.process_count())


def is_first() -> bool:
    """Whether this process is the one that writes what all have made."""
    return jax.process_index() == 0


def on_host(array: jax.Array) -> np.ndarray:
    """A whole array on this host, wherever its parts are; with several processes, all of them have to ask."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True) if jax.process_count() > 1 else array)
