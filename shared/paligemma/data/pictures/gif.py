"""Surveys a GIF image (https://www.w3.org/Graphics/GIF/spec-gif89a.txt), or an animation's first frame."""

from __future__ import annotations

import struct

from paligemma.data.pictures.errors import unreadable
from paligemma.data.pictures.survey import MAX_PARTS, Survey, too_many_parts

_CONTROL = 0xF9


def survey_gif(data: bytes) -> Survey:
    """Keeps screen, palette, transparency and first frame; drops comments and other frames."""
    if len(data) < 13:
        raise unreadable("the file ends inside its header")
    width, height, flags = struct.unpack("<HHB", data[6:11])
    place = start = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    control, blocks = b"", 0
    while place + 2 <= len(data):
        kind = data[place]
        if kind == ord("!"):
            begin, label = place, data[place + 1]
            place, blocks = _skip(data, place + 2, blocks)
            if label == _CONTROL and (not control or data[begin + 3] & 1):  # Pillow keeps a transparent colour once one is set
                control = data[begin:place]
        elif kind == ord(","):
            break
        elif kind == ord(";"):
            raise unreadable("it has no frame")
        else:
            place += 1
            blocks += 1
            if blocks > MAX_PARTS:
                raise too_many_parts("blocks")
    if place + 11 > len(data):
        raise unreadable("the file ends before its first frame")
    left, top, across, down, flags = struct.unpack("<HHHHB", data[place + 1 : place + 10])
    pixels = place + 10 + (3 << (flags & 7) + 1 if flags & 128 else 0) + 1
    end, _ = _skip(data, pixels, 0)
    pieces = [data[:start], control[:8], memoryview(data)[place:end], b";"]
    return Survey("GIF", max(width, left + across), max(height, top + down), 1, pieces)


def _skip(data: bytes, place: int, blocks: int) -> tuple[int, int]:
    """The end of the sub-blocks, and the number of blocks up to there."""
    while place < len(data) and data[place]:
        place += data[place] + 1
        blocks += 1
        if blocks > 4 * MAX_PARTS:
            raise too_many_parts("blocks")
    return min(place + 1, len(data)), blocks
