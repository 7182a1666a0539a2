"""Compiled programs kept on disk: a step that was compiled once, with these shapes and options, is not compiled again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from paligemma.storage.cache import cache_folder
from paligemma.storage.epath_settings import reach_gcs_without_tensorflow

_LEAST_SECONDS = 0.1
"""Compile time of a program that is kept. JAX's own is a second, which leaves out all programs of small models."""


def use_compile_cache() -> None:
    """Has JAX keep what it compiles in our cache folder, unless the user chose another place, or what is worth it."""
    reach_gcs_without_tensorflow()  # JAX looks at its folder long before Orbax looks at a bucket
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]  # made while JAX runs
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


@contextmanager
def compiled_quickly(wanted: bool = True) -> Iterator[None]:
    """Has JAX leave out what makes programs fast, if that is wanted: for one that runs once, on a model that is small.

    A first answer of the embedded checkpoint takes 3.9 s of processor time with it, and 5.0 s without.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", before or wanted)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
