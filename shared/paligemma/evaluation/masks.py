"""Masks written as `<seg>` symbols (PaliGemma's answers to `segment`), and their overlap.

Sixteen symbols encode a 4 x 4 grid. A small convolutional decoder turns it into a 64 x 64 mask for the box before the symbols
(arXiv 2301.02229; weights: big_vision's `vae-oid.npz`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from PIL import Image

from paligemma.data.loc_boxes import BINS, Box
from paligemma.errors import DamagedError, InputError

SIDE = 512
"""Side in pixels of the picture that masks are compared in: a pixel is two box bins."""

_CODES, _GRID, _MASK = 16, 4, 64
_OBJECT = re.compile(r"((?:<loc\d{4}>){4})((?:<seg\d{3}>){16})\s*([^<;]*)")
_RESIDUALS, _UPSAMPLINGS, _LAST = ("decoder.2.net", "decoder.3.net"), (4, 6, 8, 10), "decoder.12"

_convolution = partial(
    jax.lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=("NCHW", "OIHW", "NCHW"), precision="highest"
)

Decode = Callable[[Int[np.ndarray, "m 16"]], Float[np.ndarray, "m 64 64"]]


def read_decoder(path: str | Path) -> Decode:
    """The decoder from an `.npz` file. It maps codes to masks, which are above 0 inside the object.

    Raises:
        InputError: there is no such file.
        DamagedError: the file is not a decoder, or a weight is missing or has another shape.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            weights = {name: np.asarray(file[name], np.float32) for name in file.files}
        empty = jnp.zeros((1, _CODES), jnp.int32)
        if jax.eval_shape(_decode, weights, empty).shape != (1, _MASK, _MASK):
            raise ValueError("its masks are not 64 x 64")
    except FileNotFoundError:
        expected = "big_vision's vae-oid.npz, of gs://big_vision/paligemma"
        raise InputError("There is no mask decoder.", where=path, expected=expected) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"The mask decoder cannot be used: {error}.", where=path, fix="fetch it again") from None
    return lambda codes: np.asarray(_decode(weights, jnp.asarray(codes)))


@jax.jit
def _decode(weights: Mapping[str, Array], codes: Int[Array, "m 16"]) -> Float[Array, "m 64 64"]:
    """Weights have PyTorch's names and layouts: [output, input, height, width], transposed ones [input, output, ...]."""

    def convolve(name: str, x: Float[Array, "m c h w"]) -> Array:
        kernel = weights[f"{name}.weight"]
        side = kernel.shape[2] // 2
        return _convolution(x, kernel, padding=[(side, side)] * 2) + bias(name)

    def bias(name: str) -> Array:
        return weights[f"{name}.bias"][:, None, None]

    x = jnp.asarray(weights["_vq_vae._embedding"])[codes].reshape(len(codes), _GRID, _GRID, -1).transpose(0, 3, 1, 2)
    x = jax.nn.relu(convolve("decoder.0", x))
    for name in _RESIDUALS:
        inner = jax.nn.relu(convolve(f"{name}.0", x))
        x += convolve(f"{name}.4", jax.nn.relu(convolve(f"{name}.2", inner)))
    for number in _UPSAMPLINGS:
        # A transposed convolution of stride 2 and padding 1: a convolution with the flipped kernel over dilated inputs.
        kernel = jnp.flip(weights[f"decoder.{number}.weight"], (2, 3)).swapaxes(0, 1)
        x = jax.nn.relu(_convolution(x, kernel, padding=[(2, 2)] * 2, lhs_dilation=(2, 2)) + bias(f"decoder.{number}"))
    return convolve(_LAST, x)[:, 0]


def parse_masks(text: str) -> list[tuple[Box, list[int]]]:
    """Boxes and codes in an answer such as `<loc0000><loc0000><loc1023><loc1023><seg000>...<seg127> cat`."""
    found = []
    for locations, codes, label in _OBJECT.findall(text):
        y0, x0, y1, x1 = (int(value) for value in re.findall(r"\d{4}", locations))
        box = Box(y0, x0, y1, x1, label.strip())
        numbers = [int(value) for value in re.findall(r"\d{3}", codes)]
        if max(box[:4]) < BINS and max(numbers) < 128 and box.area:
            found.append((box, numbers))
    return found


def mask_ious(answers: Sequence[str], references: Sequence[str], decode: Decode) -> Float[np.ndarray, " rows"]:
    """IoU of each answer's masks with its reference's: the mean over the labels of either; 1 if there are no labels."""
    scores = []
    for answer, reference in zip(answers, references, strict=True):
        found, wanted = (_by_label(parse_masks(text), decode) for text in (answer, reference))
        ious = [_iou(found.get(label), wanted.get(label)) for label in found.keys() | wanted.keys()]
        scores.append(float(np.mean(ious)) if ious else 1.0)
    return np.array(scores, np.float64)


def _by_label(objects: list[tuple[Box, list[int]]], decode: Decode) -> dict[str, Bool[np.ndarray, "side side"]]:
    """The part of the picture that each label covers."""
    pictures: dict[str, np.ndarray] = {}
    for box, codes in objects:
        y0, x0, y1, x1 = (round(value * SIDE / (BINS - 1)) for value in box[:4])
        if y1 > y0 and x1 > x0:
            mask = Image.fromarray(decode(np.array([codes]))[0]).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
            picture = pictures.setdefault(box.label, np.zeros((SIDE, SIDE), bool))
            picture[y0:y1, x0:x1] |= np.asarray(mask) > 0
    return pictures


def _iou(left: np.ndarray | None, right: np.ndarray | None) -> float:
    if left is None or right is None:
        return 0.0
    union = (left | right).sum()
    return float((left & right).sum() / union) if union else 1.0  # both masks are empty for this label
