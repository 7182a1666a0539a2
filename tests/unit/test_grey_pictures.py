"""Pictures of measurements: which samples are black and white, and what is said where that looks wrong."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from paligemma.data.images import ImageError, decode_image, fit_image, to_rgb
from paligemma.data.pictures.levels import GreyRange, parse_grey_range
from paligemma.errors import InputError

TWELVE_BITS = np.array([[0, 1001, 2048, 4095]], np.uint16)
SIXTEEN_BITS = np.array([[0, 16448, 32896, 65535]], np.uint16)


def png(samples: np.ndarray, bits: int | None = None) -> bytes:
    """16-bit grey, with an sBIT chunk that states how many bits count."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    stated = b"" if bits is None else chunk(b"sBIT", bytes([bits]))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + stated + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(samples: np.ndarray, order: str = "<", photometric: int = 1, **tags: object) -> bytes:
    """One strip of grey samples; `tags` are `tNUMBER=(type code, value)`."""
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    body = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    entries = {256: ("H", samples.shape[1]), 257: ("H", samples.shape[0]), 258: ("H", samples.dtype.itemsize * 8),
               259: ("H", 1), 262: ("H", photometric), 273: ("I", 8), 278: ("H", samples.shape[0]), 279: ("I", len(body)),
               339: ("H", kind), **{int(name[1:]): value for name, value in tags.items()}}  # fmt: skip
    codes = {"H": 3, "I": 4, "f": 11, "h": 8}
    table = b"".join(
        struct.pack(order + "HHI", tag, codes[code], 1) + struct.pack(order + code, value).ljust(4, b"\0")
        for tag, (code, value) in sorted(entries.items())
    )
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", 8 + len(body)) + body + struct.pack(order + "H", len(entries)) + table + bytes(4)


def levels(data: bytes, grey_range: GreyRange | None = None) -> list[int]:
    pixels = decode_image(data, grey_range=grey_range)
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


def warned(data: bytes, grey_range: GreyRange | None = None) -> list[str]:
    codes: list[str] = []
    fit_image(data, 8, "x", grey_range, lambda code, _: codes.append(code))
    return codes


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(SIXTEEN_BITS), [0, 64, 128, 255]),
        (png(TWELVE_BITS, bits=12), [0, 62, 128, 255]),
        (png(TWELVE_BITS << 4 | TWELVE_BITS >> 8, bits=12), [0, 62, 128, 255]),  # scaled, as the specification has it
        (png(TWELVE_BITS << 4, bits=12), [0, 62, 128, 255]),
        (png(np.array([[0, 16, 32, 4080]], np.uint16), bits=12), [0, 0, 0, 16]),  # a dark one of that kind
        (png(SIXTEEN_BITS, bits=16), [0, 64, 128, 255]),
        (tiff(SIXTEEN_BITS), [0, 64, 128, 255]),
        (tiff(SIXTEEN_BITS, ">"), [0, 64, 128, 255]),
        (tiff(SIXTEEN_BITS, photometric=0), [255, 191, 127, 0]),
        (tiff(SIXTEEN_BITS, ">", photometric=0), [255, 191, 127, 0]),
        (tiff(TWELVE_BITS, t281=("H", 4095)), [0, 62, 128, 255]),
        (tiff(TWELVE_BITS, t341=("H", 4095)), [0, 62, 128, 255]),
        (tiff(TWELVE_BITS, t281=("H", 4000)), [0, 4, 8, 16]),  # the greatest sample of this one file, no range
        (tiff(SIXTEEN_BITS.astype(np.uint32)), [0, 64, 128, 255]),
        (tiff(SIXTEEN_BITS.astype(np.int32)), [0, 64, 128, 255]),
        (tiff(np.array([[2**32 - 1, 0, 65535, 9]], np.uint32)), [255, 0, 255, 0]),
        (tiff(np.array([[-32768, 0, 16384, 32767]], np.int16)), [0, 0, 128, 255]),
        (tiff(np.array([[0, 0.25, 0.5, 1]], np.float32)), [0, 64, 128, 255]),
        (tiff(np.array([[0, 1, 16384, 32767]], np.int16), ">", photometric=0), [255, 255, 127, 0]),
        (tiff(SIXTEEN_BITS.astype(np.uint32), photometric=0), [255, 191, 127, 0]),
        (tiff(SIXTEEN_BITS.astype(np.int32), ">", photometric=0), [255, 191, 127, 0]),
        (tiff(np.array([[0, 0.25, 0.5, 1]], np.float64)), [0, 64, 128, 255]),
        (tiff(np.array([[np.nan, -np.inf, np.inf, 2]], np.float32)), [0, 0, 255, 255]),
        (tiff(np.array([[270, 280, 290, 310]], np.float32), t340=("f", 270.0), t341=("f", 310.0)), [0, 64, 128, 255]),
        (b"P5 4 1 4095\n" + TWELVE_BITS.astype(">u2").tobytes(), [0, 62, 128, 255]),
        (b"P2\n# made by hand\n4 1 4095\n0 1001 2048 4095", [0, 62, 128, 255]),
        (b"Pf\n4 1\n-1\n" + np.array([0, 0.25, 0.5, 1], "<f4").tobytes(), [0, 64, 128, 255]),
    ],
)  # fmt: skip
def test_samples_become_levels_by_the_range_that_is_stated(data: bytes, expected: list[int]) -> None:
    assert levels(data) == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(np.zeros((1, 12), np.uint16), photometric=2, t277=("H", 3), t284=("H", 2)), "separate planes"),
        (tiff(np.zeros((1, 4), np.float16)), "floats of 16 bits"),
        (tiff(np.zeros((1, 4), np.uint64)), "integers of 64 bits"),
    ],
)
def test_a_variant_that_would_come_out_wrong_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decode_image(data)


