"""How long `finetune` waits for data, of the time of a step: the real component on real records, medium configuration.

    PYTHONPATH=shared:. .venv/bin/python tests/benchmarks/data_wait.py

Different JPEGs are prepared by `prepare_data` and trained on in batches of 4, in float32; figures are those of `metrics.jsonl`,
without the steps that compile. With cached features it is those of the second epoch: in the first, they are computed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ.pop("XLA_FLAGS", None)  # simulated devices would share this machine's cores

import numpy as np
from PIL import Image
from step import MEDIUM, write_case

from components.finetune.__main__ import run as finetune
from components.prepare_data.__main__ import run as prepare_data
from paligemma.checkpoints.open_checkpoint import open_checkpoint

ROWS, BATCH, STEPS = 64, 4, 32
BUCKET = "buckets=1"
"""So few rows are one bucket: no step after the first compiles."""


def write_rows(folder: Path) -> Path:
    """JPEGs of 640 x 480 of noise that was smoothed, with a question and an answer each."""
    rng, lines = np.random.default_rng(0), []
    for number in range(ROWS):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
        suffix = " ".join(str(value) for value in rng.integers(0, 10, 15))
        lines.append(json.dumps({"image": f"{number}.jpg", "prefix": "which digits are these?", "suffix": suffix}))
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(lines) + "\n")
    return rows


def main() -> None:
    """Prints a table."""
    print("| recipe | of the steps' seconds: waiting for data | step | ms/step |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_case(folder, MEDIUM, (64,) * 4)
        shutil.copy(open_checkpoint("embedded:tiny").tokenizer, folder / "tokenizer.model")
        prepare_data(str(write_rows(folder)), str(folder / "checkpoint.npz"), str(folder / "records"))
        for recipe, first in (("remat=dots", 3), ("vision_cache=memory", ROWS // BATCH + 1)):
            output = folder / recipe
            settings = ["frozen_dtype=float32", f"batch_size={BATCH}", f"steps={STEPS}", BUCKET, recipe]
            finetune(str(folder / "checkpoint.npz"), str(folder / "records"), str(output), set_=settings)
            entries = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()][first:]
            phases = {key: sum(entry.get(key, 0.0) for entry in entries) for key in ("seconds_data", "seconds_step")}
            total = sum(phases.values())
            print(
                f"| `{recipe}` | {phases['seconds_data'] / total:.2%} | {phases['seconds_step'] / total:.2%} "
                f"| {total / len(entries) * 1000:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
