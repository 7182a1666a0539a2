"""Host memory settings for XLA: returns the compiler's memory to the system, and uses huge pages for large buffers."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import MutableMapping

COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event between compilation and execution of a program."""

SECONDS_WORTH_IT = 1.0
"""Programs that compile faster leave little memory behind."""


def use_huge_pages(environ: MutableMapping[str, str]) -> None:
    """Makes processes with this environment use 2 MiB pages for large blocks, unless the user tuned glibc already.

    On a CPU, XLA allocates a step's memory anew each time, and the kernel zeroes it page by page. glibc (2.35 and later) reads
    the setting when a process starts; other C libraries ignore it. Figures are in tests/benchmarks/README.md.
    """
    environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")


@functools.cache
def trim_after_compiling() -> None:
    """From now on, returns memory freed by a compilation to the system before the program allocates its own.

    The compiler leaves some 200 MB in glibc's allocator, which would count in the process's peak. Does nothing without glibc.
    """
    import jax

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return

    def trim_after(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED and duration_secs >= SECONDS_WORTH_IT:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim_after)
