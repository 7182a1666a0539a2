"""A picture as a record stores it: the model's square of levels, raw or losslessly packed as WebP.

WebP, because it was the smallest and the quickest to make of what Pillow and TensorFlow both read (tests/benchmarks/README.md).
Equal pixels give equal bytes with the same version of libwebp. Another version may give others, so it counts among what
determines records; see `encoder_version`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import io
import struct
from collections.abc import Callable

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
    if bits >> 28:
        raise ValueError("its picture is transparent, or of a later version of the format")
    return (_libwebp() or _by_pillow)(stored, size)


def _by_pillow(stored: bytes, size: int) -> UInt8[np.ndarray, "size size 3"]:
    try:
        return np.asarray(Image.open(io.BytesIO(stored), formats=("WEBP",)))
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise ValueError(f"its picture cannot be decoded: {error}") from None


@functools.cache
def _libwebp() -> Callable[[bytes, int], UInt8[np.ndarray, "size size 3"]] | None:
    """Decodes with the libwebp that Pillow has loaded; None where the system does not find it by its user.

    Pillow's own decoder holds Python's lock, so that threads of a loader would take turns, and the training with them: eight
    fast accelerators at one process would wait. A call by ctypes does not hold it.
    """
    try:
        decode = ctypes.CDLL(importlib.import_module("PIL._webp").__file__).WebPDecodeRGBInto
    except (ImportError, OSError, AttributeError):
        return None
    # uint8_t* WebPDecodeRGBInto(const uint8_t* data, size_t size, uint8_t* output, size_t output_size, int stride)
    decode.restype = ctypes.c_void_p
    decode.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def unpack(stored: bytes, size: int) -> UInt8[np.ndarray, "size size 3"]:
        pixels = np.empty((size, size, 3), np.uint8)
        if not decode(stored, len(stored), pixels.ctypes.data, pixels.nbytes, 3 * size):
            raise ValueError("its picture cannot be decoded")
        return pixels

    return unpack


def encoder_version(compression: Compression) -> str:
    """What packs pictures; empty if nothing does. Records of equal rows and settings have equal bytes if this is equal too."""
    return f"libwebp {features.version('webp')}" if compression == "webp" else ""
