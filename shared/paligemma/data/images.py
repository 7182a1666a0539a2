"""Turns image files into the pixels that the model sees. The only module that decides how images are decoded and resized."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError

from paligemma.data.pictures.avif import survey_avif
from paligemma.data.pictures.errors import FORMATS as FORMATS
from paligemma.data.pictures.errors import ImageError, unreadable
from paligemma.data.pictures.gif import survey_gif
from paligemma.data.pictures.jpeg import survey_jpeg
from paligemma.data.pictures.levels import GreyRange
from paligemma.data.pictures.naming import recognize
from paligemma.data.pictures.png import survey_png
from paligemma.data.pictures.pnm import survey_pnm
from paligemma.data.pictures.raster import survey_bmp, survey_heif, survey_webp
from paligemma.data.pictures.strips import (
    STRIP_BYTES,
    STRIP_PIXELS,
    Upright,
    orientation_of,
    resize_strips,
    to_array,
    to_square,
)
from paligemma.data.pictures.survey import Survey
from paligemma.data.pictures.tiff import survey_tiff

MAX_PIXELS = 64 * 1024 * 1024
"""Largest image that is decoded: 64 megapixels. Checked from the header, before any pixel is decoded."""

MAX_MEMORY = 432 * 1024 * 1024
"""Most memory in bytes for an image, file and decoder together. The whole process then stays below 512 MiB."""

MAX_BYTES = 256 * 1024 * 1024
"""Largest image file that is read."""

SHRINK_MARGIN = 4
"""A JPEG decoded at a reduced scale has at least this many times the model's pixels, in each direction.

On photos, 99 % of the levels are then within 1 of a full decode, with a mean difference of 0.1. With twice the pixels, it would
be 90 % and 0.5.
"""

Warned = Callable[[str, str], None]
"""Called with the code and details of each oddity of a picture's levels; see `row_warnings.WARNINGS`."""

_SURVEYS: dict[str, Callable[[bytes], Survey]] = {
    "AVIF": survey_avif,
    "BMP": survey_bmp,
    "GIF": survey_gif,
    "HEIF": survey_heif,
    "JPEG": survey_jpeg,
    "PNG": survey_png,
    "PPM": survey_pnm,
    "TIFF": survey_tiff,
    "WEBP": survey_webp,
}


