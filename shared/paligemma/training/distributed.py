"""Many processes as one: who takes part, and who writes what they made. The same command runs on each host."""

from __future__ import annotations

import logging
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from paligemma.runtime.processes import described

log = logging.getLogger(__name__)


def join_processes() -> None:
    """Joins the other processes of the run, if there are any; to be called before anything else of JAX.

    By what the environment says; on a slice of several TPU hosts, which know of each other, without it.

    Raises:
        InputError: what it says makes no sense.
    """
    if jax.distributed.is_initialized():
        return
    processes = described()
    if processes is not None:
        jax.distributed.initialize(processes.coordinator, processes.count, processes.index)
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
