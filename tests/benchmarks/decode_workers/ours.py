"""Our decoding, as `decode.py` times it."""

from __future__ import annotations

import time

import numpy as np
from worker import NEW_TOKENS, read_case, serve

import paligemma
from paligemma.decoding.settings import DecodeSettings

case, images, tokens = read_case()
model = paligemma.load(case.folder / "checkpoint.npz")


def run(rows: int, length: int) -> np.ndarray:
    real = np.ones_like(tokens[:rows], bool)
    return model.search(images[:rows], tokens[:rows], real, 0 * tokens[:rows], DecodeSettings(length)).tokens


def measure(rows: int) -> list[float]:
    times = []
    for length in (1, 1 + NEW_TOKENS):
        started = time.perf_counter()
        run(rows, length)
        times.append(time.perf_counter() - started)
    return [times[0], *times]


serve(lambda rows: run(rows, 1 + NEW_TOKENS), measure, ["jax", "jaxlib", "flax"])
