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


def measure(rows: int) -> tuple[float, float]:
    started = time.perf_counter()
    run(rows, 1)
    between = time.perf_counter()
    run(rows, 1 + NEW_TOKENS)
    prefill = between - started
    return prefill, time.perf_counter() - between - prefill


serve(lambda rows: run(rows, 1 + NEW_TOKENS), measure, ["jax", "jaxlib", "flax"])