@given(st.integers(0, 65535), st.integers(0, 65535), st.sampled_from(["png", "tiff", "ppm"]))
def test_a_sample_gives_the_same_level_whatever_the_greatest_is(sample: int, other: int, kind: str) -> None:
    make = {"png": png, "tiff": tiff, "ppm": lambda found: b"P5 2 1 65535\n" + found.astype(">u2").tobytes()}[kind]
    alone = levels(make(np.array([[sample, 0]], np.uint16)))[0]
    assert levels(make(np.array([[sample, other]], np.uint16)))[0] == alone == round(sample / 257)


@pytest.mark.parametrize(
    ("data", "grey_range", "expected"),
    [
        (png(TWELVE_BITS), GreyRange(0, 4095), [0, 62, 128, 255]),
        (png(TWELVE_BITS, bits=10), GreyRange(0, 4095), [0, 62, 128, 255]),
        (tiff(TWELVE_BITS, t281=("H", 1023)), GreyRange(0, 4095), [0, 62, 128, 255]),
        (tiff(np.array([[-1024, 0, 1024, 3071]], np.int16)), GreyRange(-1024, 3071), [0, 64, 128, 255]),
        (tiff(TWELVE_BITS, photometric=0), GreyRange(0, 4095), [255, 193, 127, 0]),
        (tiff(np.array([[0, 5, 10, 15]], np.uint8)), GreyRange(0, 15), [0, 85, 170, 255]),
        (tiff(np.array([[0, 5, 10, 15]], np.uint8), photometric=0), GreyRange(0, 15), [255, 170, 85, 0]),
        (tiff(np.array([[0, 5, 10, 15]], np.uint8)), GreyRange(0, 4095), [0, 5, 10, 15]),  # 8 bits cannot hold it
        (b"P5 4 1 4095\n" + TWELVE_BITS.astype(">u2").tobytes(), GreyRange(0, 8190), [0, 31, 64, 128]),
    ],
)
def test_a_data_sets_range_is_above_what_a_file_states(data: bytes, grey_range: GreyRange, expected: list[int]) -> None:
    assert levels(data, grey_range) == expected


def test_a_data_sets_range_leaves_colour_alone() -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[[9, 8, 7], [90, 80, 70]]], np.uint8)).save(file, "PNG")
    assert decode_image(file.getvalue(), grey_range=GreyRange(0, 15)).tolist() == [[[9, 8, 7], [90, 80, 70]]]


def test_a_transparent_sample_is_white() -> None:
    file = io.BytesIO()
    Image.fromarray(SIXTEEN_BITS).save(file, "PNG", transparency=16448)
    assert levels(file.getvalue()) == [0, 255, 128, 255]


GRADIENT = np.linspace(0, 4095, 1024, dtype=np.uint16).reshape(32, 32)


@pytest.mark.parametrize(
    ("data", "grey_range", "codes"),
    [
        (png(GRADIENT), None, ["image_levels_few"]),
        (png(GRADIENT), GreyRange(0, 4095), []),
        (png(GRADIENT), GreyRange(0, 4000), []),
        (png(GRADIENT), GreyRange(0, 3000), ["image_levels_clipped"]),
        (png(GRADIENT, bits=12), None, []),
        (
            png(np.where(np.arange(2048) == 7, 65535, 9).astype(np.uint16).reshape(32, 64)),
            None,
            ["image_levels_few"],
        ),  # hot pixel
        (tiff(GRADIENT.astype(np.float32)), None, ["image_levels_few", "image_levels_clipped"]),
        (tiff(np.full((8, 8), np.nan, np.float32)), None, ["image_levels_few", "image_levels_clipped"]),
        (b"P6 32 32 65535\n" + np.repeat(GRADIENT, 3).astype(">u2").tobytes(), None, ["image_levels_few"]),
        (tiff(GRADIENT.astype(np.uint8)), None, []),
    ],
)
def test_a_range_that_looks_wrong_is_warned_of(data: bytes, grey_range: GreyRange | None, codes: list[str]) -> None:
    assert warned(data, grey_range) == codes


@pytest.mark.parametrize("text", ["1", "a,b", "3,3", "5,2", "0,inf", "1,2,3", "nan,1", ","])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="LOW,HIGH"):
        parse_grey_range(text)


def test_a_range_is_two_numbers() -> None:
    assert parse_grey_range("") is None
    assert parse_grey_range("-1024, 3071") == GreyRange(-1024, 3071)
    assert parse_grey_range(str(GreyRange(0.25, 12345678))) == GreyRange(0.25, 12345678)


MODES = "1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB HSV I F I;16 I;16L I;16B"


@pytest.mark.parametrize("mode", MODES.split())
def test_every_mode_that_pillow_has_becomes_rgb(mode: str) -> None:
    rgb = to_rgb(Image.new(mode, (4, 5)))
    assert (rgb.mode, rgb.size) == ("RGB", (4, 5))
