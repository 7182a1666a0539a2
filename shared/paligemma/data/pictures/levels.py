"""Maps samples of more than 8 bits to levels 0 to 255, by a stated range and never by a single picture's contents.

So equal samples give equal levels in all pictures of a data set, whatever their greatest samples are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from paligemma.data.pictures.survey import Grey
from paligemma.errors import InputError

FEW_LEVELS = 0.1
"""Warn if a picture uses less than this share of the levels."""

MOST_CLIPPED = 0.05
"""Warn if more than this share of a picture's samples is outside the range."""

_TRIMMED = 0.001
"""Share of the samples at either end that is ignored as dead and hot pixels."""


@dataclass(frozen=True)
class GreyRange:
    """The samples for black and white in a data set's grey pictures."""

    low: float
    high: float

    def __str__(self) -> str:
        return ",".join(repr(end).removesuffix(".0") for end in (float(self.low), float(self.high)))


def parse_grey_range(text: str) -> GreyRange | None:
    """Parses `LOW,HIGH` as a range; None for an empty text.

    Raises:
        InputError: the text has another form.
    """
    if not text:
        return None
    parts = text.split(",")
    try:
        low, high = map(float, parts)
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(
            f"The grey range is {text!r}.",
            expected="LOW,HIGH: the samples that are black and white, two numbers, the first less than the second",
            fix="of 12-bit pictures, pass --grey-range 0,4095",
        )
    return GreyRange(low, high)


class Levels:
    """Maps a picture's samples to levels, and counts the levels used and the samples clipped."""

    def __init__(self, low: float, high: float, white_is_zero: bool = False) -> None:
        """Takes the samples of black and white; or of white and black if `white_is_zero`."""
        self.low, self.high, self._inverted = float(low), float(high), white_is_zero
        self._used = np.zeros(256, np.int64)
        self._clipped = 0

    def of(self, samples: np.ndarray) -> UInt8[np.ndarray, ...]:
        """The levels of a part of the picture; NaN becomes black."""
        scaled = samples.astype(np.float32) if samples.dtype.itemsize < 4 else samples.astype(np.float64)
        scaled -= self.low
        scaled /= (self.high - self.low) / 255.0
        with np.errstate(invalid="ignore"):
            self._clipped += int(scaled.size - np.count_nonzero((scaled >= 0) & (scaled <= 255)))
        np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        levels = np.rint(scaled, out=scaled).clip(0, 255).astype(np.uint8)
        if self._inverted:
            levels = 255 - levels
        self.count(levels)
        return levels

    def count(self, levels: UInt8[np.ndarray, ...]) -> None:
        """Counts levels that other code made."""
        self._used += np.bincount(levels.reshape(-1), minlength=256)

    def warnings(self) -> Iterator[tuple[str, str]]:
        """Codes and details of the levels' oddities."""
        total = int(self._used.sum())
        spare = int(total * _TRIMMED)
        seen = np.cumsum(self._used)
        darkest, lightest = int(np.searchsorted(seen, spare, "right")), int(np.searchsorted(seen, total - spare, "left"))
        of = f"samples from {self.low:g} to {self.high:g} make the levels 0 to 255"
        if total and lightest - darkest < FEW_LEVELS * 255:
            yield "image_levels_few", f"levels {darkest} to {lightest}; {of}"
        if self._clipped > MOST_CLIPPED * total:
            yield "image_levels_clipped", f"{self._clipped / total:.0%} of the samples are outside; {of}"


def stated_range(grey: Grey, most: int, low_bits: int) -> tuple[float, float]:
    """The range of a PNG image whose sBIT chunk states fewer than 16 bits.

    By the specification (11.3.2.7), samples are scaled to all 16 bits, and sBIT changes nothing; pypng and ffmpeg do so. Many
    programs write unscaled samples from 0 to 2^bits - 1 instead. The low bits tell the two apart: scaled samples carry no
    information there.

    Args:
        grey: the file's statements about its samples.
        most: the greatest sample.
        low_bits: the greatest value of the insignificant low bits in any sample.
    """
    if grey.significant_bits is None:
        return grey.low, grey.high
    top, spare = (1 << grey.significant_bits) - 1, 16 - grey.significant_bits
    unscaled = most <= top and low_bits > (1 if spare > 1 else 0)
    return (0, top) if unscaled else (grey.low, grey.high)
