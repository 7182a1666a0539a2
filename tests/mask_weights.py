"""Weights of the VQ-VAE behind `<seg>` symbols, with the published names and shapes, and without the published values.

The published file, big_vision's `vae-oid.npz`, cannot be had through a package registry. Names are big_vision's
(`pp/proj/paligemma/segmentation.py` and `evaluators/proj/paligemma/transfers/segmentation.py`), shapes those of arXiv
2301.02229 (SwinTransformer/AiT, `vae/models/VQVAE.py`). With values drawn at random, every step of writing and judging masks
runs, and how much two masks overlap means nothing. With values set by hand, a mask comes back as the coverage of 8 x 8 squares.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

CODES, EMBEDDING, WIDTH = 128, 512, 128
DOWNSAMPLINGS = {0: (1, 16), 2: (16, 32), 4: (32, 64), 6: (64, WIDTH)}
"""Number of each convolution of stride 2: its inputs and outputs."""
UPSAMPLINGS = {4: (WIDTH, 128), 6: (128, 64), 8: (64, 32), 10: (32, 16)}
"""Number of each transposed convolution: its inputs and outputs."""

Weights = dict[str, np.ndarray]


def shapes() -> dict[str, tuple[int, int, int, int]]:
    """Kernels: [output, input, height, width]; those of the decoder's upsamplings are [input, output, height, width]."""
    kernels = {f"encoder.{number}": (outputs, inputs, 4, 4) for number, (inputs, outputs) in DOWNSAMPLINGS.items()}
    kernels |= {"encoder.10": (EMBEDDING, WIDTH, 1, 1), "decoder.0": (WIDTH, EMBEDDING, 1, 1), "decoder.12": (1, 16, 1, 1)}
    for block in ("encoder.8.net", "encoder.9.net", "decoder.2.net", "decoder.3.net"):
        kernels |= {f"{block}.{part}": (WIDTH, WIDTH, side, side) for part, side in ((0, 3), (2, 3), (4, 1))}
    return kernels | {f"decoder.{number}": (*widths, 4, 4) for number, widths in UPSAMPLINGS.items()}


def is_transposed(name: str) -> bool:
    """Whether a kernel is one of a transposed convolution."""
    return name in {f"decoder.{number}" for number in UPSAMPLINGS}


def random_weights(seed: int = 0) -> Weights:
    """Values drawn at random, such that activations neither vanish nor grow."""
    draw = np.random.default_rng(seed)
    weights = {"_vq_vae._embedding": draw.standard_normal((CODES, EMBEDDING), np.float32)}
    for name, shape in shapes().items():
        inputs, outputs = (shape[0], shape[1]) if is_transposed(name) else (shape[1], shape[0])
        taps = 4 if is_transposed(name) else shape[2] * shape[3]  # products that are added up in one output
        weights[f"{name}.weight"] = draw.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / (inputs * taps)))
        weights[f"{name}.bias"] = draw.standard_normal(outputs, np.float32) * np.float32(0.1)
    return weights


def square_weights() -> Weights:
    """Values set by hand: an encoder that takes the mean of 8 x 8 squares of 8 pixels, a codebook of nothing, half and whole.

    A code stands for four squares. The decoder gives back what the squares of the codes hold: above 0 where more than half of a
    square is inside the object.
    """
    weights = {}
    for name, shape in shapes().items():
        weights[f"{name}.weight"] = np.zeros(shape, np.float32)
        weights[f"{name}.bias"] = np.zeros(shape[1] if is_transposed(name) else shape[0], np.float32)
    for number in (0, 2, 4):  # the mean of 2 x 2 pixels
        weights[f"encoder.{number}.weight"][0, 0, 1:3, 1:3] = 0.25
    weights["encoder.0.bias"][0] = 1  # from -1 .. 1 to 0 .. 2
    quarters = list(itertools.product((0, 1), repeat=2))
    for channel, (row, column) in enumerate(quarters):
        weights["encoder.6.weight"][channel, 0, 1 + row, 1 + column] = 1
        weights["encoder.10.weight"][channel, channel] = weights["decoder.0.weight"][channel, channel] = 1
        weights["decoder.4.weight"][channel, 0, 1 + row, 1 + column] = 1
    for number in (6, 8, 10):  # each pixel becomes four
        weights[f"decoder.{number}.weight"][0, 0, 1:3, 1:3] = 1
    weights["decoder.12.weight"][0, 0], weights["decoder.12.bias"][0] = 1, -1
    codebook = np.full((CODES, EMBEDDING), 100, np.float32)
    known = list(itertools.product((0, 1, 2), repeat=len(quarters)))
    codebook[: len(known)] = 0
    codebook[: len(known), : len(quarters)] = known
    weights["_vq_vae._embedding"] = codebook
    return weights


def write_weights(path: Path, weights: Weights) -> Path:
    """Writes the file as NumPy writes it."""
    np.savez(path, **weights)
    return path
