"""Suffixes of image files, for finding them in folders. Contents, not names, decide how a file is decoded."""

from __future__ import annotations

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


def heif_is_read() -> bool:
    """Whether `pillow-heif` is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def is_image_name(name: str) -> bool:
    """Whether a file's suffix is that of an image that can be decoded."""
    ending = name[name.rfind(".") :].lower() if "." in name else ""
    return ending in SUFFIXES or (ending in HEIF_SUFFIXES and heif_is_read())
