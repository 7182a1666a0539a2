"""Surveys a PNG image: https://www.w3.org/TR/png-3/, sections 5 (chunks) and 11 (their contents)."""

from __future__ import annotations

import struct
import zlib

from paligemma.data.pictures.errors import unreadable
from paligemma.data.pictures.survey import MAX_PARTS, Grey, Survey, too_many_parts

_HEAD = struct.Struct(">I4s")
_MOST_TEXT = 1 << 18
_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_ORIENTATION_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def survey_png(data: bytes) -> Survey:
    """Keeps what decides the pixels: critical chunks, tRNS, and chunks with an orientation. For an APNG, the still image."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise unreadable("the file ends inside its header, or begins with another chunk")
    width, height, bits, colour = struct.unpack(">IIBB", data[16:26])
    spans: list[list[int]] = [[0, 8]]
    place, count, significant, first = 8, 0, None, True
    while place + 8 <= len(data):
        length, kind = _HEAD.unpack_from(data, place)
        end = place + 12 + length
        count += 1
        if count > MAX_PARTS:
            raise too_many_parts("chunks")
        body = memoryview(data)[place + 8 : min(end - 4, len(data))]
        if kind == b"sBIT" and 1 <= length <= 4:
            significant = max(body)
        if kind in _KEPT or (kind == b"IDAT") or _states_orientation(kind, body, first):
            first &= kind != b"eXIf"
            if spans[-1][1] == place:
                spans[-1][1] = end
            else:
                spans.append([place, end])
        elif 65 <= kind[0] <= 90 and not kind.isalpha():
            raise unreadable(f"a chunk is named {kind!r}")
        place = end
        if kind == b"IEND":
            break
    whole = len(spans) == 1 and spans[0][1] >= len(data)
    pieces = [data] if whole else [memoryview(data)[start:stop] for start, stop in spans]
    grey = None
    if bits == 16 and colour == 0:
        known = significant if significant is not None and significant < 16 else None
        grey = Grey(0, 65535, (0, 65535), significant_bits=known)
    core = 1 if colour in (0, 3) and bits <= 8 else 2 if grey else 4
    return Survey("PNG", width, height, core, pieces, extra_bytes=2 * width * _CHANNELS.get(colour, 4) * max(bits // 8, 1),
                  grey=grey, deep=bits == 16 and colour != 0)  # fmt: skip


def _states_orientation(kind: bytes, body: memoryview, first: bool) -> bool:
    """Whether a chunk may hold an orientation, and is safe to read."""
    if kind == b"eXIf":
        return first and len(body) <= 1 << 16
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or len(body) > _MOST_TEXT:
        return False
    text = bytes(body)
    if not text.startswith(_ORIENTATION_TEXTS):
        return False
    _name, _, rest = text.partition(b"\0")
    if kind == b"zTXt":
        return _inflates(rest[1:])
    if kind == b"iTXt" and rest[:1] == b"\1":
        return _inflates(rest[2:].split(b"\0", 2)[-1])
    return True


def _inflates(packed: bytes) -> bool:
    """Whether compressed text unpacks to a size worth reading."""
    unpacker = zlib.decompressobj()
    try:
        return len(unpacker.decompress(packed, _MOST_TEXT)) < _MOST_TEXT
    except zlib.error:
        return False
