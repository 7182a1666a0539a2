"""Weights that turn `<seg>` symbols into masks, with the published names and shapes, and without the published values.

The published file, big_vision's `vae-oid.npz`, cannot be had through a package registry. Names and shapes are
big_vision's (`evaluators/proj/paligemma/transfers/segmentation.py`, after arXiv 2301.02229). The values here are drawn at
random: every step of judging masks runs, and how much two masks overlap means nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

CODES, EMBEDDING, WIDTH = 128, 512, 128
UPSAMPLINGS = {4: (WIDTH, 128), 6: (128, 64), 8: (64, 32), 10: (32, 16)}
"""Number of each transposed convolution: its inputs and outputs."""


def write_decoder(path: Path, seed: int = 0) -> Path:
    """Writes the file; convolutions are [output, input, height, width], transposed ones [input, output, height, width]."""
    shapes = {"decoder.0": (WIDTH, EMBEDDING, 1, 1), "decoder.12": (1, 16, 1, 1)}
    for block in ("decoder.2.net", "decoder.3.net"):
        shapes |= {f"{block}.{part}": (WIDTH, WIDTH, side, side) for part, side in ((0, 3), (2, 3), (4, 1))}
    shapes |= {f"decoder.{number}": (*widths, 4, 4) for number, widths in UPSAMPLINGS.items()}
    draw = np.random.default_rng(seed)
    weights = {"_vq_vae._embedding": draw.standard_normal((CODES, EMBEDDING), np.float32)}
    for name, shape in shapes.items():
        is_transposed = int(name.split(".")[1]) in UPSAMPLINGS
        inputs, outputs = (shape[0], shape[1]) if is_transposed else (shape[1], shape[0])
        taps = 4 if is_transposed else shape[2] * shape[3]  # products that are added up in one output
        scale = np.float32(np.sqrt(2 / (inputs * taps)))  # so that activations neither vanish nor grow
        weights[f"{name}.weight"] = draw.standard_normal(shape, np.float32) * scale
        weights[f"{name}.bias"] = draw.standard_normal(outputs, np.float32) * np.float32(0.1)
    np.savez(path, **weights)
    return path
