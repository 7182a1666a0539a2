"""Splits the output of KFP's local runner: everything into a log file, and only the essential lines to the screen."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from paligemma.terminal import printable

_SECONDS_OF_SILENCE = 10.0
"""Without a terminal, prints a line that a task is still running after this many seconds of silence."""
_ANEW = "\r\x1b[2K"
"""Moves to the beginning of the line and clears it (ECMA-48: CR, EL 2)."""
_COLOUR = re.compile(r"\x1b\[\d+m")
_STARTED = re.compile(r"Executing task '(?P<task>[^']+)'")
_ENDED = re.compile(r"Task '(?P<task>[^']+)' finished with status (?P<status>\w+)")
_PROGRESS = re.compile(r"\s*(preparing|training|evaluating)\b.*: \d+ .*")
_REUSED = re.compile(r".*nothing changed: the result of run (?P<run>\S+) is reused, .*")
_OUTPUT = re.compile(r"Wrote executor output file to .*/(?P<run>[^/]+)/[^/]+/executor_output\.json")
_ERROR = re.compile(r"\s*(?P<kind>paligemma(?:\.\w+)*\.\w+Error): (?P<message>.*)")


class RunLog(io.TextIOBase):
    """A stream that replaces standard output during a run. On a terminal, the last line shows the progress every second.

    Attributes:
        run: the run's name, once a task has ended well.
        failed_task: the first task that failed.
        error_kind, error: dotted class name and text of the last of our own errors that ended a task.
    """

    def __init__(self, path: Path, screen: TextIO | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("w")
        self._screen = screen or sys.stderr
        self._line = ""
        self._in_error = False
        self.run = self.failed_task = self.error_kind = ""
        self.error: list[str] = []
        self._task, self._since, self._shown, self._last = "", 0.0, time.monotonic(), ""
        self._writing, self._ended = threading.Lock(), threading.Event()
        threading.Thread(target=self._tick_on, daemon=True).start()

    def writable(self) -> bool:
        """True, as for any text stream."""
        return True

    def write(self, text: str) -> int:
        """Takes text in any pieces; acts on whole lines."""
        self._file.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._read(_COLOUR.sub("", line))
        return len(text)

    def flush(self) -> None:
        """Brings the log file up to date."""
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        """Closes the log file."""
        self._ended.set()
        self._task = ""
        self._file.close()
        super().close()

    def tail(self, lines: int = 30) -> str:
        """The end of the log."""
        self.flush()
        return "\n".join(self.path.read_text().rstrip().splitlines()[-lines:])

    def tick(self, now: float) -> None:
        """Shows the running task, its duration, and its last progress. Called every second."""
        with self._writing:
            if not self._task:
                return
            line = printable(f"  {self._task}: {now - self._since:.0f} s{self._last and f', {self._last}'}")
            if self._screen.isatty():
                self._screen.write(_ANEW + line)
            elif now - self._shown >= _SECONDS_OF_SILENCE:
                self._screen.write(line + "\n")
                self._shown = now
            self._screen.flush()

    def _tick_on(self) -> None:
        while not self._ended.wait(1.0):
            self.tick(time.monotonic())

    def _read(self, line: str) -> None:
        if match := _STARTED.search(line):
            self._show(f"{match['task']}")
            self._task, self._since, self._last = match["task"], time.monotonic(), ""
        elif match := _ENDED.search(line):
            self._task = ""
            if match["status"] != "SUCCESS":
                self._show(f"{match['task']} failed")
                self.failed_task = self.failed_task or match["task"]
        elif match := _OUTPUT.search(line):
            self.run = match["run"]
        elif match := _REUSED.fullmatch(line):
            self._show(f"  nothing changed: reused from run {match['run']}")
        elif _PROGRESS.fullmatch(line):
            self._last = line.strip()
            self._show(f"  {self._last}")
        if match := _ERROR.fullmatch(line):
            self.error_kind, self.error, self._in_error = match["kind"], [match["message"]], True
        elif self._in_error:
            # The details of our errors are lines indented relative to the runner's own indentation.
            self._in_error = bool(re.match(r"\s{6,}\S", line))
            if self._in_error:
                self.error.append(line[4:])

    def _show(self, line: str) -> None:
        with self._writing:
            self._screen.write((_ANEW if self._screen.isatty() else "") + printable(line) + "\n")
            self._screen.flush()
            self._shown = time.monotonic()
