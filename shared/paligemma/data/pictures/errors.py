"""The error for unusable image files, and the formats that are decoded."""

from __future__ import annotations

from paligemma.errors import InputError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded. Pillow knows more, but some of those call other programs (EPS calls Ghostscript)."""


class ImageError(InputError):
    """An image that cannot be used; `code` is the reason code of `rejected.jsonl`."""

    def __init__(self, code: str, what: str, where: object = None) -> None:
        super().__init__(what, where=where, expected=f"a whole image, one of {', '.join(FORMATS)}")
        self.code = code


def unreadable(why: str) -> ImageError:
    """The error for a broken image, or for a variant that is not decoded."""
    return ImageError("image_unreadable", f"The image cannot be decoded: {why}.")
