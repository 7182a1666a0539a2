"""What is seen of a run: a line of progress, `metrics.jsonl`, TensorBoard. All written from one list of entries."""

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
    """Where the time goes, by phase, in seconds."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block's time as this phase's."""
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
    """Writes entries as they come, for the length of a `with`. An entry is a JSON object with a `step`."""

    def __init__(self, folder: Path, steps: int, batch_size: int, entries: list[dict]) -> None:
        """
        Args:
            folder: where `metrics.jsonl` and the TensorBoard files go.
            steps: of the whole run.
            batch_size: examples in a step.
            entries: of the steps before, when a run is resumed; written again.
        """
        self._folder, self._batch_size = folder, batch_size
        self.entries: list[dict] = []
        self._earlier = entries
        self._progress = WorkProgress("training", "examples", steps * batch_size)

    def __enter__(self) -> Telemetry:
        # TensorBoard tells at length, on import, that TensorFlow is not needed. This module's being there is how its own
        # builds keep it from importing TensorFlow where that is installed (tensorboard/compat/__init__.py): ten seconds.
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
        """One step is done."""
        self._progress.advance(self._batch_size, facts)

    def write(self, entry: dict) -> None:
        """Keeps an entry, and writes it."""
        self.entries.append(entry)
        self._file.write(json.dumps(entry) + "\n")
        for key, value in entry.items():
            if key != "step":
                self._board.add_scalar(key, value, entry["step"])
