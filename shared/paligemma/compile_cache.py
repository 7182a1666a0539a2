"""Compiled programs kept on disk: a step that was compiled once, with these shapes and options, is not compiled again."""

from __future__ import annotations

import jax

from paligemma.storage.cache import cache_folder


def use_compile_cache() -> None:
    """Has JAX keep what takes it more than a second to compile in our cache folder, unless the user chose another place."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
