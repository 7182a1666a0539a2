"""Masks written as `<seg>` symbols, which are PaliGemma's answers to `segment`, beside the true masks of a row."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from paligemma.data.loc_boxes import BINS, Box
from paligemma.data.run_lengths import MaskError, check_runs, read_runs

_OBJECT = re.compile(r"((?:<loc\d{4}>){4})((?:<seg\d{3}>){16})\s*([^<;]*)")
_VECTORS = 128

Decode = Callable[[Int[np.ndarray, "m 16"]], Float[np.ndarray, "m 64 64"]]
"""Maps codes to masks, which are above 0 inside the object: `mask_codes.read_decoder`."""


@dataclass(frozen=True)
class TrueMask:
    """What a label covers in the picture, as its data set says: run lengths at the picture's own resolution."""

    label: str
    height: int
    width: int
    counts: str

    def pixels(self) -> Bool[np.ndarray, "h w"]:
        """The mask."""
        return read_runs({"size": [self.height, self.width], "counts": self.counts})

    def as_json(self) -> dict[str, object]:
        """The form that a row has under `masks`."""
        return {"label": self.label, "size": [self.height, self.width], "counts": self.counts}


def true_masks(value: object) -> tuple[TrueMask, ...]:
    """The masks of a row, from the JSON value that it has under `masks`.

    Raises:
        MaskError: it is not a list of masks, or they are not of one size.
    """
    if not isinstance(value, list):
        raise MaskError("it is not a list")
    masks = []
    for number, item in enumerate(value):
        try:
            check_runs(item)
        except MaskError as error:
            raise MaskError(f"[{number}]: {error}") from None
        if not isinstance(item.get("label"), str) or not isinstance(item["counts"], str):
            raise MaskError(f"[{number}]: its label or its counts are not a text")
        masks.append(TrueMask(item["label"], int(item["size"][0]), int(item["size"][1]), item["counts"]))
    if len({(mask.height, mask.width) for mask in masks}) > 1:
        raise MaskError("they are not of one size")
    return tuple(masks)


def seg_text(codes: Sequence[int] | Int[np.ndarray, " 16"]) -> str:
    """Sixteen codes as symbols."""
    return "".join(f"<seg{int(code):03d}>" for code in codes)


def parse_masks(text: str) -> list[tuple[Box, list[int]]]:
    """Boxes and codes in an answer such as `<loc0000><loc0000><loc1023><loc1023><seg000>...<seg127> cat`."""
    found = []
    for locations, codes, label in _OBJECT.findall(text):
        y0, x0, y1, x1 = (int(value) for value in re.findall(r"\d{4}", locations))
        box = Box(y0, x0, y1, x1, label.strip())
        numbers = [int(value) for value in re.findall(r"\d{3}", codes)]
        if max(box[:4]) < BINS and max(numbers) < _VECTORS and box.area:
            found.append((box, numbers))
    return found


def paint_masks(
    text: str, height: int, width: int, decode: Decode, to_pixel: Callable[[float], int] = int
) -> dict[str, Bool[np.ndarray, "h w"]]:
    """The part of a picture that each label of an answer covers.

    A box's edges are cut to whole pixels, the decoded mask is resized to the box (bilinear), and the object is where that is
    above 0 (google-research/big_vision, `big_vision/evaluators/proj/paligemma/transfers/segmentation.py`, lines 102-131).

    Args:
        text: the answer.
        height, width: size of the picture in pixels.
        decode: maps codes to masks.
        to_pixel: how an edge becomes a whole number of pixels.
    """
    pictures: dict[str, np.ndarray] = {}
    objects = parse_masks(text)
    for (box, _), mask in zip(
        objects, decode(np.array([codes for _, codes in objects], np.int32).reshape(-1, 16)), strict=True
    ):
        y0, y1 = (to_pixel(edge / (BINS - 1) * height) for edge in (box.y0, box.y1))
        x0, x1 = (to_pixel(edge / (BINS - 1) * width) for edge in (box.x0, box.x1))
        if y1 > y0 and x1 > x0:
            resized = Image.fromarray(mask).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
            picture = pictures.setdefault(box.label, np.zeros((height, width), bool))
            picture[y0:y1, x0:x1] |= np.asarray(resized) > 0
    return pictures


def count_overlaps(text: str, masks: Sequence[TrueMask], decode: Decode) -> dict[str, tuple[int, int]]:
    """Pixels that an answer and a row's true masks share, and that either has, by label.

    Masks of one label are taken together. A row has at least one mask, and all are of one size.
    """
    painted = paint_masks(text, masks[0].height, masks[0].width, decode)
    true: dict[str, list[TrueMask]] = {}
    for mask in masks:
        true.setdefault(mask.label, []).append(mask)
    counted = {}
    for label in sorted(true.keys() | painted.keys()):
        wanted = np.zeros((masks[0].height, masks[0].width), bool)
        for mask in true.get(label, ()):
            wanted |= mask.pixels()
        found = painted.get(label)
        shared = 0 if found is None else int((found & wanted).sum())
        counted[label] = shared, int(wanted.sum()) + (0 if found is None else int(found.sum())) - shared
    return counted


def mean_iou(counted: dict[str, tuple[int, int]]) -> float:
    """Mean IoU over labels, from `count_overlaps`; of a label that covers nothing in both, 1."""
    return float(np.mean([shared / either if either else 1.0 for shared, either in counted.values()])) if counted else 1.0
