"""How this machine's memory is handed out to XLA: what compiling took is given back, large buffers come in large pages."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import MutableMapping

COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event after a program is compiled, and before it runs."""

SECONDS_WORTH_IT = 1.0
"""A program that compiles faster leaves little behind."""


def use_huge_pages(environ: MutableMapping[str, str]) -> None:
    """Has processes with this environment take large blocks in pages of 2 MiB, unless the user tuned glibc already.

    On a CPU, XLA takes the memory of a step anew each time, and the kernel zeroes it page by page. Read by glibc (2.35 and
    later) when a process starts; other C libraries do not know it. Figures are in tests/benchmarks/README.md.
    """
    environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")


@functools.cache
def trim_after_compiling() -> None:
    """From now on, memory that a compilation freed goes back to the system before the program's own is taken.

    The compiler leaves some 200 MB with glibc's allocator, which would count in the process's peak. Elsewhere nothing happens.
    """
    import jax

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return

    def trim_after(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED and duration_secs >= SECONDS_WORTH_IT:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim_after)
