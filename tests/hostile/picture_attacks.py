"""Image files made to take memory or time, each built from what it abuses, and a program that measures what each one takes.

Every attack is built in one process, and decoded and resized in another one that is forked for it, so that neither counts for
the other and no interpreter is started for it. Prints a JSON line for each: name, code or size, processor seconds, MiB.

PYTHONPATH=shared:. .venv/bin/python tests/hostile/picture_attacks.py [PART OF A NAME]
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from paligemma.data.images import ImageError, decode_image, fit_image, read_image_file

MIB = 1024 * 1024
SIDE = 8192
SIZE = 224

ATTACKS: dict[str, Callable[[], bytes]] = {}


def attack(make: Callable[[], bytes]) -> Callable[[], bytes]:
    """Adds an attack under the name of its function."""
    ATTACKS[make.__name__] = make
    return make


# PNG


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


# TIFF


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


WHOLE = {
    "png_with_transparency_everywhere",
    "png_of_16_bit_grey",
    "png_one_pixel_wide",
    "tiff_with_jpeg_strips",
    "tiff_turned",
    "ppm_whose_samples_end_at_254",
    "pbm_as_text",
}
"""Those that take the most when they are decoded whole, as for an answer, and not for the records."""


def measure(name: str, folder: Path) -> dict[str, object]:
    """What decoding an attack takes, for the records and for an answer, in a process of its own each."""
    path = folder / name
    _forked(lambda: path.write_bytes(ATTACKS[name]()) and None)
    found: dict[str, object] = {"name": name, "bytes": path.stat().st_size}
    found["fit"] = _used(lambda: fit_image(read_image_file(path), SIZE)[1:])
    if name in WHOLE:
        found["decode"] = _used(lambda: decode_image(read_image_file(path)).shape)
    path.unlink()
    return found


def _used(call: Callable[[], object]) -> dict[str, object]:
    result, usage = _forked(call)
    return {"result": result, "seconds": round(usage.ru_utime + usage.ru_stime, 2), "mib": usage.ru_maxrss // 1024}


def _forked(call: Callable[[], object]) -> tuple[object, object]:
    """What a call answers in a forked process, or the code and words of its error; and what the process used."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            answer = call()
        except ImageError as error:
            answer = [error.code, error.what]
        except BaseException as error:
            answer = ["escaped", repr(error)]
        os.write(writing, json.dumps(answer).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        answer = file.read()
    _, status, usage = os.wait4(process, 0)
    return json.loads(answer) if answer else ["killed", f"status {status}"], usage


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        for wanted in ATTACKS:
            if not sys.argv[1:] or sys.argv[1] in wanted:
                print(json.dumps(measure(wanted, Path(root))), flush=True)
