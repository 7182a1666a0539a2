"""How names of image files end: what is looked for in a folder, whatever is done with it. Contents decide, not names."""

from __future__ import annotations

import importlib.util

SUFFIXES = frozenset(
    (
        *(".apng", ".avif", ".avifs", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pfm", ".pgm"),
        *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
"""Of the formats that are always decoded, in lower case."""

HEIF_SUFFIXES = frozenset((".heic", ".heics", ".heif", ".heifs", ".hif"))
"""Of photos that are decoded where `pillow-heif` is installed."""


def heif_is_read() -> bool:
    """Whether `pillow-heif` is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def is_image_name(name: str) -> bool:
    """Whether a file is an image that can be decoded, by the end of its name."""
    ending = name[name.rfind(".") :].lower() if "." in name else ""
    return ending in SUFFIXES or (ending in HEIF_SUFFIXES and heif_is_read())
