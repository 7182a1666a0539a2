"""What the workers of `step.py` share, in whichever environment they run: the case they read, the way they answer.

A worker trains at once for `WARM_UP` steps and writes a JSON line with their losses; then, for every line `N` that it is
sent, it takes N more steps and writes a JSON line with their milliseconds. Needs numpy and Linux.
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
    """A folder with the weights (`checkpoint.npz`), the architecture (`config.json`) and the batch (`batch.npz`).

    Attributes:
        config: sections `img` and `llm`.
        weights: arrays by big_vision's names, read when indexed; the decoder's and the tower's layers stacked.
        batch: `images` [b, height, width, 3] in [-1, 1]; `tokens`, `mask_ar`, `mask_loss`, `mask_input` [b, t].
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = np.load(folder / "checkpoint.npz")
        self.batch = dict(np.load(folder / "batch.npz"))

    @property
    def patches(self) -> int:
        """Image tokens in front of the text."""
        return (self.config["img"]["image_size"] // self.config["img"]["patch_size"]) ** 2

    def targets(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where a loss is: positions in `tokens[:, :-1]` at which any row has one; there the targets, and their weights.

        Shapes [n], [b, n], [b, n]. The sum of weight times negative log-likelihood is the mean over rows of the mean over a
        row's suffix.
        """
        mask = self.batch["mask_loss"][:, 1:].astype(np.float32)
        positions = np.flatnonzero(mask.any(axis=0))
        weights = mask / mask.sum(axis=1, keepdims=True) / len(mask)
        return positions, self.batch["tokens"][:, 1:][:, positions], weights[:, positions]


def peak_resident_bytes() -> int:
    """The most memory this process has held. `ru_maxrss` would start at that of the process which started this one."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def serve(build: Callable[[Case, str], Callable[[], float]], packages: list[str]) -> None:
    """Answers for the command line `WORKER FOLDER VARIANT`.

    Args:
        build: makes the training step of a case: it takes one step, waits for it, and returns its loss before the update.
        packages: whose versions to report.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    step = build(Case(Path(sys.argv[1])), sys.argv[2])
    losses = [step() for _ in range(WARM_UP)]
    versions = {name: version(name) for name in packages}
    answers.write(json.dumps({"losses": losses, "versions": versions, "peak_bytes": peak_resident_bytes()}) + "\n")
    for line in sys.stdin:
        milliseconds = []
        for _ in range(int(line)):
            started = time.perf_counter()
            step()
            milliseconds.append((time.perf_counter() - started) * 1000)
        answers.write(json.dumps({"milliseconds": milliseconds, "peak_bytes": peak_resident_bytes()}) + "\n")
