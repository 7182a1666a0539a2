"""PBM, PGM and PPM images, binary or as text, and grey PFM: the netpbm formats (netpbm.sourceforge.net/doc/).

Decoded here: Pillow reads their headers byte by byte, and most of their variants number by number in Python.
"""

from __future__ import annotations

import re
import sys

import numpy as np
from PIL import Image

from paligemma.data.pictures.errors import unreadable
from paligemma.data.pictures.survey import Grey, Survey

_MOST_HEADER = 1 << 16
_TOKEN = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*([^\s#]+)")
_COMMENT = re.compile(rb"#[^\r\n]*")
_CHANNELS = {b"P1": 1, b"P2": 1, b"P3": 3, b"P4": 1, b"P5": 1, b"P6": 3, b"Pf": 1}
_BLOCK = 1 << 20


def survey_pnm(data: bytes) -> Survey:
    """Size and greatest sample, which the header states."""
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
    sample = 1 if most < 256 and kind != b"Pf" else 2 if kind != b"Pf" else 4
    core = 4 if channels == 3 or kind == b"Pf" else sample
    pixel = core + channels * (sample + 2) + (0 if not text else 1)
    return Survey("PPM", width, height, pixel, [data], extra_bytes=text * 40 * _BLOCK, grey=grey, deep=channels == 3 and most > 255,
                  decode=lambda: _decode(data, place, kind, width, height, most))  # fmt: skip


def _decode(data: bytes, place: int, kind: bytes, width: int, height: int, most: float) -> Image.Image:
    channels = _CHANNELS[kind]
    if kind == b"Pf":
        samples = _binary(data, place, "<f4" if most < 0 else ">f4", width * height)
        return Image.fromarray(samples.reshape(height, width)[::-1].astype("=f4"))
    if kind == b"P4":
        rows = _binary(data, place, "u1", height * -(-width // 8)).reshape(height, -1)
        return Image.fromarray(np.unpackbits(rows, axis=1)[:, :width] ^ 1).point([0, 255] + [0] * 254)
    if kind == b"P1":
        return Image.fromarray(_bits(data, place, width * height).reshape(height, width))
    count = width * height * channels
    if kind in (b"P2", b"P3"):
        samples = _numbers(data, place, count, int(most))
    else:
        samples = np.minimum(_binary(data, place, "u1" if most < 256 else ">u2", count), int(most))
    shape = (height, width, 3) if channels == 3 else (height, width)
    if channels == 1 and most > 255:
        return Image.fromarray(samples.astype("<u2" if sys.byteorder == "little" else ">u2").reshape(shape))
    if most != 255:
        samples = np.rint(np.arange(int(most) + 1) / most * 255).astype(np.uint8)[samples]
    return Image.fromarray(samples.astype(np.uint8, copy=False).reshape(shape))


def _binary(data: bytes, place: int, kind: str, count: int) -> np.ndarray:
    if len(data) - place < count * np.dtype(kind).itemsize:
        raise unreadable(f"the file ends inside its pixels: {len(data) - place:,} bytes of them are there")
    return np.frombuffer(data, kind, count, place)


def _bits(data: bytes, place: int, count: int) -> np.ndarray:
    """Of a bitmap as text, 0 for black and 255 for white; there need not be spaces between the digits."""
    found, have = [], 0
    for block in _blocks(data, place):
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


def _blocks(data: bytes, place: int):
    """The text in parts that end between numbers, without comments."""
    while place < len(data):
        stop = min(place + _BLOCK, len(data))
        block = data[place:stop]
        if stop < len(data):  # goes on to the end of the line, or, of a line that is long, of the number
            cut = max(block.rfind(b"\n"), block.rfind(b"\r"))
            if cut < 0 and b"#" not in block:
                cut = max(block.rfind(b" "), block.rfind(b"\t"))
            if cut < 0:
                line = min((end for end in (data.find(b"\n", stop), data.find(b"\r", stop)) if end >= 0), default=len(data))
                block, cut = data[place:line], line - place - 1
                if b"#" not in block[:_BLOCK]:
                    raise unreadable("its text has a number of more than a megabyte")
            block = block[: cut + 1]
        place += len(block)
        yield _COMMENT.sub(b"", block)