def decode_image(
    data: bytes, where: object = "the image", grey_range: GreyRange | None = None, warned: Warned | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes to RGB: first frame, EXIF orientation applied, transparency composited on white.

    Args:
        data: the file's bytes, which alone decide the format.
        where: names the image in errors.
        grey_range: samples of black and white in grey pictures; None: as stated in the file, else the default for its kind.
        warned: called for each oddity of the levels.

    Raises:
        ImageError: it is not an image (`image_unreadable`), or has too many pixels to decode safely (`image_too_large`).
    """
    return _decode(data, where, None, grey_range, warned, to_array)[0]


def fit_image(
    data: bytes,
    size: int,
    where: object = "the image",
    grey_range: GreyRange | None = None,
    warned: Warned | None = None,
) -> tuple[Image.Image, int, int]:
    """Decodes to RGB and resizes to the size in records. Also returns the file's own width and height.

    Within 1 level of `resize`, in less than half its time, because it rounds to 8 bits between the two directions. A large JPEG
    is decoded at a reduced scale, which costs a fraction; see `SHRINK_MARGIN`.

    Raises:
        ImageError: see `decode_image`, also for the other arguments.
    """
    return _decode(data, where, size, grey_range, warned, lambda upright: to_square(upright, size))


def _decode(data: bytes, where: object, size: int | None, grey_range: GreyRange | None, warned: Warned | None, finish):
    """The result of `finish` on the fully decoded, upright image, and the file's own width and height."""
    try:
        with warnings.catch_warnings():
            # Pillow warns about large images before it refuses them; our own limits decide instead.
            warnings.simplefilter("ignore")
            survey = _SURVEYS[recognize(data)](data)
            _check_size(survey, survey.width, survey.height, len(data), size)
            image = survey.open()
            width, height = image.size
            if {width, height} != {survey.width, survey.height}:
                _check_size(survey, width, height, len(data), size)
            if size is not None and image.format == "JPEG":
                for scale in (8, 4, 2):  # only if blocks scale to whole pixels, or else the picture would shift
                    if width % scale == height % scale == 0 and min(width, height) >= scale * SHRINK_MARGIN * size:
                        image.draft(None, (width // scale, height // scale))
                        break
            image.load()
            upright = Upright(image, orientation_of(image), survey.grey, grey_range, survey.deep)
            done = finish(upright)
            if warned is not None and upright.levels is not None:
                for code, particulars in upright.levels.warnings():
                    warned(code, particulars)
            return done, width, height
    except ImageError as error:
        raise ImageError(error.code, error.what, where) from None
    except UnidentifiedImageError:  # its text contains a buffer's address
        raise ImageError(
            "image_unreadable", unreadable("its header is damaged, or of a variant that is not decoded").what, where
        ) from None
    except MemoryError:
        raise ImageError("image_too_large", "There is not enough memory to decode the image.", where) from None
    except Exception as error:  # Pillow's decoders raise nearly every built-in type on broken files
        raise ImageError("image_unreadable", unreadable(str(error)).what, where) from None


def _check_size(survey: Survey, width: int, height: int, file_bytes: int, size: int | None) -> None:
    """Refuses an image that takes too much memory, with the same message for every cause."""
    wanted = file_bytes + survey.extra_bytes + int(width * height * survey.pixel_bytes)
    wanted += max(width, height, STRIP_PIXELS) * STRIP_BYTES if survey.pixel_bytes != 4 else 0
    wanted += 4 * max(width, height) * (size or 0)  # resized rows, columns not yet resized
    if width < 1 or height < 1:
        raise unreadable(f"it has {width} x {height} pixels")
    if width * height > MAX_PIXELS or wanted > MAX_MEMORY:
        raise ImageError(
            "image_too_large",
            f"The {survey.format} image has {width} x {height} pixels and would take {-(-wanted // 2**20):,} MiB to decode; "
            f"at most {MAX_PIXELS:,} pixels and {MAX_MEMORY // 2**20} MiB.",
        )


def load_image(
    path: str | Path, grey_range: GreyRange | None = None, warned: Warned | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Reads and decodes an image file; see `read_image_file` and `decode_image`."""
    return decode_image(read_image_file(path), path, grey_range, warned)


def read_image_file(path: str | Path) -> bytes:
    """An image file's bytes.

    Raises:
        ImageError: the file is missing (`image_missing`) or too large (`image_too_large`).
    """
    try:
        with open(path, "rb") as file:
            # Reads no more than the file's size: Python allocates the requested size, a quarter of a gigabyte for each image.
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, MAX_BYTES) + 1)
            if len(data) > size:  # a pipe, which has no size
                data += file.read(MAX_BYTES)
    except OSError as error:
        raise ImageError("image_missing", f"The image file cannot be read: {error.strerror}.", path) from None
    if len(data) > MAX_BYTES:
        raise ImageError("image_too_large", f"The image file has more than {MAX_BYTES} bytes.", path)
    return data


def resize(
    image: UInt8[np.ndarray, "height width 3"] | UInt8[np.ndarray, "height width"], size: int
) -> Float[np.ndarray, "size size 3"]:
    """Bilinear, antialiased resize in float32, to 0..255. The aspect ratio is not kept, as in PaliGemma's own input.

    Equal to `tf.image.resize(method="bilinear", antialias=True)` within 2e-6 of the range.
    """
    if image.ndim == 2:
        image = np.stack([image] * 3, axis=-1)
    if image.shape[:2] == (size, size):
        return image.astype(np.float32)
    resized = np.empty((size, size, 3), np.float32)
    height, width = image.shape[:2]
    rows = max(1, STRIP_PIXELS // width)
    for channel in range(3):  # one plane at a time, in strips: a float32 plane is large
        plane = image[..., channel]
        strips = (
            (top, Image.fromarray(np.ascontiguousarray(plane[top : top + rows])).convert("F")) for top in range(0, height, rows)
        )
        resized[..., channel] = np.asarray(resize_strips(strips, "F", height, size))
    return resized


def normalize(image: np.ndarray) -> Float[np.ndarray, "*any size size 3"]:
    """Maps 0..255 to the model's -1..1."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def preprocess(image: np.ndarray, size: int) -> Float[np.ndarray, "size size 3"]:
    """Turns a decoded image of any size into the model's input."""
    return normalize(resize(image, size))


def to_rgb(image: Image.Image, grey_range: GreyRange | None = None) -> Image.Image:
    """Converts any mode to RGB without turning: transparency composited on white, samples of more than 8 bits scaled."""
    upright = Upright(image, 1, None, grey_range)
    return upright.whole() if upright.is_plain() else Image.fromarray(to_array(upright))
