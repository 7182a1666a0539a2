"""Masks of objects, from what data sets have in their place: polygons, ellipses, run lengths, and pictures of a part.

A mask is made as run lengths of its image's frame. Polygons cover the pixels that pycocotools says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco

from paligemma.data.convert.names import number_of
from paligemma.data.convert.outcomes import Entry, EntryError, Tally, shown
from paligemma.data.convert.photos import Frame, Size
from paligemma.data.images import MAX_PIXELS
from paligemma.data.run_lengths import MaskError, Runs, size_of_runs

MOST_WORK = 1 << 31
"""Most pixels that are looked at for the masks of one image, if it is not larger than a 64th of this."""
_LOOKS = 64
"""Times that all pixels of a larger image may be looked at."""
_WORK_OF_OUTLINE = 8
"""Pixels that take as long as one pixel of an outline, for which pycocotools sorts five points."""

_MOST_OUTLINE = 1 << 21
"""Longest outline of an object in pixels. pycocotools takes five points for each pixel, of some 20 bytes."""
_MOST_COORDINATE = 1e7
"""pycocotools holds five times a coordinate in 32 bits."""
_MOST_CORNERS = 8192
"""Most corners of the polygon that stands for an ellipse."""


class Work:
    """What is left of the time for the masks of one image, in pixels that are looked at.

    A file of a few kilobytes may state thousands of objects, each as large as a picture of 64 Mi pixels.
    """

    def __init__(self, frame: Frame) -> None:
        self.done = 0
        self._most = max(MOST_WORK, _LOOKS * math.prod(frame_pixels(frame)))

    def spend(self, pixels: int) -> None:
        """Counts pixels before they are looked at.

        Raises:
            EntryError: they are too many, together with those before.
        """
        if self.done + pixels > self._most:
            raise EntryError("mask_too_costly", f"{self.done:,} pixels were looked at before, and this takes {pixels:,} more")
        self.done += pixels


ReadMask = Callable[[Frame, Work], Runs]
"""Makes a mask of the size of the frame, or of another one with its proportions; raises EntryError if there is none."""

Point = tuple[float, float]


def frame_pixels(frame: Frame) -> tuple[int, int]:
    """Height and width of a frame in whole pixels.

    Raises:
        EntryError: it has too many pixels for a mask.
    """
    if frame.width * frame.height > MAX_PIXELS or max(frame.width, frame.height) > MAX_PIXELS:
        raise EntryError("mask_too_large", f"the image is {frame.width:g} x {frame.height:g}")
    return max(round(frame.height), 1), max(round(frame.width), 1)


def stated_size(segmentation: object) -> Size | None:
    """Width and height that run lengths state; None if they state none, or are polygons."""
    try:
        height, width = size_of_runs(segmentation)
    except MaskError:
        return None
    return width, height


def coco_mask(segmentation: object, entry: Entry, tally: Tally) -> ReadMask:
    """The mask of a COCO `segmentation`: polygons, or run lengths, packed and not.

    Raises:
        EntryError: it is none. Run lengths and coordinates are looked at when the mask is made.
    """
    if segmentation in (None, [], {}, ""):
        raise EntryError("mask_missing", f"the segmentation is {shown(segmentation)}")
    if isinstance(segmentation, dict):
        return lambda frame, work: _of_runs(segmentation, frame)
    polygons = _coco_polygons(segmentation, entry, tally)
    return lambda frame, work: _of_polygons(polygons, frame, work)


def polygon_mask(points: Sequence[Point], fractions: bool = False) -> ReadMask:
    """The mask of a polygon.

    Args:
        points: at least three.
        fractions: whether they are in fractions of the frame instead of its pixels.
    """

    def read(frame: Frame, work: Work) -> Runs:
        if len(points) < 3:
            raise EntryError("mask_malformed", f"a polygon of {len(points)} points")
        return _of_polygons([(np.array(points, np.float64) * _unit(frame, fractions)).reshape(-1)], frame, work)

    return read


def rectangle_mask(corners: Sequence[float], degrees: float = 0, about: Point = (0, 0), fractions: bool = False) -> ReadMask:
    """The mask of a rectangle.

    Args:
        corners: left, top, right and bottom edge.
        degrees: by how much it is turned, clockwise.
        about: the point about which it is turned.
        fractions: whether edges and point are in fractions of the frame.
    """
    left, top, right, bottom = corners
    points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
    return lambda frame, work: _turned(points, np.array(about), degrees, frame, fractions, work)


def ellipse_mask(center: Point, radii: Point, degrees: float = 0, fractions: bool = False) -> ReadMask:
    """The mask of an ellipse, as a polygon that leaves it by less than a fortieth of a pixel, up to radii of 260,000 pixels.

    Args:
        center, radii: across and down.
        degrees: by how much it is turned about its center, clockwise.
        fractions: whether center and radii are in fractions of the frame.
    """

    def read(frame: Frame, work: Work) -> Runs:
        largest = float(np.max(np.abs(radii) * _unit(frame, fractions)))
        if not largest < _MOST_COORDINATE:
            raise EntryError("mask_too_large", f"the ellipse has a radius of {largest:g} pixels")
        angles = np.linspace(0, 2 * math.pi, min(max(math.ceil(16 * math.sqrt(largest)), 16), _MOST_CORNERS), endpoint=False)
        points = np.array(center) + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
        return _turned(points, np.array(center), degrees, frame, fractions, work)

    return read


def part_mask(runs: Runs, left: int, top: int) -> ReadMask:
    """The mask of a part of the frame.

    Args:
        runs: the part's mask, transposed: its runs are along its rows.
        left, top: where the part begins, in the frame's pixels.
    """

    def read(frame: Frame, work: Work) -> Runs:
        height, width = frame_pixels(frame)
        if (box := runs.box) is None:
            return Runs(height, width, np.array([height * width]))
        work.spend((box[2] - box[0]) * (box[3] - box[1]))
        return Runs.of_pixels(runs.part(*box).T).placed(left + box[1], top + box[0], height, width)

    return read


def row_runs(counts: Sequence[int], width: int, height: int) -> Runs:
    """Runs along the rows of a mask, as a transposed mask.

    Raises:
        EntryError: they are not those of a mask of that size.
    """
    try:
        return Runs.of_json({"size": [width, height], "counts": list(counts)})
    except MaskError as error:
        raise EntryError("mask_malformed", f"the mask cannot be read: {error}") from None


def _unit(frame: Frame, fractions: bool) -> Float[np.ndarray, " xy"]:
    return np.array([frame.width, frame.height] if fractions else [1.0, 1.0])


def _turned(
    points: Float[np.ndarray, "p 2"], about: Float[np.ndarray, " 2"], degrees: float, frame: Frame, fractions: bool, work: Work
) -> Runs:
    """A polygon that is turned. Its points become pixels first, since fractions of a wide picture turn to another shape."""
    unit, angle = _unit(frame, fractions), math.radians(degrees % 360)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) if degrees else np.eye(2)
    with np.errstate(all="ignore"):  # what is not finite is found below
        turned = about * unit + ((points - about) * unit) @ turn
    return _of_polygons([turned.reshape(-1)], frame, work)


def _of_runs(runs: dict, frame: Frame) -> Runs:
    try:
        height, width = size_of_runs(runs)
        if (height, width) != (wanted := frame_pixels(frame)):
            raise EntryError("mask_size", f"it is {width} x {height}, the image {wanted[1]} x {wanted[0]}")
        return Runs.of_json(runs)
    except MaskError as error:
        raise EntryError("mask_malformed", f"the mask cannot be read: {error}") from None


def _coco_polygons(segmentation: object, entry: Entry, tally: Tally) -> list[Float[np.ndarray, " xy"]]:
    """Polygons with three points and more, each as x, y, x, y, ...; points and lines, which COCO has some of, are dropped."""
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise EntryError("mask_malformed", f"the segmentation is {shown(segmentation)}, not a list of lists")
    polygons = []
    for polygon in segmentation:
        numbers = [number_of(value) for value in polygon]
        if None in numbers or len(numbers) % 2:
            raise EntryError("mask_malformed", f"a polygon of {len(polygon)} values is not x, y, x, y, ...")
        if len(numbers) < 6:
            tally.note("polygon_dropped", entry.place)
            continue
        polygons.append(np.array(numbers, np.float64))
    if not polygons:
        raise EntryError("mask_malformed", "no polygon has three points")
    return polygons


def _of_polygons(polygons: Sequence[Float[np.ndarray, " xy"]], frame: Frame, work: Work) -> Runs:
    """As `annToMask` of pycocotools: the union of the polygons."""
    height, width = frame_pixels(frame)
    if not max(np.abs(polygon).max() for polygon in polygons) <= _MOST_COORDINATE:
        raise EntryError("mask_too_large", f"a polygon reaches farther than {_MOST_COORDINATE:,.0f} pixels")
    outline = sum(_length(polygon.reshape(-1, 2)) for polygon in polygons)
    if outline > _MOST_OUTLINE:
        raise EntryError("mask_too_large", f"the outline is {outline:.0f} pixels long, at most {_MOST_OUTLINE}")
    work.spend(_WORK_OF_OUTLINE * round(outline))
    runs: Any = coco.merge(coco.frPyObjects([polygon.tolist() for polygon in polygons], height, width))
    return Runs.of_json({"size": [height, width], "counts": runs["counts"].decode("ascii")})


def _length(points: Float[np.ndarray, "p 2"]) -> float:
    """Pixels along a polygon's outline, at least one for each edge."""
    steps = np.abs(points - np.roll(points, -1, axis=0)).max(axis=1)
    return float(np.maximum(steps, 1).sum())
