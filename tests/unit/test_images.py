"""Decoding and resizing of pictures."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import REPOSITORY
from paligemma.data.images import ImageError, decode_image, fit_image, load_image, normalize, resize


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


def test_levels_are_normalized_to_minus_one_to_one() -> None:
    assert normalize(np.array([0, 255], np.uint8)).tolist() == [-1.0, 1.0]


def test_stored_images_are_within_a_level_of_the_reference() -> None:
    with np.load(REPOSITORY / "tests/parity/golden/preprocess/expected.npz") as golden:
        for case in sorted({name.rpartition("/")[0] for name in golden.files}):
            image, expected = golden[f"{case}/image"], golden[f"{case}/out"]
            stored, width, height = fit_image(encode(Image.fromarray(image)), len(expected))
            assert (height, width) == image.shape[:2]
            assert np.abs(np.asarray(stored) - (expected + 1) * 127.5).max() <= 1.001, case


def photo(width: int, height: int) -> Image.Image:
    """Colours that change slowly, edges and grain."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(60, 200, (9, 12, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth).astype(np.int16) + rng.integers(-6, 7, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] //= 2
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("width", "height", "orientation"), [(1024, 768, 1), (1024, 768, 6), (1022, 766, 1), (2048, 1030, 1)])
def test_a_large_jpeg_at_reduced_scale_is_nearly_the_same(width: int, height: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(width, height), "JPEG", quality=90, exif=exif)
    whole = resize(decode_image(data), 96)
    stored, *size = fit_image(data, 96)
    assert size == [width, height]
    assert (np.abs(np.asarray(stored) - whole) <= 1.5).mean() > 0.99
    assert np.abs(np.asarray(stored) - whole).mean() < 0.4


def test_a_large_jpeg_is_decoded_at_reduced_scale_only_where_blocks_come_out_whole(monkeypatch) -> None:
    sizes = []
    monkeypatch.setattr("paligemma.data.images.to_square", lambda upright, _: sizes.append((upright.width, upright.height)))
    for width, height in ((1024, 768), (1023, 768), (896, 448), (640, 480)):
        fit_image(encode(photo(width, height), "JPEG"), 96)
    assert sizes == [(512, 384), (1023, 768), (896, 448), (640, 480)]


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


def test_an_image_comes_through_a_pipe(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)  # more than a pipe holds at a time
    Image.fromarray(pixels).save(tmp_path / "x.png")
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=(tmp_path / "pipe").write_bytes, args=((tmp_path / "x.png").read_bytes(),), daemon=True).start()
    np.testing.assert_array_equal(load_image(tmp_path / "pipe"), pixels)
