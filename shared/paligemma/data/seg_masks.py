"""Masks written as `<seg>` symbols, which are PaliGemma's answers to `segment`, beside the true masks of a row."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image
from pycocotools import mask as coco

from paligemma.data.loc_boxes import BINS, Box
from paligemma.data.pictures.strips import STRIP_PIXELS
from paligemma.data.run_lengths import MaskError, Runs, check_runs, read_runs
from paligemma.errors import DamagedError
from paligemma.foreign_json import parse_json

_OBJECT = re.compile(r"((?:<loc\d{4}>){4})((?:<seg\d{3}>){16})\s*([^<;]*)")
VECTORS = 128
"""Number of `<seg>` symbols: vectors in the codebook."""

Overlaps = Mapping[str, tuple[int, int]]
"""By label, the pixels that two sides share, and those that either has."""

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


def masks_text(masks: Sequence[TrueMask]) -> str:
    """A row's masks as a JSON text, as records hold them; empty without any."""
    return json.dumps([mask.as_json() for mask in masks], ensure_ascii=False, separators=(",", ":")) if masks else ""


def parse_masks_text(text: str) -> tuple[TrueMask, ...]:
    """The masks that `masks_text` wrote.

    Raises:
        DamagedError: it did not write them.
    """
    if not text:
        return ()
    where, fix = "a row's masks", "run prepare_data again"
    try:
        return true_masks(parse_json(text, where, "The true masks", kind=list, fix=fix))
    except MaskError as error:
        raise DamagedError(f"The true masks cannot be read: {error}.", where=where, fix=fix) from None


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
        if max(box[:4]) < BINS and max(numbers) < VECTORS and box.area:
            found.append((box, numbers))
    return found


def masks_by_label(text: str) -> dict[str, list[tuple[Box, list[int]]]]:
    """`parse_masks`, by label."""
    labelled: dict[str, list[tuple[Box, list[int]]]] = {}
    for box, codes in parse_masks(text):
        labelled.setdefault(box.label, []).append((box, codes))
    return labelled


def paint_masks(
    objects: Sequence[tuple[Box, list[int]]],
    height: int,
    width: int,
    decode: Decode,
    to_pixel: Callable[[float], int] = int,
) -> Bool[np.ndarray, "h w"] | None:
    """The part of a picture that the masks of an answer cover; None if no box has a whole pixel.

    A box's edges are cut to whole pixels, the decoded mask is resized to the box (bilinear), and the object is where that is
    above 0 (google-research/big_vision, `big_vision/evaluators/proj/paligemma/transfers/segmentation.py`, lines 102-131).

    Args:
        objects: boxes and codes, from `parse_masks`.
        height, width: size of the picture in pixels.
        decode: maps codes to masks.
        to_pixel: how an edge becomes a whole number of pixels.
    """
    picture = None
    masks = decode(np.array([codes for _, codes in objects], np.int32)) if objects else ()
    for (box, _), mask in zip(objects, masks, strict=True):
        y0, y1 = (to_pixel(edge / (BINS - 1) * height) for edge in (box.y0, box.y1))
        x0, x1 = (to_pixel(edge / (BINS - 1) * width) for edge in (box.x0, box.x1))
        if y1 > y0 and x1 > x0:
            picture = np.zeros((height, width), bool) if picture is None else picture
            _paint(mask, picture[y0:y1, x0:x1])
    return picture


def _paint(mask: Float[np.ndarray, "64 64"], part: Bool[np.ndarray, "h w"]) -> None:
    """Adds a decoded mask to a part of a picture.

    A large part is painted some columns at a time, which bounds the memory. The result is the same to the bit: when a picture
    grows in both directions, Pillow resizes its rows first, and then each column by itself.
    """
    height, width = part.shape
    grows = height >= len(mask) and width >= len(mask)
    image = Image.fromarray(mask).resize((width, len(mask) if grows else height), Image.Resampling.BILINEAR)
    columns = max(1, STRIP_PIXELS // height)
    for left in range(0, width, columns):
        right = min(left + columns, width)
        strip = image.crop((left, 0, right, image.height)).resize((right - left, height), Image.Resampling.BILINEAR)
        part[:, left:right] |= np.asarray(strip) > 0


def union_of_text(text: str, side: int, decode: Decode) -> Bool[np.ndarray, "side side"]:
    """What an answer's masks cover, in a picture that is resized to a square."""
    covered = paint_masks(parse_masks(text), side, side, decode)
    return np.zeros((side, side), bool) if covered is None else covered


def union_of_masks(masks: Sequence[TrueMask], side: int) -> Bool[np.ndarray, "side side"]:
    """What true masks cover, in a picture that is resized to a square."""
    if not masks:
        return np.zeros((side, side), bool)
    return _union(masks).sampled(side)


def count_overlaps(text: str, masks: Sequence[TrueMask], decode: Decode) -> Overlaps:
    """Overlaps of an answer with a row's true masks, at their own resolution. Masks of one label are taken together.

    Args:
        text: the answer.
        masks: the masks, at least one, all of one size.
        decode: maps codes to masks.
    """
    height, width, objects = masks[0].height, masks[0].width, masks_by_label(text)
    labelled: dict[str, list[TrueMask]] = {}
    for mask in masks:
        labelled.setdefault(mask.label, []).append(mask)
    counted = {}
    for label in sorted(labelled.keys() | objects.keys()):  # one label's pixels at a time
        wanted = _union(labelled[label]) if label in labelled else None
        found = paint_masks(objects.get(label, ()), height, width, decode)
        if found is None and wanted is None:
            continue
        x0, y0, x1, y1 = _hull(wanted, objects.get(label, ()), height, width)
        counted[label] = count_pixels(
            None if found is None else found[y0:y1, x0:x1], None if wanted is None else wanted.part(x0, y0, x1, y1)
        )
    return counted


def _union(masks: Sequence[TrueMask]) -> Runs:
    size = [masks[0].height, masks[0].width]
    packed: Any = coco.merge([{"size": size, "counts": mask.counts.encode("ascii")} for mask in masks])
    return Runs.of_json({"size": size, "counts": packed["counts"].decode("ascii")})


def _hull(mask: Runs | None, objects: Sequence[tuple[Box, list[int]]], height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the rectangle around a mask and the boxes of an answer: nothing is covered outside."""
    boxes = [
        tuple(edge / (BINS - 1) * side for edge, side in zip((b.x0, b.y0, b.x1, b.y1), (width, height) * 2, strict=True))
        for b, _ in objects
    ]
    boxes += [mask.box] if mask is not None and mask.box is not None else []
    if not boxes:
        return 0, 0, 0, 0
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return max(int(min(x0)), 0), max(int(min(y0)), 0), min(math.ceil(max(x1)), width), min(math.ceil(max(y1)), height)


def count_pixels(left: Bool[np.ndarray, "h w"] | None, right: Bool[np.ndarray, "h w"] | None) -> tuple[int, int]:
    """Pixels that two masks of a label share, and that either has. A label that only one side names is never a match."""
    if left is None or right is None:
        return 0, max(int(sum(mask.sum() for mask in (left, right) if mask is not None)), 1)
    return int((left & right).sum()), int((left | right).sum())


def mean_iou(overlaps: Overlaps) -> float:
    """Mean IoU over labels; 1 for a label whose masks are both empty, and 1 without any label."""
    return float(np.mean([shared / either if either else 1.0 for shared, either in overlaps.values()])) if overlaps else 1.0
