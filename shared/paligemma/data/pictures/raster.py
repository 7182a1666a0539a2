"""Surveys formats with short headers: BMP, WebP, HEIF.

Sources: wingdi.h's BITMAPINFOHEADER (learn.microsoft.com); RFC 9649 (WebP); `WebPImagePlugin.py` of
python-pillow/Pillow, whose memory is measured in `tests/hostile`.
"""

from __future__ import annotations

import io
import struct

from PIL import Image

from paligemma.data.pictures.errors import ImageError, unreadable
from paligemma.data.pictures.survey import Survey

_MOST_RUNS = 4 * 1024 * 1024
"""Most bytes of a run-length encoded BMP: Pillow decodes it in Python, some microseconds a run."""

_WEBP_PIXEL = 16
"""Bytes per pixel: two canvases, the decoder's own pixels or its output, and the picture, 4 bytes each."""

_HEIF_PIXEL = 12


def survey_bmp(data: bytes) -> Survey:
    """Size, and whether it is run-length encoded."""
    if len(data) < 30:
        raise unreadable("the file ends inside its header")
    offset, header = struct.unpack("<II", data[10:18])
    if header == 12:
        width, height, _, bits = struct.unpack("<HHHH", data[18:26])
        compression = 0
    else:
        if len(data) < 34:
            raise unreadable("the file ends inside its header")
        width, height, _, bits, compression = struct.unpack("<IiHHI", data[18:34])
    if compression in (1, 2) and len(data) - offset > _MOST_RUNS:
        raise ImageError(
            "image_too_large",
            f"The run-length encoded BMP has {len(data):,} bytes; {_MOST_RUNS:,} at most are decoded. Save it as PNG.",
        )
    core = 1 + 2 * (compression in (1, 2)) if bits <= 8 else 4
    return Survey("BMP", width, abs(height), core, [data])


def survey_webp(data: bytes) -> Survey:
    """Size of the canvas, from the first chunk."""
    kind = data[12:16]
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a" and len(data) >= 30:
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", data[26:30]))
    elif kind == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[place : place + 3], "little") + 1 for place in (24, 27))
    elif kind == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        raise unreadable("its WebP header is damaged")
    return Survey("WEBP", width, height, _WEBP_PIXEL, [data], extra_bytes=3 * len(data))


def survey_heif(data: bytes) -> Survey:
    """Size, which libheif reads from the header."""
    import pillow_heif  # pyright: ignore[reportMissingImports]  # an extra

    pillow_heif.register_heif_opener()
    width, height = Image.open(io.BytesIO(data), formats=("HEIF",)).size
    return Survey("HEIF", width, height, _HEIF_PIXEL, [data], extra_bytes=len(data))
