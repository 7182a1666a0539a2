"""Image files to the pixels that the model sees. The one place that decides how an image is decoded and resized."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from paligemma.errors import InputError

MAX_PIXELS = 64 * 1024 * 1024
"""Largest image that is decoded: 64 megapixels, 192 MiB as RGB. Checked from the header, before any pixel is."""

MAX_BYTES = 256 * 1024 * 1024
"""Largest image file that is read."""

SHRINK_MARGIN = 4
"""A JPEG decoded at a reduced scale keeps this many times the pixels that the model sees, each way.

On photos 99 % of the levels are then within 1 of those of a full decode, and 0.1 from them on average; with twice the pixels
it would be 90 % and 0.5.
"""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded. Pillow knows more, among them some that call other programs (EPS calls Ghostscript)."""

SUFFIXES = frozenset(
    (
        *(".apng", ".avif", ".avifs", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pfm", ".pgm"),
        *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
"""How names of files of these formats end, in lower case: what is looked for in a folder."""


class ImageError(InputError):
    """An image that cannot be used; `code` is the reason code of `rejected.jsonl`."""

    def __init__(self, code: str, what: str, where: object = None) -> None:
        super().__init__(what, where=where, expected=f"a whole image, one of {', '.join(FORMATS)}")
        self.code = code


def decode_image(data: bytes, where: object = "the image") -> UInt8[np.ndarray, "height width 3"]:
    """Decodes to RGB: first frame, EXIF orientation applied, transparency composited on white.

    Raises:
        ImageError: not an image (`image_unreadable`) or too many pixels to decode safely (`image_too_large`).
    """
    return np.asarray(_decode(data, where, None)[0])


def fit_image(data: bytes, size: int, where: object = "the image") -> tuple[Image.Image, int, int]:
    """Decodes to RGB and resizes as records store it; with it, the width and height that the file has.

    Within 1 level of `resize`, and in less than half its time: rounds between the two directions, in 8 bits. A large JPEG is
    decoded at a reduced scale, which costs a fraction; see `SHRINK_MARGIN`.

    Raises:
        ImageError: as of `decode_image`.
    """
    image, width, height = _decode(data, where, size)
    return image.resize((size, size), Image.Resampling.BILINEAR), width, height


def _decode(data: bytes, where: object, size: int | None) -> tuple[Image.Image, int, int]:
    """An RGB image, of which every pixel is decoded, and the width and height that the file has."""
    try:
        with warnings.catch_warnings():
            # Pillow warns about large images before it refuses them; our own limit below is the one that decides.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError("image_too_large", f"The image has {width} x {height} pixels; {MAX_PIXELS} at most.", where)
            if size is not None and image.format == "JPEG":
                for scale in (8, 4, 2):  # only where blocks come out whole: elsewhere the picture would be shifted
                    if width % scale == height % scale == 0 and min(width, height) >= scale * SHRINK_MARGIN * size:
                        image.draft(None, (width // scale, height // scale))
                        break
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image), width, height
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", f"The image is too large to decode: {error}.", where) from None
    except UnidentifiedImageError:
        raise ImageError("image_unreadable", "The file is not an image of a known format.", where) from None
    except Exception as error:  # Pillow's decoders raise nearly every built-in type on broken files
        raise ImageError("image_unreadable", f"The image cannot be decoded: {error}.", where) from None


def load_image(path: str | Path) -> UInt8[np.ndarray, "height width 3"]:
    """Reads and decodes an image file; see `read_image_file` and `decode_image`."""
    return decode_image(read_image_file(path), path)


def read_image_file(path: str | Path) -> bytes:
    """An image file's bytes.

    Raises:
        ImageError: it is not there (`image_missing`) or has too many bytes (`image_too_large`).
    """
    try:
        with open(path, "rb") as file:
            # Reads no more than there is, as Python allocates what is asked for: a quarter of a gigabyte for each image.
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
    for channel, plane in enumerate(Image.fromarray(image).split()):  # one at a time: in float32 a plane is large
        resized[..., channel] = np.asarray(plane.convert("F").resize((size, size), Image.Resampling.BILINEAR))
    return resized


def to_uint8(image: Float[np.ndarray, "size size 3"]) -> UInt8[np.ndarray, "size size 3"]:
    """Rounds to whole levels."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def normalize(image: np.ndarray) -> Float[np.ndarray, "*any size size 3"]:
    """0..255 to the model's -1..1."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def preprocess(image: np.ndarray, size: int) -> Float[np.ndarray, "size size 3"]:
    """A decoded image of any size to the model's input."""
    return normalize(resize(image, size))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency composited on white, 16-bit grey scaled to 8."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        # Pillow clips 16-bit grey to 8 bits; scale it instead.
        grey = np.asarray(image).astype(np.float32)
        return Image.fromarray(to_uint8(grey / 257.0 if grey.max() > 255 else grey)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
