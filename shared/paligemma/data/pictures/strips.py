"""Yields a decoded image as upright strips of RGB rows, so that turning and converting need no second full copy.

Transparency is composited on white; samples of more than 8 bits become levels; see `levels`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from paligemma.data.pictures.levels import GreyRange, Levels, stated_range
from paligemma.data.pictures.survey import Grey

STRIP_PIXELS = 1 << 20
STRIP_BYTES = 24
"""Bytes per pixel of a strip during conversion."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that makes each EXIF orientation upright (CIPA DC-008, tag 0x0112)."""

_SAMPLES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_EIGHT_BITS = Grey(0, 255, (0, 255))


def orientation_of(image: Image.Image) -> int:
    """An image's orientation from EXIF or XMP; 1 if upright. Pillow turns TIFFs itself."""
    return image.getexif().get(_ORIENTATION, 1)


class Upright:
    """A decoded image, turned by its EXIF orientation, with rows in RGB.

    Attributes:
        width, height: size of the upright image.
        levels: maps its samples to levels; None if it has levels already.
    """

    def __init__(
        self, image: Image.Image, orientation: int, grey: Grey | None, grey_range: GreyRange | None, deep: bool = False
    ) -> None:
        """Takes a decoded image.

        Args:
            image: the image, in any mode.
            orientation: its orientation; see `orientation_of`.
            grey: its file's statements about samples of more than 8 bits; None otherwise.
            grey_range: the data set's range of grey samples.
            deep: whether to count its levels although they need no conversion.
        """
        self._image = image
        self._turn = _TURNS.get(orientation)
        self._orientation = orientation
        self._turned = orientation in (5, 6, 7, 8)
        self.width, self.height = image.size[::-1] if self._turned else image.size
        self._grey = grey
        self.levels: Levels | None = None
        if image.mode in _SAMPLES:
            self._grey = grey or _by_mode(image.mode)
            self.levels = _levels(image, self._grey, grey_range)
        elif image.mode == "L" and grey_range is not None and grey_range.high <= 255:
            self._grey = grey or _EIGHT_BITS
            self.levels = Levels(grey_range.low, grey_range.high, self._grey.white_is_zero)
        elif deep:
            self.levels = Levels(0, 65535)

    def is_plain(self) -> bool:
        """Whether the image itself is upright RGB."""
        return self._turn is None and self._image.mode == "RGB" and not self._image.has_transparency_data and not self.levels

    def whole(self) -> Image.Image:
        """The image itself, if it is plain."""
        return self._image

    def strips(self) -> Iterator[tuple[int, Image.Image]]:
        """The first row of each strip, and the strip in RGB."""
        rows = max(1, STRIP_PIXELS // self.width)
        for top in range(0, self.height, rows):
            yield top, self._rgb(self._rows(top, min(top + rows, self.height)))

    def _rows(self, top: int, bottom: int) -> Image.Image:
        """Upright rows, in the image's own mode."""
        if self._turn is None:
            if (top, bottom) == (0, self.height):
                return self._image
            return self._image.crop((0, top, self.width, bottom))
        width, height = self._image.size
        # The stored lines that make up the rows, counted from the left or right, or from the top or bottom.
        mirrored = self._orientation in (3, 4, 7, 8)
        if self._turned:
            first, last = (width - bottom, width - top) if mirrored else (top, bottom)
            box = (first, 0, last, height)
        else:
            first, last = (height - bottom, height - top) if mirrored else (top, bottom)
            box = (0, first, width, last)
        return self._image.crop(box).transpose(self._turn)

    def _rgb(self, strip: Image.Image) -> Image.Image:
        if self._grey is not None and self.levels is not None and strip.mode in (*_SAMPLES, "L"):
            return _of_grey(strip, self._grey, self.levels)
        if strip.has_transparency_data:
            rgba = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        rgb = strip if strip.mode == "RGB" else strip.convert("RGB")
        if self.levels is not None:
            self.levels.count(np.asarray(rgb))
        return rgb


def _of_grey(strip: Image.Image, grey: Grey, levels: Levels) -> Image.Image:
    if strip.mode == "L":
        samples = np.asarray(strip)
        pixels = levels.of(255 - samples if grey.white_is_zero else samples)
    else:
        samples = _samples(strip, grey)
        pixels = levels.of(samples)
    if isinstance(clear := strip.info.get("transparency"), int):
        pixels[samples == clear] = 255
    return Image.fromarray(pixels).convert("RGB")


def _samples(strip: Image.Image, grey: Grey) -> np.ndarray:
    samples = np.asarray(strip)
    return samples.view(np.uint32) if grey.unsigned32 and samples.dtype == np.int32 else samples


def _levels(image: Image.Image, grey: Grey, grey_range: GreyRange | None) -> Levels:
    if grey_range is not None:
        return Levels(grey_range.low, grey_range.high, grey.white_is_zero)
    low, high = grey.low, grey.high
    if grey.significant_bits is not None:
        spare = (1 << 16 - grey.significant_bits) - 1
        rows = max(1, STRIP_PIXELS // image.width)
        tops = range(0, image.height, rows)
        parts = (np.asarray(image.crop((0, top, image.width, min(top + rows, image.height)))) for top in tops)
        found = [(int(part.max()), int((part & spare).max())) for part in parts]
        low, high = stated_range(grey, max(most for most, _ in found), max(bits for _, bits in found))
    return Levels(low, high, grey.white_is_zero)


def _by_mode(mode: str) -> Grey:
    """Assumptions about samples without a file, or whose file says nothing."""
    if mode == "F":
        return Grey(0.0, 1.0, (float("-inf"), float("inf")))
    return Grey(0, 65535, (0, 65535) if mode != "I" else (-(2**31), 2**31 - 1))


def to_array(upright: Upright) -> np.ndarray:
    """All rows, as `[height, width, 3]`."""
    if upright.is_plain():
        return np.asarray(upright.whole())
    pixels = np.empty((upright.height, upright.width, 3), np.uint8)
    for top, strip in upright.strips():
        pixels[top : top + strip.height] = np.asarray(strip)
    return pixels


def to_square(upright: Upright, size: int) -> Image.Image:
    """Resizes to a square, bit for bit like one resize of the whole: Pillow resizes rows, rounds, then resizes columns."""
    if upright.is_plain():
        return upright.whole().resize((size, size), Image.Resampling.BILINEAR)
    return resize_strips(upright.strips(), "RGB", upright.height, size)


def resize_strips(strips: Iterator[tuple[int, Image.Image]], mode: str, height: int, size: int) -> Image.Image:
    """Resizes strips of rows to a square image; antialiased, bilinear.

    Args:
        strips: pairs of a strip's first row number and the strip.
        mode: the strips' mode.
        height: total number of rows.
        size: side of the square.
    """
    narrow = Image.new(mode, (size, height))
    for top, strip in strips:
        narrow.paste(strip.resize((size, strip.height), Image.Resampling.BILINEAR), (0, top))
    return narrow.resize((size, size), Image.Resampling.BILINEAR)
