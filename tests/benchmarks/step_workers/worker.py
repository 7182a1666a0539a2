"""What the workers of `step.py` share, in whichever environment they run: the case they read, the way they answer.

A worker trains at once for `WARM_UP` steps on the first batch and writes a JSON line with their losses; then, for every line
`N` that it is sent, it goes N times through the batches that are timed, and writes a JSON line with the milliseconds of a step
in each pass. Needs numpy and Linux.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

WARM_UP = 3
LEARNING_RATE = 0.03
TRAINED = "llm/layers/attn/"


class Case:
    """A folder with the weights (`checkpoint.npz`), the architecture (`config.json`) and batches (`batch-*.npz`).

    Attributes:
        config: sections `img` and `llm`.
        weights: arrays by big_vision's names, read when indexed; the decoder's and the tower's layers stacked.
        batches: the one that losses are compared on, then those that are timed, if they are others: `images`
            [b, height, width, 3] in [-1, 1]; `tokens`, `mask_ar`, `mask_loss`, `mask_input` [b, t].
    """

    def __init__(self, folder: Path, order: str) -> None:
        """`order` says whose batches are timed: see `step.py`."""
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = np.load(folder / "checkpoint.npz")
        self.batches = [dict(np.load(file)) for file in [folder / "batch.npz", *sorted(folder.glob(f"{order}-*.npz"))]]

    @property
    def patches(self) -> int:
        """Image tokens in front of the text."""
        return (self.config["img"]["image_size"] // self.config["img"]["patch_size"]) ** 2


def targets(batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a loss is: positions in `tokens[:, :-1]` at which any row has one; there the targets, and their weights.

    Shapes [n], [b, n], [b, n]. The sum of weight times negative log-likelihood is the mean over rows of the mean over a
    row's suffix.
    """
    mask = batch["mask_loss"][:, 1:].astype(np.float32)
    positions = np.flatnonzero(mask.any(axis=0))
    weights = mask / mask.sum(axis=1, keepdims=True) / len(mask)
    return positions, batch["tokens"][:, 1:][:, positions], weights[:, positions]


def peak_resident_bytes() -> int:
    """The most memory this process has held. `ru_maxrss` would start at that of the process which started this one."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def serve(build: Callable[[Case, str], Callable[[int], float]], packages: list[str]) -> None:
    """Answers for the command line `WORKER FOLDER VARIANT ORDER`.

    Args:
        build: makes the training step of a case: it takes one step on the batch of this number, waits for it, and returns
            its loss before the update.
        packages: whose versions to report.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    case = Case(Path(sys.argv[1]), sys.argv[3])
    step = build(case, sys.argv[2])
    losses = [step(0) for _ in range(WARM_UP)]
    timed = range(1, len(case.batches)) or range(1)
    for number in timed:
        step(number)  # compiles for its width
    versions = {name: version(name) for name in packages}
    answers.write(json.dumps({"losses": losses, "versions": versions, "peak_bytes": peak_resident_bytes()}) + "\n")
    for line in sys.stdin:
        milliseconds = []
        for _ in range(int(line)):
            started = time.perf_counter()
            for number in timed:
                step(number)
            milliseconds.append((time.perf_counter() - started) * 1000 / len(timed))
        answers.write(json.dumps({"milliseconds": milliseconds, "peak_bytes": peak_resident_bytes()}) + "\n")
