"""Progress of long work: a live bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paligemma.terminal import printable

SECONDS_BETWEEN_LINES = 5.0


class WorkProgress:
    """Counts finished units of work (`done`), and shows count, rate and time left on standard error."""

    def __init__(self, what: str, unit: str, total: int | None = None) -> None:
        """Args: `what` names the work, `unit` its units, `total` their number if known."""
        self._what, self._unit, self._total = printable(what), unit, total
        self.done, self._facts, self._shown = 0, "", time.monotonic()
        self._first: tuple[float, int] | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> WorkProgress:
        if sys.stderr.isatty():
            columns = [_text("{task.description}"), BarColumn(), MofNCompleteColumn(), _text("{task.fields[facts]}")]
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(self._what, total=self._total, facts="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._line()

    def advance(self, count: int = 1, facts: str = "") -> None:
        """Adds finished units; `facts` is shown beside the count."""
        self.done += count
        self._facts = facts = printable(facts)
        if self._first is None:
            self._first = time.monotonic(), self.done
        if self._bar is not None:
            shown = f"{self.rate:.1f} {self._unit}/s {facts}"
            self._bar.update(self._task, completed=self.done, facts=shown)
        elif time.monotonic() - self._shown >= SECONDS_BETWEEN_LINES:
            self._line()

    def skip(self, count: int) -> None:
        """Counts units that an earlier process finished; they do not affect the rate."""
        self.done += count

    @property
    def rate(self) -> float:
        """Units a second since the first was done, which excludes compilation; 0 until it is known."""
        if self._first is None:
            return 0.0
        started, done = self._first
        seconds = time.monotonic() - started
        return (self.done - done) / seconds if seconds > 0.05 else 0.0

    def _line(self) -> None:
        self._shown = time.monotonic()
        of_total = f" of {self._total}" if self._total is not None else ""
        line = f"{self._what}: {self.done}{of_total} {self._unit}"
        if self.rate:
            line += f", {self.rate:.1f}/s"
            if self._total is not None:
                line += f", {max(0, self._total - self.done) / self.rate:.0f} s left"
        sys.stderr.write(line + (f", {self._facts}" if self._facts else "") + "\n")
        sys.stderr.flush()


def _text(form: str) -> TextColumn:
    return TextColumn(form, markup=False)  # the name of the work may have brackets
