"""The demo's data: scikit-learn's scanned handwritten digits as image files and JSONL, with a few kinds of question."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paligemma.storage.atomic import write_directory

MARKER = "SOURCE.txt"
SOURCE = """1,797 handwritten digits, 8 x 8 pixels, 17 grey levels: `sklearn.datasets.load_digits`, the test set of
E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""


def questions(digit: int) -> list[tuple[str, str]]:
    """Every prefix and suffix asked of a digit."""
    return [
        ("which digit is this?", str(digit)),
        ("is the digit odd or even?", "odd" if digit % 2 else "even"),
        ("is the digit more or less than five?", "equal" if digit == 5 else "more" if digit > 5 else "less"),
    ]


def write_digits(folder: Path, validation_fraction: float = 0.2, seed: int = 0) -> None:
    """Writes `images/*.png`, `train.jsonl` and `validation.jsonl`; each image is in only one split."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    count = len(digits.images)
    order = list(range(count))
    random.Random(seed).shuffle(order)
    held_out = set(order[: round(validation_fraction * count)])
    own = {MARKER, "train.jsonl", "validation.jsonl", *map(_image_name, range(count))}
    with write_directory(folder, may_replace=MARKER, files_of=lambda _: own) as partial:
        (partial / "images").mkdir()
        splits: dict[str, list[str]] = {"train": [], "validation": []}
        for index in order:
            pixels = np.round(255 - digits.images[index] * (255 / 16)).astype(np.uint8)  # dark ink on light paper
            name = _image_name(index)
            Image.fromarray(pixels).save(partial / name)
            split = "validation" if index in held_out else "train"
            for prefix, suffix in questions(int(digits.target[index])):
                splits[split].append(json.dumps({"image": name, "prefix": prefix, "suffix": suffix}))
        for split, lines in splits.items():
            (partial / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        (partial / MARKER).write_text(SOURCE)


def _image_name(index: int) -> str:
    return f"images/{index:04d}.png"
