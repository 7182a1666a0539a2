"""Suffixes of image files, for finding them in folders. Contents, not names, decide how a file is decoded."""

from __future__ import annotations

import functools
import importlib.util

SUFFIXES = frozenset(
    (
        *(".apng", ".avif", ".avifs", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pfm", ".pgm"),
        *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
"""Suffixes of the formats that are always decoded, in lower case."""

HEIF_SUFFIXES = frozenset((".heic", ".heics", ".heif", ".heifs", ".hif"))
"""Suffixes of photos that are decoded if `pillow-heif` is installed."""


@functools.cache
def heif_is_read() -> bool:
    """Whether `pillow-heif` is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def decoded_suffixes() -> frozenset[str]:
    """Suffixes of all images that can be decoded here, in lower case."""
    return SUFFIXES | HEIF_SUFFIXES if heif_is_read() else SUFFIXES


def is_image_name(name: str) -> bool:
    """Whether a file's suffix, in capitals or not, is that of an image that can be decoded."""
    return "." in name and name[name.rfind(".") :].lower() in decoded_suffixes()
