"""Masks that were painted with Label Studio's brush: a picture of four channels, as runs and single values in a stream of bits.

The form: thi-ng/umbrella, packages/rle-pack; HumanSignal/label-studio-converter at commit 0098e78,
label_studio_converter/brush.py:82-120 reads it, and takes the fourth channel of each pixel (lines 138-140).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from paligemma.data.convert.outcomes import EntryError, shown
from paligemma.data.convert.outlines import row_runs
from paligemma.data.images import MAX_PIXELS
from paligemma.data.run_lengths import Runs

CHANNELS = 4
MOST_STEPS = 1 << 19
"""Most runs and groups of single values. A mask whose run lengths a row can hold has fewer than half of these."""

_HEADER_BITS = 32 + 5 + 4 * 4


def read_brush(rle: object, width: int, height: int) -> Runs:
    """The mask of a brush, transposed: its runs are along the picture's rows. Time and memory are those of the stream.

    Args:
        rle: a list of bytes.
        width, height: size of the picture in pixels.

    Raises:
        EntryError: it is no mask of that size.
    """
    if not 0 < width * height <= MAX_PIXELS:
        raise EntryError("mask_too_large", f"the image is {width} x {height}")
    try:
        stream = _Bits(bytes(rle if isinstance(rle, list) else ()))
    except (ValueError, TypeError):
        stream = _Bits(b"")
    if stream.left < _HEADER_BITS:
        raise EntryError("mask_malformed", f"rle is {shown(rle)}, not a list of bytes")
    values, word = stream.take(32), stream.take(5) + 1
    if values != CHANNELS * width * height:
        raise EntryError("mask_size", f"it has {values} values, the image {width} x {height} pixels of {CHANNELS}")
    edges = _edges(stream, values, word, [stream.take(4) + 1 for _ in range(4)])
    return row_runs(np.diff(edges, prepend=0, append=width * height).tolist(), width, height)


def _edges(stream: _Bits, values: int, word: int, sizes: list[int]) -> list[int]:
    """Where the object begins and ends, in turn, in pixels; the last of four values is the pixel's fourth channel."""
    edges: list[int] = []
    done = 0
    for _ in range(MOST_STEPS):
        if done == values:
            return edges
        run, size = stream.take(1), sizes[stream.take(2)]
        count = stream.take(size) + 1
        if done + count > values:
            raise EntryError("mask_malformed", f"its runs are of more than {values} values")
        if run:
            if stream.take(word):
                _add(edges, done // CHANNELS, (done + count) // CHANNELS)
        else:
            levels = stream.take_many(word, count)
            for place in np.flatnonzero(levels).tolist():
                if (done + place) % CHANNELS == CHANNELS - 1:
                    _add(edges, (done + place) // CHANNELS, (done + place) // CHANNELS + 1)
        done += count
    raise EntryError("mask_too_detailed", f"it has more than {MOST_STEPS} runs")


def _add(edges: list[int], start: int, stop: int) -> None:
    if edges and edges[-1] == start:
        edges[-1] = stop
    elif start < stop:
        edges += [start, stop]


class _Bits:
    """Numbers from a stream of bits, the highest first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return 8 * len(self._data) - self._at

    def take(self, size: int) -> int:
        """The next number of that many bits."""
        end = self._end(size)
        first, last = self._at // 8, (end + 7) // 8
        number = int.from_bytes(self._data[first:last]) >> (8 * last - end) & ((1 << size) - 1)
        self._at = end
        return number

    def take_many(self, size: int, count: int) -> Bool[np.ndarray, " count"]:
        """Whether each of the next numbers is more than 0."""
        end = self._end(size * count)
        first, last = self._at // 8, (end + 7) // 8
        bits = np.unpackbits(np.frombuffer(self._data, np.uint8)[first:last])
        start = self._at - 8 * first
        self._at = end
        return bits[start : start + size * count].reshape(count, size).max(axis=1).astype(bool)

    def _end(self, size: int) -> int:
        if size > self.left:
            raise EntryError("mask_malformed", "its bits end before its values")
        return self._at + size
