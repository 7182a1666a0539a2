"""The compilation cache on disk: a step is compiled once for given shapes and options."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from paligemma.storage.cache import cache_folder
from paligemma.storage.epath_settings import reach_gcs_without_tensorflow

_LEAST_SECONDS = 0.1
"""Least compile time of cached programs. JAX's default of one second excludes all programs of small models."""

QUICK_ON_CPU = {"xla_cpu_use_fusion_emitters": False}
"""Compiler options with which a CPU's program compiles sooner still than by `compiled_quickly` alone, and runs slower."""


def use_compile_cache(shared: str = "") -> None:
    """Makes JAX cache compiled programs. The user's own settings take precedence.

    Args:
        shared: a folder or `gs://` prefix that several machines share; empty: in our cache folder.
    """
    reach_gcs_without_tensorflow()  # JAX opens its cache folder long before Orbax opens a bucket
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]  # made while JAX runs
        jax.config.update("jax_compilation_cache_dir", shared or str(cache_folder() / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


@contextmanager
def compiled_quickly(wanted: bool = True) -> Iterator[None]:
    """Turns off JAX's optimizations if `wanted`: worthwhile for a small model's program that runs once.

    Figures are in tests/benchmarks/README.md.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", before or wanted)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
