"""What a file is called that is no picture, or none of a format that is decoded."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from paligemma.data.images import ImageError, decode_image
from paligemma.data.pictures import naming
from paligemma.extras import how_to_install

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def saved(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, kind)
    return file.getvalue()


def tiff(*entries: tuple[int, int, int, int]) -> bytes:
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4)


def message(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, "photo.jpg")
    assert caught.value.code == "image_unreadable"
    assert "photo.jpg" in str(caught.value)
    return caught.value.what


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (bytes(5000), "5000 zero bytes"),
        (b"<!DOCTYPE html>\n<html><body>404 Not Found", "HTML"),
        (b"\n\n<HTML><HEAD>", "HTML"),
        (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "x"><html xmlns="y">', "HTML"),
        (b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>', "XML"),
        (b'<svg xmlns="http://www.w3.org/2000/svg">', "SVG"),
        (b'<?xml version="1.0"?>\n<!-- drawn by hand -->\n<svg>', "SVG"),
        (b'{"error": {"code": 403}}', "JSON"),
        (b'[{"a": 1}]', "JSON"),
        (b"%PDF-1.7\n", "PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "Git LFS pointer"),
        (HEIC, "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "HEIC"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw file of a Canon"),
        (b"\0\0\0\x18ftypisom\0\0\0\1isomavc1", "video"),
        (b"II*\0\x10\0\0\0CR\2\0", "raw file of a Canon"),
        (tiff((50706, 1, 4, 0x0401)), "DNG"),
        (tiff((254, 4, 1, 1), (330, 4, 1, 200)), "NEF"),
        (tiff((262, 3, 1, 32803)), "raw file"),
        (b"FUJIFILMCCD-RAW 0201", "Fujifilm"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop"),
        (saved("JPEG2000"), "JPEG 2000"),
        (saved("ICO"), "icon"),
        (saved("EPS"), "PostScript"),
        (saved("QOI"), "QOI"),
        (b"PK\x03\x04", "ZIP"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x93NUMPY\1\0", "NumPy"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"RIFF\0\0\0\0WAVEfmt ", "RIFF"),
        (b"data:image/png;base64,iVBOR", "data URI"),
        (b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==", "base64"),
        ("Leider nicht verfügbar".encode(), "text that begins with 'Leider nicht"),
        ("nicht verfügbar".encode("utf-16"), "text"),
        (b"\x89PN\x1a broken", "text mode"),
        (b"\xff\xd8", "breaks off"),
        (b"\x07\x08\x09\xff", "07 08 09 ff"),
    ],
)
def test_a_file_is_named_in_words(data: bytes, words: str, monkeypatch) -> None:
    monkeypatch.setattr(naming, "heif_is_read", lambda: False)
    assert words in message(data)


def test_a_heic_photo_is_named_with_two_ways_to_use_it(monkeypatch) -> None:
    monkeypatch.setattr(naming, "heif_is_read", lambda: False)
    said = message(HEIC)
    assert "heif-convert" in said
    assert how_to_install("heif") in said


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF", "MPO"])
def test_the_bytes_decide_the_format_and_not_the_name(kind: str) -> None:
    assert decode_image(saved(kind), "photo.heic").shape == (16, 16, 3)


OUTCOMES = {"decoded", "image_unreadable", "image_too_large"}


def outcome(data: bytes) -> str:
    """Whether an image is decoded, or the code of the error; any other error escapes."""
    try:
        decode_image(data)
    except ImageError as error:
        return error.code
    return "decoded"


@given(st.binary(max_size=300), st.sampled_from(["png", "jpeg", "gif", "bmp", "tiff", "webp", "avif", "ppm", "pfm", "heic"]))
def test_whatever_follows_a_signature_is_an_image_or_an_error_of_ours(rest: bytes, kind: str) -> None:
    start = {"png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "jpeg": b"\xff\xd8\xff", "gif": b"GIF89a", "bmp": b"BM", "tiff": b"MM\0*",
             "webp": b"RIFF\0\0\0\0WEBPVP8", "avif": b"\0\0\0\x1cftypavif", "ppm": b"P6 ",
             "pfm": b"Pf\n", "heic": HEIC}  # fmt: skip
    assert outcome(start[kind] + rest) in OUTCOMES


@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF"]), st.data())
def test_a_changed_byte_leaves_an_image_or_an_error_of_ours(kind: str, data: st.DataObject) -> None:
    whole = bytearray(saved(kind))
    place = data.draw(st.integers(0, min(len(whole), 200) - 1))
    whole[place] = data.draw(st.integers(0, 255))
    assert outcome(bytes(whole)) in OUTCOMES


def test_an_image_of_too_many_pixels_is_refused_in_the_same_words_whatever_its_format() -> None:
    huge = [
        b"P5 20000 20000 255\n",
        b"BM" + struct.pack("<IHHIIiiHHI", 0, 0, 0, 54, 40, 20000, 20000, 1, 24, 0) + bytes(24),
        b"GIF89a" + struct.pack("<HHBBB", 20000, 20000, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 8, 8, 0) + b"\2\0;",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBBI", 20000, 20000, 8, 0, 0, 0, 0, 0),
        tiff((256, 4, 1, 20000), (257, 4, 1, 20000)),
    ]
    for data in huge:
        with pytest.raises(ImageError) as caught:
            decode_image(data)
        assert caught.value.code == "image_too_large"
        assert "20000 x 20000 pixels" in caught.value.what
        assert "at most 67,108,864 pixels and 432 MiB" in caught.value.what
