"""Warnings about odd but usable rows: their texts and pictures. Warnings reject nothing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from paligemma.data.tokenizer import NUM_LOC, NUM_SEG

WARNINGS = {
    "image_flat": "the whole image has one colour: it is empty, or all white",
    "image_tiny": "the image has a side of 1 to 3 pixels",
    "image_levels_few": "the image uses less than a tenth of its levels: its grey range may be another (--grey-range)",
    "image_levels_clipped": "more than a twentieth of the image is outside the grey range, and black or white (--grey-range)",
    "image_aspect_extreme": "one side of the image is more than 8 times the other: the model sees it squeezed to a square",
    "text_special": "the text spells out a special token, such as <image> or <pad>; here it is plain characters",
    "text_not_nfc": "the text is not in Unicode NFC: its tokens differ from those of the same text in NFC",
    "text_invisible": "the text has zero-width or other invisible characters",
    "text_bidi": "the text has characters that change the writing direction",
    "text_control": "the text has control characters",
    "loc_malformed": "<loc or <seg is followed by an invalid number, e.g. <loc1024> or <loc12>",
    "loc_incomplete": "a box does not have 4 <loc> tokens, or a mask does not have 16 <seg> tokens",
    "loc_empty": "a box has no height or no width: it ends where it begins",
    "loc_order": "a box ends before it begins; the order is y1 x1 y2 x2",
    "text_truncated": "the suffix was cut to fit --max-text-tokens (--over-long truncate): the model learns to stop early",
    "row_duplicate": "an earlier row has the same image bytes, prefix and suffix",
    "image_duplicate": "another file has the same bytes",
    "image_near_duplicate": "another image looks the same",
    "row_leaked": "the row is also in the other split",
    "image_leaked": "the image is also in the other split",
    "image_near_leaked": "an image of the other split looks the same",
}
"""Codes of `warnings.jsonl`, and what each means."""

TINY_SIDE = 4
EXTREME_ASPECT = 8.0
FLAT_RANGE = 2
"""A picture has one colour if its levels differ by at most this: JPEG alone adds as much."""

_LUMA = np.array([299, 587, 114])
"""Weights of red, green and blue in grey, in thousandths (ITU-R BT.601). JPEG changes grey less than colours."""
_SPECIAL = re.compile(r"<(?:image|pad|eos|bos|unk|s|/s|mask)>")
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_JOINERS = frozenset("\u200c\u200d")  # used in writing Persian, Indic scripts and emoji
_TOKEN = re.compile(r"<(loc|seg)(?=[\d>])(\d*)(>?)")
_RUN = re.compile(r"((?:<loc\d{4}>)+)|((?:<seg\d{3}>)+)")


def text_warnings(text: str) -> Iterator[tuple[str, str]]:
    """Codes and details of oddities in a prefix or suffix."""
    if not text.isascii() or not text.isprintable():
        yield from _character_warnings(text)
    if "<" in text:
        if found := _SPECIAL.search(text):
            yield "text_special", found[0]
        yield from _location_warnings(text)


def image_warnings(image: Image.Image, width: int, height: int) -> Iterator[tuple[str, str]]:
    """Codes and details of oddities in a picture, given as stored in records, and with its file's width and height."""
    if min(width, height) < TINY_SIDE:
        yield "image_tiny", f"{width} x {height} pixels"
    if max(width, height) > EXTREME_ASPECT * min(width, height):
        yield "image_aspect_extreme", f"{width} x {height} pixels"
    corner, middle = (_colours(image.getpixel(at)) for at in ((0, 0), (image.width // 2, image.height // 2)))
    if all(abs(one - other) <= FLAT_RANGE for one, other in zip(corner, middle, strict=True)):  # else it is not flat anyway
        ranges = cast(tuple[tuple[int, int], ...], image.getextrema())  # of each channel, as there are three
        if all(high - low <= FLAT_RANGE for low, high in ranges):
            yield "image_flat", "red, green and blue " + ", ".join(str(high) for _, high in ranges)


def _colours(pixel: float | tuple[int, ...] | None) -> tuple[int, ...]:
    """Red, green and blue: a pixel of a picture that has them."""
    return cast(tuple[int, ...], pixel)


def difference_hash(image: UInt8[np.ndarray, "height width 3"]) -> int:
    """A 128-bit hash that is nearly equal for similar pictures. A bit says whether a grid cell is darker than its neighbour.

    The upper 64 bits compare with the neighbour to the right, the lower 64 with the one below. The hash survives changes of
    size, format and quality, but not cropping or mirroring. It is 0 for a picture without structure, or with fewer than 9
    pixels.
    """
    height, width = image.shape[0] // 9, image.shape[1] // 9  # size of a cell; the remainder is cut from the edges
    top, left = (image.shape[0] - 9 * height) // 2, (image.shape[1] - 9 * width) // 2
    strips = image[top : top + 9 * height, left : left + 9 * width].reshape(9, height, 27 * width).sum(axis=1, dtype=np.uint32)
    grey = strips.reshape(9, 9, 3 * width) @ np.tile(_LUMA, width)
    cells = grey // max(1000 * height * width, 1)  # whole levels only: smaller differences are noise
    cell, right, below = cells[:8, :8], cells[:8, 1:], cells[1:, :8]
    return int.from_bytes(np.packbits([cell < right, cell < below]).tobytes(), "big")


def _character_warnings(text: str) -> Iterator[tuple[str, str]]:
    if not unicodedata.is_normalized("NFC", text):
        yield "text_not_nfc", f"its NFC form has {len(unicodedata.normalize('NFC', text))} characters, of {len(text)}"
    odd: dict[str, str] = {}
    for character in text:
        category = unicodedata.category(character)
        if character in _BIDI:
            odd.setdefault("text_bidi", character)
        elif category == "Cf" and character not in _JOINERS:
            odd.setdefault("text_invisible", character)
        elif category == "Cc" and character not in "\n\t":
            odd.setdefault("text_control", character)
    for code, character in odd.items():
        yield code, f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()


def _location_warnings(text: str) -> Iterator[tuple[str, str]]:
    for kind, digits, end in _TOKEN.findall(text):
        wanted, most = (4, NUM_LOC) if kind == "loc" else (3, NUM_SEG)
        if len(digits) != wanted or not end or int(digits) >= most:
            yield "loc_malformed", f"<{kind}{digits}{end}"
            return
    backwards = empty = False
    for locations, segments in _RUN.findall(text):
        values = [int(value) for value in re.findall(r"\d+", locations)]
        if len(values) % 4 or segments.count("<") % 16:
            yield "loc_incomplete", f"{len(values)} <loc> in a row" if values else f"{segments.count('<')} <seg> in a row"
            return
        boxes = list(zip(*(iter(values),) * 4, strict=True))
        backwards |= any(y1 > y2 or x1 > x2 for y1, x1, y2, x2 in boxes)
        empty |= any(y1 == y2 or x1 == x2 for y1, x1, y2, x2 in boxes)
    if backwards:
        yield "loc_order", "y1 is more than y2, or x1 more than x2"
    if empty:
        yield "loc_empty", "y1 equals y2, or x1 equals x2"
