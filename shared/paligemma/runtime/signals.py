"""Handles requests to stop: SIGTERM raises an exception, so that code can clean up, or is noted until a good moment.

The only module that handles signals. It does so in the main thread, as Python requires.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from paligemma.errors import StoppedError


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Turns SIGTERM into an exception, unless it already has a handler.

    Raises:
        StoppedError: SIGTERM came.
    """
    in_charge = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not in_charge:
        yield
        return
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != owner:  # a forked child has nothing to clean up
            os.kill(os.getpid(), signal.SIGTERM)
        raise StoppedError("The step was told to stop (SIGTERM).", fix="run the same command again")

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class NotedSignals:
    """Notes SIGTERM and SIGINT during a `with` block. A second SIGINT (Ctrl-C) interrupts at once.

    Attributes:
        noted: whether a signal came.
    """

    def __init__(self) -> None:
        self.noted = False
        self._before: dict[int, Any] = {}  # what `signal.signal` gives back and takes, which has no name

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
            # Not `print`: the signal may have interrupted one.
            os.write(2, b"\nStopping after this step. Press Ctrl-C again to stop at once.\n")
