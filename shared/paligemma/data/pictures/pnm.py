"""PBM, PGM and PPM images, binary or as text, and grey PFM: the netpbm formats (netpbm.sourceforge.net/doc/).

Decoded here: Pillow reads their headers byte by byte, and most of their variants number by number in Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from PIL import Image

from paligemma.data.pictures.errors import unreadable
from paligemma.data.pictures.survey import Grey, Survey

_MOST_HEADER = 1 << 16
_TOKEN = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*([^\s#]+)")
_COMMENT = re.compile(rb"#[^\r\n]*")
_CHANNELS = {b"P1": 1, b"P2": 1, b"P3": 3, b"P4": 1, b"P5": 1, b"P6": 3, b"Pf": 1}
_BLOCK = 1 << 20
_TEXT_BYTES = 48 * 1024 * 1024
"""Bytes of a block's numbers as Python objects."""

_MOST_COMMENTS = 100_000


def survey_pnm(data: bytes) -> Survey:
    """Size and greatest sample, from the header."""
    kind, head = data[:2], data[:_MOST_HEADER]
    tokens, place = [], 2
    for _ in range(2 if kind in (b"P1", b"P4") else 3):
        found = _TOKEN.match(head, place)
        if found is None or found.end() == len(head):
            raise unreadable(f"its header is cut short, or has more than {_MOST_HEADER:,} bytes")
        tokens.append(found[1])
        place = found.end()
    try:
        width, height = int(tokens[0]), int(tokens[1])
        most = float(tokens[2]) if kind == b"Pf" else int(tokens[2]) if len(tokens) > 2 else 1
    except ValueError:
        raise unreadable(f"its header has {b' '.join(tokens)[:60]!r} for its size and greatest sample") from None
    if (kind != b"Pf" and not 0 < most < 65536) or not np.isfinite(most) or most == 0 or min(width, height) < 1:
        raise unreadable(f"it states {width} x {height} pixels and a greatest sample of {most}")
    place += 1
    channels = _CHANNELS[kind]
    grey = None
    if kind == b"Pf":
        grey = Grey(0.0, 1.0, (float("-inf"), float("inf")))
    elif channels == 1 and most > 255:
        grey = Grey(0, most, (0, 65535))
    text = kind in (b"P1", b"P2", b"P3")
    if text and data.count(b"#", place) > _MOST_COMMENTS:
        raise unreadable(f"its text has more than {_MOST_COMMENTS:,} comments")
    sample = 4 if kind == b"Pf" else 1 if most < 256 else 2
    core = 4 if channels == 3 else sample
    return Survey(
        "PPM",
        width,
        height,
        pixel_bytes=core + channels * (sample * (text or channels == 1) + 1),
        pieces=[data],
        extra_bytes=_TEXT_BYTES if text else 0,
        grey=grey,
        deep=channels == 3 and most > 255,
        decode=lambda: _decode(data, place, kind, width, height, most),
    )


def _decode(data: bytes, place: int, kind: bytes, width: int, height: int, most: float) -> Image.Image:
    channels = _CHANNELS[kind]
    if kind == b"Pf":
        samples = _binary(data, place, "<f4" if most < 0 else ">f4", width * height)
        return Image.fromarray(samples.reshape(height, width)[::-1].astype("=f4"))
    if kind == b"P4":
        rows = _binary(data, place, "u1", height * -(-width // 8)).reshape(height, -1)
        pixels = np.unpackbits(rows, axis=1)[:, :width]
        pixels -= 1  # 0 is white: 255; 1 is black: 0
        return Image.fromarray(pixels)
    if kind == b"P1":
        return Image.fromarray(_bits(data, place, width * height).reshape(height, width))
    count = width * height * channels
    if kind in (b"P2", b"P3"):
        samples = _numbers(data, place, count, int(most))
    else:
        samples = _binary(data, place, "u1" if most < 256 else ">u2", count)
    shape = (height, width, 3) if channels == 3 else (height, width)
    if channels == 1 and most > 255:
        samples = samples.astype("=u2")
        return Image.fromarray(np.minimum(samples, int(most), out=samples).reshape(shape))
    if most != 255:
        possible = np.arange(256 if most < 256 else 65536)
        samples = np.rint(np.minimum(possible, most) / most * 255).astype(np.uint8)[samples]
    return Image.fromarray(samples.reshape(shape))


def _binary(data: bytes, place: int, kind: str, count: int) -> np.ndarray:
    if len(data) - place < count * np.dtype(kind).itemsize:
        raise unreadable(f"the file ends inside its pixels: {len(data) - place:,} bytes of them are there")
    return np.frombuffer(data, kind, count, place)


def _bits(data: bytes, place: int, count: int) -> np.ndarray:
    """Pixels of a bitmap in text form: 0 for black, 255 for white; digits need no spaces between them."""
    found, have = [], 0
    for block in _blocks(data, place, digits=True):
        digits = np.frombuffer(block, np.uint8)
        digits = digits[digits > 32]
        if ((digits != 48) & (digits != 49)).any():
            raise unreadable("it has other digits than 0 and 1")
        found.append(digits[: count - have])
        have += len(found[-1])
        if have == count:
            return ((np.concatenate(found) == 48) * np.uint8(255)).astype(np.uint8)
    raise unreadable(f"it has {have:,} of {count:,} pixels")


def _numbers(data: bytes, place: int, count: int, most: int) -> np.ndarray:
    samples, have = np.empty(count, np.uint8 if most < 256 else np.uint16), 0
    for block in _blocks(data, place):
        tokens = block.split()
        try:
            numbers = np.array(tokens[: count - have], np.int64) if tokens else np.empty(0, np.int64)
        except (ValueError, OverflowError):
            raise unreadable("its text has something other than numbers") from None
        if len(numbers) and (numbers.min() < 0 or numbers.max() > most):
            raise unreadable(f"a sample is not between 0 and {most}")
        samples[have : have + len(numbers)] = numbers
        have += len(numbers)
        if have == count:
            return samples
    raise unreadable(f"it has {have:,} of {count:,} samples")


def _blocks(data: bytes, place: int, digits: bool = False) -> Iterator[bytes]:
    """The text in parts without comments. Parts end between numbers, or anywhere if single `digits` are values."""
    while place < len(data):
        stop = min(place + _BLOCK, len(data))
        block = data[place:stop]
        if stop < len(data) and not (digits and b"#" not in block):
            ends = b"\n\r" if b"#" in block else b"\n\r \t"
            cut = max(block.rfind(bytes([end])) for end in ends)
            if cut < 0 and b"#" not in block:
                raise unreadable("its text has a number of more than a megabyte")
            if cut < 0:  # a comment follows, up to the end of its line
                stop = min((end for end in (data.find(b"\n", stop), data.find(b"\r", stop)) if end >= 0), default=len(data))
                block = data[place:stop]
            else:
                block = block[: cut + 1]
        place += len(block)
        yield _COMMENT.sub(b"", block)
