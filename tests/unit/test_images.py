"""Decoding and resizing of pictures."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paligemma.data.images import ImageError, decode_image, load_image, normalize, resize, to_uint8


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_transparency_is_composited_on_white() -> None:
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (10, 20, 30, 255))
    assert decode_image(encode(picture)).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_exif_orientation_is_applied() -> None:
    picture = Image.new("RGB", (3, 1), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by a quarter
    turned = decode_image(encode(picture, exif=exif))
    assert turned.shape == (3, 1, 3)
    assert turned[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    picture = Image.new(mode, (4, 5))
    pixels = decode_image(encode(picture, "TIFF" if mode == "CMYK" else "PNG"))
    assert pixels.shape == (5, 4, 3)
    assert pixels.dtype == np.uint8


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = np.array([[0, 32896, 65535]], np.uint16)
    assert decode_image(encode(Image.fromarray(grey)))[0, :, 0].tolist() == [0, 128, 255]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data)[0, 0].tolist() == [255, 0, 0]


def test_a_bomb_is_refused_from_its_header() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.code == "image_too_large"


@settings(max_examples=50)
@given(st.integers(24, 300))
def test_files_that_end_inside_their_pixels_are_refused(cut: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    data = encode(Image.fromarray(pixels))
    with pytest.raises(ImageError) as caught:
        decode_image(data[:-cut])
    assert caught.value.code == "image_unreadable"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(data)


def test_a_missing_file_has_its_own_code(tmp_path) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / "none.png")
    assert caught.value.code == "image_missing"


def test_grey_input_is_repeated() -> None:
    image = np.array([[0, 255], [255, 0]], np.uint8)
    assert resize(image, 2).tolist() == [[[0.0] * 3, [255.0] * 3], [[255.0] * 3, [0.0] * 3]]


def test_stored_levels_are_within_half_of_the_exact_resize() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 37, 3), np.uint8)
    exact = resize(image, 32)
    assert np.abs(to_uint8(exact) - exact).max() <= 0.5
    assert normalize(np.array([0, 255], np.uint8)).tolist() == [-1.0, 1.0]


def test_formats_that_call_other_programs_are_not_opened() -> None:
    picture = Image.new("RGB", (4, 4))
    with pytest.raises(ImageError) as caught:
        decode_image(encode(picture, "EPS"))
    assert caught.value.code == "image_unreadable"


def test_a_file_of_too_many_bytes_is_not_read_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("paligemma.data.images.MAX_BYTES", 100)
    (tmp_path / "x.png").write_bytes(bytes(101))
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / "x.png")
    assert caught.value.code == "image_too_large"
