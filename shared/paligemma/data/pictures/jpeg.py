"""Surveys a JPEG image: ITU-T T.81, annex B (segments) and G (progressive scans)."""

from __future__ import annotations

import re

from paligemma.data.pictures.errors import ImageError, unreadable
from paligemma.data.pictures.survey import MAX_PARTS, SPARE_BYTES, Survey, too_many_parts

MAX_SCANS = 256
"""Most scans of a picture: progressive JPEGs have about 10."""

MAX_SCANNED = 1 << 30
"""Most pixels of all scans together: each scan covers the whole picture again."""

_MARKER = re.compile(rb"\xff+([\x01-\xfe])")
_SEGMENT = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # inside a scan, where restart markers and stuffed bytes are data
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_ALONE = {0x01, *range(0xD0, 0xDA)}
_SOS, _EOI, _COMMENT = 0xDA, 0xD9, 0xFE
_EXIF, _XMP, _ADOBE, _JFIF = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"Adobe", b"JFIF\0"
_MOST_SEGMENTS = 64


def survey_jpeg(data: bytes) -> Survey:
    """Keeps what decides the pixels: frame, tables, scans, Adobe's colour marker, and the orientation."""
    place, count, spare = 2, 0, 0
    kept: list[bytes | memoryview] = [data[:2]]
    seen = set()
    frame: tuple[int, int, int, int] | None = None
    while True:
        found = _MARKER.search(data, place)
        if found is None:
            raise unreadable("the file ends inside its header")
        marker, start, end = found[1][0], found.end() - 2, found.end()
        spare += start - place  # fill bytes and junk, which Pillow reads one by one
        if marker not in _ALONE:
            if end + 2 > len(data):
                raise unreadable("the file ends inside its header")
            end += int.from_bytes(data[end : end + 2], "big")
        count += 1
        if count > MAX_PARTS:
            raise too_many_parts("segments")
        if marker in _FRAMES:
            frame = _frame(data, start)
        if marker == _SOS:
            break
        if marker == _EOI:
            raise unreadable("the file ends before its first scan")
        if marker == _COMMENT or 0xE0 <= marker <= 0xEF:
            spare += end - start
            name = next((kind for kind in (_EXIF, _XMP, _ADOBE, _JFIF) if data.startswith(kind, start + 4)), None)
            if name is not None and name not in seen:
                kept.append(memoryview(data)[start:end])
                seen.add(name)
        elif marker not in _ALONE:
            kept.append(memoryview(data)[start:end])
        place = end
    if frame is None:
        raise unreadable("it has no frame header")
    marker, width, height, channels = frame
    whole = count <= _MOST_SEGMENTS and spare <= SPARE_BYTES
    pieces = [data] if whole else [*kept, memoryview(data)[start:]]
    core = 1 if channels == 1 else 4
    in_turn = channels > 1 and start + 4 < len(data) and data[start + 4] < channels
    if marker in _PROGRESSIVE or in_turn:
        _check_scans(data, start, width * height)
        core += 2 * channels  # 16-bit coefficients of the whole picture
    return Survey("JPEG", width, height, core, pieces, extra_bytes=64 * channels * width)


def _frame(data: bytes, start: int) -> tuple[int, int, int, int]:
    """Marker, width, height and number of channels of a frame header."""
    if start + 10 > len(data):
        raise unreadable("the file ends inside its header")
    height, width = (int.from_bytes(data[start + place : start + place + 2], "big") for place in (5, 7))
    return data[start + 1], width, height, data[start + 9]


def _check_scans(data: bytes, place: int, pixels: int) -> None:
    """Refuses a picture with too many scans; ignores data after the end of the image."""
    scans = parts = 0
    while (found := _SEGMENT.search(data, place)) is not None and found[1][0] != _EOI:
        marker, place = found[1][0], found.end()
        if marker not in _ALONE:
            place += int.from_bytes(data[place : place + 2], "big")
        scans += marker == _SOS
        parts += 1
        if parts > MAX_PARTS:
            raise too_many_parts("segments")
        if scans > MAX_SCANS or scans * pixels > MAX_SCANNED:
            raise ImageError(
                "image_too_large",
                f"The image has {scans} scans of {pixels:,} pixels or more, which would take too long to decode. "
                f"At most {MAX_SCANS} scans are decoded, and {MAX_SCANNED:,} pixels in all of them together.",
            )
