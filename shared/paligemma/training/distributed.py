"""Runs many processes as one: which ones take part, and which one writes results. Each host runs the same command."""

from __future__ import annotations

import logging
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from paligemma.runtime.processes import described

log = logging.getLogger(__name__)


def join_processes() -> None:
    """Joins the run's other processes, if there are any. Call before any other use of JAX.

    Takes the processes from the environment. The hosts of a multi-host TPU slice know each other without it.

    Raises:
        InputError: the environment is inconsistent.
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
    """Whether this process writes the results of all."""
    return jax.process_index() == 0


def on_host(array: jax.Array) -> np.ndarray:
    """A whole array on this host, wherever its shards are. With several processes, all must call this."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True) if jax.process_count() > 1 else array)
