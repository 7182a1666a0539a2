"""A survey of a picture before decoding: its size, the memory to decode it, and the bytes that matter.

Pillow reads all of a header, partly byte by byte and partly again and again: comments, colour profiles, thousands of segments.
Each format's survey walks over the parts once, and drops those that do not affect the pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, cast

from PIL import Image

from paligemma.data.pictures.errors import ImageError

MAX_PARTS = 250_000
"""Most chunks, blocks or segments of a file: each costs some microseconds."""

SPARE_BYTES = 1024 * 1024
"""Bytes besides the pixels that are not worth dropping."""


@dataclass(frozen=True)
class Grey:
    """The meaning of samples in a picture of measurements: one channel of more than 8 bits.

    Attributes:
        low, high: samples of black and white, as stated in the file or by default for its kind.
        limits: the least and greatest sample that the file's kind can hold.
        unsigned32: the samples are unsigned 32-bit, but Pillow reads them as signed.
        white_is_zero: whether low samples are light.
        significant_bits: significant bits of a 16-bit PNG, from its sBIT chunk; see `levels.stated_range`.
    """

    low: float
    high: float
    limits: tuple[float, float]
    unsigned32: bool = False
    white_is_zero: bool = False
    significant_bits: int | None = None


@dataclass(frozen=True)
class Survey:
    """A picture before it is decoded.

    Attributes:
        format: Pillow's name of the format.
        width, height: stored size in pixels.
        pixel_bytes: memory per pixel while decoding, including the decoded picture, in bytes.
        extra_bytes: additional memory while decoding, in bytes.
        pieces: the file's bytes that matter.
        grey: the meaning of the samples, for a picture of measurements.
        deep: whether samples have more than 8 bits, of which Pillow keeps the upper 8.
        decode: our decoder, for pictures that Pillow cannot decode, or not in bounded time.
    """

    format: str
    width: int
    height: int
    pixel_bytes: float
    pieces: Sequence[bytes | memoryview] = field(repr=False)
    extra_bytes: int = 0
    grey: Grey | None = None
    deep: bool = False
    decode: Callable[[], Image.Image] | None = field(default=None, compare=False, repr=False)

    def open(self) -> Image.Image:
        """Opens the image. No pixel is decoded yet, unless `decode` is set."""
        if self.decode is not None:
            return self.decode()
        whole = len(self.pieces) == 1 and isinstance(self.pieces[0], bytes)
        file = io.BytesIO(self.pieces[0]) if whole else cast(IO[bytes], Spliced(self.pieces))  # Pillow only reads and seeks
        return Image.open(file, formats=(self.format,))


class Spliced(io.RawIOBase):
    """Pieces of bytes as one file, without a copy."""

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Takes the pieces in order."""
        self._pieces = [memoryview(piece) for piece in pieces if len(piece)]
        self._starts = [0]
        for piece in self._pieces:
            self._starts.append(self._starts[-1] + len(piece))
        self._place = self._piece = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Position in bytes from the beginning."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a position. Fast enough, since pieces are few or read in order."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._starts[-1]}[whence]
        if base + offset < 0:
            raise ValueError("negative seek")
        if base + offset < self._place:
            self._piece = 0
        self._place = base + offset
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes."""
        left = self._starts[-1] - self._place if size is None or size < 0 else size
        found = []
        while left > 0 and self._piece < len(self._pieces):
            start = self._place - self._starts[self._piece]
            part = self._pieces[self._piece][start : start + left]
            if not len(part):
                self._piece += 1
                continue
            found.append(part)
            self._place += len(part)
            left -= len(part)
        return found[0].tobytes() if len(found) == 1 else b"".join(found)


def too_many_parts(what: str) -> ImageError:
    """The error for a file with more parts than a picture needs."""
    return ImageError("image_too_large", f"The file has more than {MAX_PARTS:,} {what}, which would take too long to read.")
