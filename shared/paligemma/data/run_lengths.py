"""Masks as COCO's run lengths: `{"size": [height, width], "counts": ...}`, read from strangers, and written.

Counts are lengths of runs of pixels outside and inside the object, in turn, column by column. They are a list of numbers, or a
text that packs them (cocodataset/cocoapi, `common/maskApi.c`, lines 201-230: six bits a character, from the third count on
the difference to the one before the last).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as coco

from paligemma.data.images import MAX_PIXELS

MOST_CHARACTERS = 6
"""Most characters of one packed count: 30 bits, more than any mask has pixels."""


class MaskError(ValueError):
    """Run lengths that are no mask, or one that is too large."""


def read_runs(value: object) -> Bool[np.ndarray, "h w"]:
    """The mask of run lengths from a JSON value. Memory is bounded by `MAX_PIXELS` and the value's own size.

    Raises:
        MaskError: it is no mask, or one of more than `MAX_PIXELS` pixels.
    """
    height, width = size_of_runs(value)
    counts = check_runs(value)
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


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
