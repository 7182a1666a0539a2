"""Masks as COCO's run lengths: `{"size": [height, width], "counts": ...}`, read from strangers, and written.

Counts are lengths of runs of pixels outside and inside the object, in turn, column by column. They are a list of numbers, or a
text that packs them (cocodataset/cocoapi, `common/maskApi.c`, lines 201-230: six bits a character, from the third count on
the difference to the one before the last).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as coco

from paligemma.data.images import MAX_PIXELS

MOST_CHARACTERS = 6
"""Most characters of one packed count: 30 bits, more than any mask has pixels."""


class MaskError(ValueError):
    """Run lengths that are no mask, or one that is too large."""


@dataclass(frozen=True, eq=False)
class Runs:
    """A mask as run lengths, of which parts are made as pixels. So a small object takes little time, however large its picture.

    Attributes:
        height, width: size in pixels.
        counts: lengths of runs outside and inside the object, in turn; only the first may be 0.
    """

    height: int
    width: int
    counts: Int[np.ndarray, " runs"]

    @classmethod
    def of_json(cls, value: object) -> Runs:
        """Run lengths from a JSON value.

        Raises:
            MaskError: see `read_runs`.
        """
        return cls(*size_of_runs(value), _joined(check_runs(value)))

    @classmethod
    def of_pixels(cls, mask: Bool[np.ndarray, "h w"]) -> Runs:
        """The runs of a mask."""
        return cls.of_json(write_runs(mask))

    @cached_property
    def _edges(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Where runs inside the object begin and end, counted column by column."""
        edges = np.cumsum(self.counts)
        return edges[:-1:2], edges[1::2]

    @property
    def text(self) -> str:
        """The counts, packed, as `write_runs` writes them."""
        listed: Any = {"size": [self.height, self.width], "counts": self.counts.tolist()}
        packed: Any = coco.frPyObjects(listed, self.height, self.width)
        return packed["counts"].decode("ascii")

    @property
    def area(self) -> int:
        """Number of the object's pixels."""
        return int(self.counts[1::2].sum())

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom edge of the object's pixels; None if it has none."""
        starts, stops = self._edges
        if not len(starts):
            return None
        left, right = int(starts[0] // self.height), int((stops[-1] - 1) // self.height + 1)
        if (starts // self.height < (stops - 1) // self.height).any():  # a run that goes on in the next column
            return left, 0, right, self.height
        return left, int((starts % self.height).min()), right, int(((stops - 1) % self.height).max() + 1)

    def part(self, left: int, top: int, right: int, bottom: int) -> Bool[np.ndarray, "h w"]:
        """The pixels of a rectangle inside the picture. Time and memory are those of the rectangle and of the runs."""
        high = bottom - top
        columns, tops, bottoms = self._in_columns()
        inside = (columns >= left) & (columns < right) & (tops < bottom) & (bottoms > top)
        begin = (columns[inside] - left) * high
        change = np.zeros((right - left) * high + 1, np.int8)
        change[begin + np.maximum(tops[inside] - top, 0)] += 1
        change[begin + np.minimum(bottoms[inside], bottom) - top] -= 1
        return np.cumsum(change[:-1], dtype=np.int8).view(bool).reshape(right - left, high).T

    def sampled(self, side: int) -> Bool[np.ndarray, "side side"]:
        """The mask resized to a square, by the nearest pixels. Time is that of the square, however large the mask."""
        middles = (np.arange(side) + 0.5) / side
        rows, columns = (middles * self.height).astype(np.int64), (middles * self.width).astype(np.int64)
        places = columns * self.height + rows[:, None]
        return np.searchsorted(np.cumsum(self.counts), places, side="right") % 2 == 1

    def pixels(self) -> Bool[np.ndarray, "h w"]:
        """The whole mask."""
        return np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts).reshape(self.width, self.height).T

    def placed(self, left: int, top: int, height: int, width: int) -> Runs:
        """The mask as a part of a larger picture; what is outside of that is cut off."""
        columns, tops, bottoms = self._in_columns()
        columns, tops, bottoms = columns + left, np.maximum(tops + top, 0), np.minimum(bottoms + top, height)
        inside = (columns >= 0) & (columns < width) & (tops < bottoms)
        begin = columns[inside] * height
        edges = np.stack([begin + tops[inside], begin + bottoms[inside]], axis=1).reshape(-1)
        return Runs(height, width, _joined(np.diff(edges, prepend=0, append=height * width)))

    def _in_columns(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Runs inside the object, each in one column: its column, top and bottom."""
        starts, stops = self._edges
        first = starts // self.height
        several = (stops - 1) // self.height - first + 1
        columns = np.repeat(first - np.cumsum(several) + several, several) + np.arange(several.sum())
        tops = np.maximum(np.repeat(starts, several) - columns * self.height, 0)
        bottoms = np.minimum(np.repeat(stops, several) - columns * self.height, self.height)
        return columns, tops, bottoms


def _joined(counts: Int[np.ndarray, " n"]) -> Int[np.ndarray, " runs"]:
    """Counts without runs of no pixel, between which neighbours are one run; the first one is outside the object."""
    inside = np.arange(len(counts)) % 2
    inside, counts = inside[counts > 0], counts[counts > 0]
    begins = np.flatnonzero(np.diff(inside, prepend=2))
    joined = np.add.reduceat(counts, begins) if len(begins) else counts
    return np.concatenate([[0], joined]) if len(inside) and inside[0] else joined


def read_runs(value: object) -> Bool[np.ndarray, "h w"]:
    """The mask of run lengths from a JSON value. Memory is bounded by `MAX_PIXELS` and the value's own size.

    Raises:
        MaskError: it is no mask, or one of more than `MAX_PIXELS` pixels.
    """
    return Runs(*size_of_runs(value), check_runs(value)).pixels()


def check_runs(value: object) -> Int[np.ndarray, " runs"]:
    """The counts, without their mask.

    Raises:
        MaskError: see `read_runs`.
    """
    height, width = size_of_runs(value)
    given = value.get("counts") if isinstance(value, dict) else None
    counts = _unpacked(given) if isinstance(given, str) else _listed(given)
    pixels = height * width
    if len(counts) and (counts.min() < 0 or counts.max() > pixels):
        raise MaskError(f"a count in it is negative, or larger than the {pixels} pixels of its size")
    if (total := int(counts.sum())) != pixels:
        raise MaskError(f"its counts are of {total} pixels, its size of {pixels}")
    return counts


def size_of_runs(value: object) -> tuple[int, int]:
    """Height and width of run lengths.

    Raises:
        MaskError: they have none, or too many pixels.
    """
    if not isinstance(value, dict):
        raise MaskError("it is not an object with size and counts")
    size = value.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(_is_whole(side) and side > 0 for side in size):
        raise MaskError("its size is not [height, width]")
    height, width = int(size[0]), int(size[1])
    if height * width > MAX_PIXELS:
        raise MaskError(f"it has more than {MAX_PIXELS} pixels")
    return height, width


def write_runs(mask: Bool[np.ndarray, "h w"]) -> dict[str, object]:
    """A mask as packed run lengths, in the form that `read_runs` and pycocotools read."""
    packed: Any = coco.encode(np.asfortranarray(mask, np.uint8))  # whose counts are bytes, whatever its types say
    return {"size": list(mask.shape), "counts": packed["counts"].decode("ascii")}


def _listed(given: object) -> Int[np.ndarray, " runs"]:
    if not isinstance(given, list) or not all(map(_is_whole, given)):
        raise MaskError("its counts are neither a text nor a list of whole numbers")
    try:
        return np.array(given, np.int64).reshape(-1)
    except OverflowError:
        raise MaskError("a count in it has more than 64 bits") from None


def _is_whole(number: object) -> bool:
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    return abs(number) < 1 << 63 and number == int(number)


def _unpacked(text: str) -> Int[np.ndarray, " runs"]:
    try:
        characters = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise MaskError("its counts have characters that are not ASCII") from None
    if not len(characters):
        return characters
    if characters.min() < 0 or characters.max() > 63:
        raise MaskError("its counts have characters that pack no number")
    ends = np.flatnonzero((characters & 32) == 0)  # the bit says that another character follows
    if not len(ends) or ends[-1] != len(characters) - 1:
        raise MaskError("its counts end within a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() >= MOST_CHARACTERS:
        raise MaskError(f"a count in it has more than {MOST_CHARACTERS} characters")
    places = np.arange(len(characters)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((characters & 31) << 5 * places, starts)
    numbers -= np.where(characters[ends] & 16, 1 << 5 * (ends - starts + 1), 0)  # a sign
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
