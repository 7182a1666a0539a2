"""Boxes around the shapes of annotation tools, and the images that they are on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paligemma.data.convert.boxes import Corners
from paligemma.data.convert.detection import BoxedImage, LabelledBox, label_of
from paligemma.data.convert.image_templates import name_or_address
from paligemma.data.convert.names import number_of, text_of
from paligemma.data.convert.outcomes import Entry, EntryError, Tally, shown
from paligemma.data.convert.outlines import ReadMask, polygon_mask
from paligemma.data.convert.photos import Size

MAX_LABEL_BYTES = 4 << 20
"""Largest label file of one image: far more boxes than a row can hold."""


@dataclass(frozen=True)
class Export:
    """What a user named: the exported file or folder, the image folder, and the split where there are several.

    `masks` says whether masks are wanted instead of boxes.
    """

    annotations: Path
    folder: Path
    split: str = ""
    masks: bool = False


def image_of(
    export: Export, names: Sequence[str], size: Size | None, rank: int, tally: Tally, fractions: bool = False
) -> BoxedImage | EntryError:
    """The image of the first name that is there; if none is, of the address that one of them is, or of the first name."""
    usable = [name for name in names if name.strip("/") and "\0" not in name]
    if not usable:
        return EntryError("image_unnamed", f"the image's name is {shown(names[0] if names else None)}")
    return BoxedImage(name_or_address(usable, export.folder, tally), size, fractions, rank)


Shape = tuple[Corners, object, ReadMask | None]
"""The box of a shape, its label, and what makes its mask, if it is more than a box."""


def labelled(image: BoxedImage | EntryError, read: Callable[[], Shape]) -> LabelledBox | EntryError:
    """The box that a function reads, on its image; or what is wrong with either."""
    try:
        if isinstance(image, EntryError):
            raise image
        box, label, mask = read()
        return LabelledBox(image, box, label_of(text_of(label)), mask)
    except EntryError as problem:
        return problem


def size_of(width: object, height: object) -> Size | None:
    wide, high = number_of(width), number_of(height)
    return (wide, high) if wide and high and wide > 0 and high > 0 else None


def corners_of(edges: Sequence[float | None], what: str) -> Corners:
    known = [edge for edge in edges if edge is not None]
    if len(known) != 4:
        raise EntryError("box_malformed", f"{what} has not four numbers")
    x1, y1, x2, y2 = known
    if x1 >= x2 or y1 >= y2:
        raise EntryError("box_empty", f"{what} is from {x1:g}, {y1:g} to {x2:g}, {y2:g}")
    return Corners(x1, y1, x2, y2)


def sized(x: float | None, y: float | None, width: float | None, height: float | None) -> Corners:
    if x is None or y is None or width is None or height is None:
        raise EntryError("box_malformed", "the box has not four numbers")
    if width <= 0 or height <= 0:
        raise EntryError("box_empty", f"the box is {width:g} x {height:g}")
    return corners_of((x, y, x + width, y + height), "the box")


def pairs_of(points: object) -> list[tuple[float | None, float | None]]:
    """Points as pairs of numbers; None for what is none."""
    given = points if isinstance(points, list) else []
    pairs = [point if isinstance(point, list) and len(point) == 2 else (None, None) for point in given]
    return [(number_of(x), number_of(y)) for x, y in pairs]


def polygon_of(points: Sequence[tuple[float | None, float | None]], fractions: bool = False) -> ReadMask:
    """The mask of points that `around` took."""
    return polygon_mask([(x, y) for x, y in points if x is not None and y is not None], fractions)


def around(points: Sequence[tuple[float | None, float | None]]) -> Corners:
    """The box around points."""
    xs = [x for x, _ in points if x is not None]
    ys = [y for _, y in points if y is not None]
    if len(xs) < 2 or len(xs) < len(points) or len(ys) < len(points):
        raise EntryError(
            "box_malformed", f"{len(points)} points, of which {len(points) - min(len(xs), len(ys))} have no numbers"
        )
    return corners_of((min(xs), min(ys), max(xs), max(ys)), "the box around the points")


def turned(box: Corners, degrees: float | None, x: float, y: float, entry: Entry, tally: Tally) -> Corners:
    """The upright box around a box that is turned clockwise about a point."""
    if not degrees:
        return box
    tally.note("box_rotated", entry.place)
    angle = math.radians(degrees % 360)
    sine, cosine = math.sin(angle), math.cos(angle)
    corners = [(right - x, down - y) for right in (box.x1, box.x2) for down in (box.y1, box.y2)]
    return around([(x + right * cosine - down * sine, y + right * sine + down * cosine) for right, down in corners])
