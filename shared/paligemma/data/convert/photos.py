"""The size and orientation of image files, from their headers, and the pixels in which their boxes are given.

prepare_data turns each image by its EXIF orientation, as browsers and most annotation tools do. A program that ignores the
orientation sees other pixels, and writes boxes in those pixels.
"""

from __future__ import annotations

import functools
import io
import os
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from PIL import ExifTags, Image

from paligemma.choices import BoxPixels
from paligemma.data.convert.boxes import TOLERANCE
from paligemma.data.convert.outcomes import EntryError, Tally
from paligemma.data.image_source import read_member, split_archive
from paligemma.data.image_suffixes import heif_is_read
from paligemma.data.images import FORMATS, MAX_BYTES, MAX_PIXELS
from paligemma.data.rows import RowError, image_path

Kind = Literal["displayed", "stored"]
Size = tuple[float, float]
"""Width and height."""


@dataclass(frozen=True)
class Photo:
    """An image file: displayed width and height, and the EXIF orientation (1 to 8) that turns stored to displayed pixels."""

    width: int
    height: int
    orientation: int = 1

    @property
    def displayed(self) -> Size:
        """Size as displayed."""
        return self.width, self.height

    @property
    def stored(self) -> Size:
        """Size as stored in the file."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


@dataclass(frozen=True)
class Frame:
    """The pixels that an image's boxes refer to: width, height, and the EXIF orientation that turns them."""

    width: float
    height: float
    orientation: int = 1


def read_photo(folder: Path, name: str) -> Photo | None:
    """An image's size and orientation; None if it is missing, or unreadable for prepare_data. Decodes no pixels."""
    try:
        archive, member = split_archive(name)
        if archive and (folder / archive).is_file():
            return read_header(io.BytesIO(read_member(image_path(folder, archive), member)))
        with open(image_path(folder, name), "rb") as file:
            return read_header(file) if os.fstat(file.fileno()).st_size <= MAX_BYTES else None
    except (RowError, OSError, ValueError):
        return None


def read_header(file: IO[bytes]) -> Photo | None:
    """Size and orientation from an image's header; None if it is not an image, or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=_formats())
            width, height = image.size
            if not 0 < width * height <= MAX_PIXELS:
                return None
            if image.format == "PNG" and "exif" not in image.info and not _has_late_chunks(file):
                exif = Image.Image.getexif(image)  # Pillow's own check for PNG decodes the picture to see what follows
            else:
                exif = image.getexif()
            orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises nearly every built-in type on broken files
        return None
    orientation = orientation if orientation in range(2, 9) else 1
    if orientation >= 5 and image.format != "TIFF":  # for TIFF, Pillow gives the displayed size
        width, height = height, width
    return Photo(width, height, int(orientation))


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats to open. HEIC needs `pillow-heif`, which turns photos itself."""
    if not heif_is_read():
        return FORMATS
    import pillow_heif  # pyright: ignore[reportMissingImports]  # an extra

    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


def _has_late_chunks(file: IO[bytes]) -> bool:
    """Whether a PNG file has chunks after the pixels besides its end: EXIF may be there."""
    file.seek(8)
    seen = False
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            seen = True
        elif seen:
            return True
        file.seek(length + 4, os.SEEK_CUR)
    return False


@dataclass(frozen=True)
class Pictured:
    """An image with boxes: its name, its size in the annotations if given, and its file if it opens.

    `reach` is the right and bottom extent of its boxes, in pixels.
    """

    name: str
    size: Size | None
    photo: Photo | None
    reach: Size


def find_frames(images: Mapping[str, Pictured], box_pixels: BoxPixels, tally: Tally) -> dict[str, Frame | EntryError]:
    """The pixels of each image's boxes, by image id, or why they are unknown.

    The image size in the annotation file tells whether boxes are in displayed or stored pixels. Without it, boxes that fit into
    only one of the two tell. Neither helps if the image is square, upside down or mirrored. Then the choice follows the file's
    other images with an orientation; if these tell nothing, or disagree, it is displayed pixels.

    Args:
        images: the images by id.
        box_pixels: `displayed` or `stored` decide; `auto` finds out.
        tally: counts what was done.
    """
    told: set[Kind] = set()
    for image in images.values():
        if image.photo is not None and image.photo.orientation > 1:
            agreeing = _agreeing(image, image.photo)
            told.update(agreeing if len(agreeing) == 1 else ())
    usual: Kind = "stored" if told == {"stored"} else "displayed"
    frames: dict[str, Frame | EntryError] = {}
    for id, image in images.items():
        try:
            frames[id] = _frame(image, box_pixels, usual, tally)
        except EntryError as problem:
            frames[id] = problem
    return frames


def _frame(image: Pictured, asked: BoxPixels, usual: Kind, tally: Tally) -> Frame:
    name, size, photo = repr(image.name), image.size, image.photo
    if photo is None:
        if size is None:
            raise EntryError("size_unknown", f"{name} cannot be opened, and the annotations have no width and height")
        tally.note("size_unchecked", name)
        return Frame(*size)
    agreeing = _agreeing(image, photo)
    if size is None:
        tally.note("size_from_file", name)
    elif not agreeing:
        raise EntryError("size_disagrees", f"{name} is {_by(photo.displayed)}, its annotations are of {_by(size)}")
    which = asked if asked != "auto" else agreeing[0] if len(agreeing) == 1 else usual
    if photo.orientation > 1:
        tally.note("boxes_turned" if which == "stored" else "boxes_upright", name)
        if asked == "auto" and len(agreeing) > 1:
            tally.note("orientation_unclear", f"{name}, taken to be in {which} pixels; --box-pixels says which")
    actual = photo.stored if which == "stored" else photo.displayed
    if size is not None and which in agreeing and size != actual:
        tally.note("size_scaled", f"{name} is {_by(actual)}, its annotations are of {_by(size)}")
        actual = size
    return Frame(*actual, photo.orientation if which == "stored" else 1)


def _agreeing(image: Pictured, photo: Photo) -> list[Kind]:
    """Which of a file's two sizes equal the annotations' size; if none does, which have its proportions within a pixel.

    Without a size in the annotations: which sizes the boxes fit into; both if they fit into neither.
    """
    kinds: dict[Kind, Size] = {"displayed": photo.displayed, "stored": photo.stored}
    size = image.size
    if size is not None:
        return [kind for kind, actual in kinds.items() if actual == size] or [
            kind for kind, actual in kinds.items() if proportional(size, actual)
        ]
    (right, down) = image.reach
    fitting: list[Kind] = [kind for kind, (w, h) in kinds.items() if right <= w + TOLERANCE and down <= h + TOLERANCE]
    return fitting or list(kinds)


def proportional(one: Size, other: Size) -> bool:
    """Whether two sizes have the same proportions, within a pixel."""
    (width, height), (wide, high) = sorted((one, other))
    return abs(width - wide * height / high) <= 1 and abs(height - high * width / wide) <= 1


def _by(size: Size) -> str:
    return f"{size[0]:g} x {size[1]:g}"
