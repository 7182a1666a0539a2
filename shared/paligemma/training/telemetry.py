"""Telemetry of a run: a line of progress, `metrics.jsonl`, TensorBoard. All come from one list of entries."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from paligemma.progress import WorkProgress

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class Clock:
    """Measures time by phase, in seconds."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the block's time to a phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - started

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call."""
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken


class Telemetry:
    """Writes entries as they come, during a `with` block. An entry is a JSON object with a `step`."""

    def __init__(self, folder: Path, steps: int, batch_size: int, entries: list[dict]) -> None:
        """
        Args:
            folder: folder for `metrics.jsonl` and the TensorBoard files.
            steps: number of steps of the whole run.
            batch_size: examples per step.
            entries: entries of earlier steps if a run is resumed; written again.
        """
        self._folder, self._batch_size = folder, batch_size
        self.entries: list[dict] = []
        self._earlier = entries
        self._progress = WorkProgress("training", "examples", steps * batch_size)

    def __enter__(self) -> Telemetry:
        # On import, TensorBoard logs at length that TensorFlow is not needed. If this module exists, TensorBoard does not
        # import an installed TensorFlow, as in its own builds (tensorboard/compat/__init__.py): ten seconds.
        logging.getLogger("tensorboard").setLevel(logging.ERROR)
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        from tensorboard.summary import Writer

        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / METRICS_FILE).open("w", buffering=1)
        self._board = Writer(str(self._folder / TENSORBOARD_FOLDER))
        self._progress.__enter__()
        for entry in self._earlier:
            self.write(entry)
        if self._earlier:
            self._progress.skip(self._earlier[-1]["step"] * self._batch_size)
        return self

    def __exit__(self, *failure) -> None:
        self._progress.__exit__(*failure)
        self._board.close()
        self._file.close()

    def advance(self, facts: str) -> None:
        """Counts one finished step."""
        self._progress.advance(self._batch_size, facts)

    def write(self, entry: dict) -> None:
        """Stores and writes an entry."""
        self.entries.append(entry)
        self._file.write(json.dumps(entry) + "\n")
        for key, value in entry.items():
            if key != "step":
                self._board.add_scalar(key, value, entry["step"])
