"""A picture as a record stores it: the model's square of levels, raw or losslessly packed as WebP.

WebP, because it was the smallest and the quickest to make of what Pillow and TensorFlow both read (tests/benchmarks/README.md).
Equal pixels give equal bytes with the same version of libwebp. Another version may give others, so it counts among what
determines records; see `encoder_version`.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from jaxtyping import UInt8
from PIL import Image, features

from paligemma.choices import Compression

_HEADER = struct.Struct("<4sI4s4sIBI")
"""RIFF, size, WEBP, VP8L, size, signature, and 14 bits each of width - 1 and height - 1; section 3 of the WebP lossless
bitstream's specification."""
_SIGNATURE = 0x2F


def pack_picture(pixels: UInt8[np.ndarray, "size size 3"], compression: Compression) -> bytes:
    """The picture as records with this compression store it; `gzip` packs whole shards, so its pictures are raw."""
    if compression != "webp":
        return pixels.tobytes()
    packed = io.BytesIO()
    # The least effort: a seventh more bytes than method 1 on photographs, in two fifths of its time; and the one method whose
    # bytes did not change from libwebp 1.3.0 to 1.6.0.
    Image.fromarray(pixels).save(packed, "WEBP", lossless=True, method=0, quality=0, exact=True)
    return packed.getvalue()


def unpack_picture(stored: bytes, size: int, compression: Compression) -> UInt8[np.ndarray, "size size 3"]:
    """The picture that `pack_picture` stored.

    Raises:
        ValueError: it is no picture of this size, or damaged. The header is read first, so it takes no more memory than one.
    """
    if compression != "webp":
        return np.frombuffer(stored, np.uint8).reshape(size, size, 3)
    if len(stored) < _HEADER.size:
        raise ValueError(f"its picture has {len(stored)} bytes")
    riff, _, form, chunk, _, signature, bits = _HEADER.unpack_from(stored)
    if (riff, form, chunk, signature) != (b"RIFF", b"WEBP", b"VP8L", _SIGNATURE):
        raise ValueError("its picture is not lossless WebP")
    width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if (width, height) != (size, size):
        raise ValueError(f"its picture has {width} x {height} pixels, not {size} x {size}")
    try:
        pixels = np.asarray(Image.open(io.BytesIO(stored), formats=("WEBP",)))
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise ValueError(f"its picture cannot be decoded: {error}") from None
    if pixels.shape != (size, size, 3):
        raise ValueError(f"its picture has the shape {pixels.shape}")
    return pixels


def encoder_version(compression: Compression) -> str:
    """What packs pictures; empty if nothing does. Records of equal rows and settings have equal bytes if this is equal too."""
    return f"libwebp {features.version('webp')}" if compression == "webp" else ""
