"""Converts COCO's boxes (x, y, width, height in pixels, from the left and the top) to PaliGemma's `<loc>` symbols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from paligemma.data.convert.names import number_of
from paligemma.data.convert.outcomes import EntryError, shown
from paligemma.data.tokenizer import NUM_LOC

TOLERANCE = 0.5
"""Pixels by which rounding may push a box beyond its image without a note."""


class Corners(NamedTuple):
    """A box by its edges: pixels, or fractions of the image."""

    x1: float
    y1: float
    x2: float
    y2: float


def box_of(annotation: dict) -> tuple[Corners, bool]:
    """An annotation's box in pixels, and whether it was taken from the polygons of its segmentation.

    Raises:
        EntryError: the box is missing or invalid.
    """
    box = annotation.get("bbox")
    if box is None or box == []:
        return _around_polygons(annotation.get("segmentation")), True
    values = _numbers(box) if isinstance(box, list) and len(box) == 4 else []
    if len(values) != 4:
        raise EntryError("box_malformed", f"bbox is {_shown_box(box)}")
    x, y, width, height = values
    if width <= 0 or height <= 0:
        raise EntryError("box_empty", f"bbox is {_shown_box(box)}")
    return Corners(x, y, x + width, y + height), False


def _around_polygons(segmentation: object) -> Corners:
    if not segmentation:
        raise EntryError("box_missing", "there is neither bbox nor segmentation")
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise EntryError("box_missing", "there is no bbox, and the segmentation is a mask, not polygons")
    points = [_numbers(polygon) for polygon in segmentation]
    given = zip(points, segmentation, strict=True)
    if any(len(numbers) < 6 or len(numbers) % 2 or len(numbers) < len(polygon) for numbers, polygon in given):
        raise EntryError("box_missing", "there is no bbox, and the segmentation is not polygons x, y, x, y, x, y, ...")
    xs, ys = ([value for polygon in points for value in polygon[start::2]] for start in (0, 1))
    if min(xs) == max(xs) or min(ys) == max(ys):
        raise EntryError("box_empty", "the polygons have no width or no height")
    return Corners(min(xs), min(ys), max(xs), max(ys))


def _numbers(values: list) -> list[float]:
    """Those of some values that are numbers."""
    return [number for value in values if (number := number_of(value)) is not None]


def _shown_box(box: object) -> str:
    return repr(box)[:80] if isinstance(box, list) and len(box) < 9 else shown(box)


def place(box: Corners, width: float, height: float, orientation: int) -> tuple[str, bool]:
    """A box as four <loc> tokens on the displayed image, and whether it reached beyond the image's edge.

    Args:
        box: the box in pixels.
        width, height: size of the image in the same pixels.
        orientation: EXIF orientation that turns these pixels to the displayed image; 1 if they are as displayed.

    Raises:
        EntryError: the box is outside the image, or too small for the tokens.
    """
    inside, beyond = clip(box, width, height)
    turned = turn(inside, orientation)
    text = box_text(turned.y1, turned.x1, turned.y2, turned.x2)
    if text[:9] == text[18:27] or text[9:18] == text[27:]:
        raise EntryError("box_too_small", f"{box.x2 - box.x1:g} x {box.y2 - box.y1:g} pixels in {width:g} x {height:g}")
    return text, beyond


def clip(box: Corners, width: float, height: float) -> tuple[Corners, bool]:
    """The part of a box inside its image, as fractions of the image, and whether it reached beyond the edge.

    Raises:
        EntryError: the box is outside the image.
    """
    if box.x2 <= 0 or box.y2 <= 0 or box.x1 >= width or box.y1 >= height:
        where = f"from {box.x1:g}, {box.y1:g} to {box.x2:g}, {box.y2:g}"
        raise EntryError("box_outside", f"the box {where} in {width:g} x {height:g}")
    inside = Corners(max(box.x1, 0) / width, max(box.y1, 0) / height, min(box.x2 / width, 1), min(box.y2 / height, 1))
    return inside, max(-box.x1, -box.y1, box.x2 - width, box.y2 - height) > TOLERANCE


def reach(boxes: Sequence[Corners]) -> tuple[float, float]:
    """The right and bottom extent of the boxes, in pixels."""
    return max(box.x2 for box in boxes), max(box.y2 for box in boxes)


def turn(box: Corners, orientation: int) -> Corners:
    """Turns a box from fractions of the stored image to fractions of the displayed image, by EXIF orientation 1 to 8."""
    x1, y1, x2, y2 = box
    if orientation in (5, 6, 7, 8):  # rows become columns
        x1, y1, x2, y2 = y1, x1, y2, x2
    if orientation in (2, 3, 6, 7):
        x1, x2 = 1 - x2, 1 - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = 1 - y2, 1 - y1
    return Corners(x1, y1, x2, y2)


def box_text(y1: float, x1: float, y2: float, x2: float) -> str:
    """A box in fractions of the image as four <loc> tokens, rounded to steps of 1/1023 as in big_vision."""
    steps = (min(max(round(value * (NUM_LOC - 1)), 0), NUM_LOC - 1) for value in (y1, x1, y2, x2))
    return "".join(f"<loc{step:04d}>" for step in steps)


def all_fractions(boxes: Sequence[Corners]) -> bool:
    """Whether boxes seem to be fractions of the image: all lie within the first pixel, and some end inside it."""
    return all(box.x2 <= 1 and box.y2 <= 1 for box in boxes) and any(
        0 < edge < 1 for box in boxes for edge in (box.x1, box.y1, box.x2, box.y2)
    )
