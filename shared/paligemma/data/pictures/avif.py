"""Surveys an AVIF image: the size in its container, and the sizes of its AV1 frames.

The two may differ: libavif decodes the frames at their own size, and then scales them. Sources: ISO/IEC 14496-12 (boxes),
ISO/IEC 23008-12 (items), AOMediaCodec/av1-avif, and the AV1 specification, sections 5.3 and 5.5 (OBUs, sequence header).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

from PIL import Image

from paligemma.data.pictures.errors import unreadable
from paligemma.data.pictures.survey import MAX_PARTS, Survey, too_many_parts

_PIXEL_BYTES = {"RGB": 14, "RGBA": 18}
"""Bytes per pixel while decoding: the decoder's planes, its output, and the picture."""

_CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}
_SEQUENCE_HEADER = 1


def survey_avif(data: bytes) -> Survey:
    """Size as libavif reads it, and the memory for the largest frame if that is more."""
    image = Image.open(io.BytesIO(data), formats=("AVIF",))
    (width, height), pixel = image.size, _PIXEL_BYTES[image.mode]
    try:
        frame = max((across * down for sample in _samples(data) for across, down in _frame_sizes(sample)), default=0)
    except (struct.error, IndexError, ValueError):
        raise unreadable("its AVIF boxes are damaged") from None
    more = max(0, frame - width * height) * pixel
    return Survey("AVIF", width, height, pixel, [data], extra_bytes=len(data) + more)


def _samples(data: bytes) -> Iterator[bytes]:
    """The coded bytes of every AV1 item, and of every chunk of a sequence."""
    budget = 4 * len(data)
    for kind, start, stop in _boxes(data, 0, len(data)):
        if kind == b"meta":
            for sample in _items(data, start + 4, stop):
                budget -= len(sample)
                if budget < 0:
                    raise unreadable("its items claim the same bytes again and again")
                yield sample
        elif kind in _CONTAINERS:
            for place in _chunks(data, start, stop):
                yield data[place : place + (1 << 16)]


def _boxes(data: bytes, place: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start of the contents and end of each box."""
    count = 0
    while place + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, place)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, place + 8)
            head = 16
        end = stop if size == 0 else min(place + size, stop)
        if size and size < head:
            return
        yield kind, place + head, end
        place = end
        count += 1
        if count > MAX_PARTS:
            raise too_many_parts("boxes")


def _items(data: bytes, start: int, stop: int) -> Iterator[bytes]:
    boxes = {kind: (first, end) for kind, first, end in _boxes(data, start, stop)}
    if b"iinf" not in boxes or b"iloc" not in boxes:
        return
    coded = set(_coded_items(data, *boxes[b"iinf"]))
    beginning = {0: 0, 1: boxes.get(b"idat", (0, 0))[0]}
    for item, method, extents in _locations(data, boxes[b"iloc"][0]):
        if item in coded and method in beginning:
            yield b"".join(data[beginning[method] + at : beginning[method] + at + size] for at, size in extents)


def _coded_items(data: bytes, start: int, stop: int) -> Iterator[int]:
    version = data[start]
    for kind, first, _ in _boxes(data, start + (8 if version else 6), stop):
        if kind == b"infe" and data[first] >= 2:
            wide = data[first] > 2
            (item,) = struct.unpack_from(">I" if wide else ">H", data, first + 4)
            if data[first + (10 if wide else 8) :][:4] == b"av01":
                yield item


def _locations(data: bytes, place: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Identity, construction method and extents of each item."""
    version = data[place]
    sizes, sizes_too = data[place + 4], data[place + 5]
    offset_size, length_size, base_size = sizes >> 4, sizes & 15, sizes_too >> 4
    index_size = sizes_too & 15 if version else 0
    wide = 4 if version == 2 else 2
    place += 6

    def number(size: int) -> int:
        nonlocal place
        place += size
        if place > len(data):
            raise IndexError
        return int.from_bytes(data[place - size : place], "big")

    parts = 0
    for _ in range(number(wide)):
        item = number(wide)
        method = number(2) & 15 if version else 0
        number(2)
        base = number(base_size)
        extents = []
        for _ in range(number(2)):
            number(index_size)
            at, size = base + number(offset_size), number(length_size)
            extents.append((at, size or len(data)))
            parts += 1
            if parts > MAX_PARTS:
                raise too_many_parts("extents")
        yield item, method, extents


def _chunks(data: bytes, start: int, stop: int) -> Iterator[int]:
    """The start of every chunk of every track."""
    for kind, first, end in _boxes(data, start, stop):
        if kind in _CONTAINERS:
            yield from _chunks(data, first, end)
        elif kind in (b"stco", b"co64"):
            code, size = (">I", 4) if kind == b"stco" else (">Q", 8)
            (count,) = struct.unpack_from(">I", data, first + 4)
            for number in range(min(count, 1000)):
                yield struct.unpack_from(code, data, first + 8 + size * number)[0]


def _frame_sizes(sample: bytes) -> Iterator[tuple[int, int]]:
    """Maximum width and height in each sequence header."""
    place = count = 0
    while place < len(sample) and count < MAX_PARTS:
        kind, extended, sized = sample[place] >> 3 & 15, sample[place] >> 2 & 1, sample[place] >> 1 & 1
        place += 1 + extended
        size = len(sample) - place
        if sized:
            size, shift = 0, 0
            while place < len(sample):
                byte = sample[place]
                place += 1
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128 or shift > 56:
                    break
        if kind == _SEQUENCE_HEADER:
            yield _sequence_size(sample[place : place + min(size, 1024)])
        place += size
        count += 1


def _sequence_size(header: bytes) -> tuple[int, int]:
    bits, place = int.from_bytes(header, "big"), 8 * len(header)

    def read(count: int) -> int:
        nonlocal place
        place -= count
        if place < 0:
            raise IndexError
        return bits >> place & (1 << count) - 1

    read(4)
    if read(1):  # reduced_still_picture_header
        read(5)
    else:
        model = delay = 0
        if read(1):  # timing_info_present_flag
            read(64)
            if read(1):  # equal_picture_interval, and a number in Exp-Golomb code
                zeros = 0
                while not read(1):
                    zeros += 1
                read(min(zeros, 32))
            model = read(1)
            if model:
                delay = read(5) + 1
                read(42)
        display = read(1)
        for _ in range(read(5) + 1):
            read(12)
            if read(5) > 7:
                read(1)
            if model and read(1):
                read(2 * delay + 1)
            if display and read(1):
                read(4)
    across, down = read(4) + 1, read(4) + 1
    return read(across) + 1, read(down) + 1
