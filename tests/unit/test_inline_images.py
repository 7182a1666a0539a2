"""Pictures in a row itself: `data:` addresses, and bare base64 that can be nothing else."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import urllib.request
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from paligemma.data.inline_images import inline_image
from paligemma.data.rows import MAX_INLINE_BYTES, MAX_LINE_BYTES, Row, RowError, RowImage, parse_row, read_rows


def picture(form: str, size: int = 12) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((size, size), 50).convert("RGB").save(file, form)
    return file.getvalue()


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


PNG = picture("PNG")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_bare_base64_of_a_picture_is_its_bytes(form: str) -> None:
    data = picture(form)
    assert inline_image(coded(data)) == data
    assert inline_image(base64.encodebytes(data).decode()) == data  # in lines, as MIME has it
    assert inline_image(f"data:image/{form.lower()};base64,{coded(data)}") == data


@pytest.mark.parametrize(
    "text",
    [
        coded(b"BM" + PNG),  # BMP's two letters are too few
        coded(b"RIFF1234WAVE" + bytes(90)),
        coded(PNG)[:60],
        coded(PNG)[:-1],  # in no whole groups
        coded(PNG)[:20] + "." + coded(PNG)[20:],
        coded(PNG) + "/../x",
        "/9j/",
        "/9j/cat.jpg",
        "iVBORw0KGgo/folder/cat.png",
        "cat.png",
        "data",
        "data/image.png",
        "data:2024/cat.png",  # a folder's name, as it has no comma
    ],
)
def test_what_may_be_a_path_is_one(text: str) -> None:
    assert inline_image(text) is None


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{coded(PNG)}",
        f" DATA:image/png;charset=x;Base64,{coded(PNG)}",
        f"data:;base64,{coded(PNG)}",
        f"data:image/png;base64,{quote(coded(PNG), safe='')}",
        f"data:image/png;base64, {coded(PNG)[:40]}\n{coded(PNG)[40:]}",
        f"data:image/png;base64,{coded(PNG).rstrip('=')}",
        f"data:image/jpeg;base64,{coded(PNG)}",  # the bytes decide the format
    ],
)
def test_a_data_address_is_its_bytes_in_every_spelling_that_browsers_take(text: str) -> None:
    assert inline_image(text) == PNG


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data:image/png,abc", "not in base64"),
        ("data:image/svg+xml;utf8,<svg/>", "not in base64"),
        ("data:image/png;base64,", "holds nothing"),
        ("data:image/png;base64,a", "is not base64"),
        ("data:image/png;base64,ab_d", "is not base64"),
        ("data:image/png;base64,\u00e9\u00e9\u00e9\u00e9", "is not base64"),
    ],
)
def test_a_data_address_without_a_file_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        inline_image(text)
    with pytest.raises(RowError, match=words) as caught:
        parse_row(json.dumps({"image": text, "prefix": "p", "suffix": "s"}).encode(), 2)
    assert caught.value.code == "image_unreadable"


@given(st.text(max_size=200) | st.text("dataimge:/;bs64,%2F=\n", max_size=80).map(lambda rest: f"data:{rest}"))
def test_any_text_is_bytes_or_a_path_or_an_error(text: str) -> None:
    try:
        assert inline_image(text) is None or text.strip().lower().startswith("data:")
    except ValueError:
        assert text.strip().lower().startswith("data:")


@given(st.binary(min_size=1, max_size=300), st.integers(1, 80))
def test_any_bytes_come_back(data: bytes, width: int) -> None:
    text = coded(data)
    lines = "\r\n".join(text[start : start + width] for start in range(0, len(text), width))
    assert inline_image(f"data:,base64,{text}".replace(",base64", ";base64", 1)) == data
    assert inline_image(f"data:application/x;base64,{lines}") == data


def line(image: str, **more: object) -> bytes:
    return json.dumps({"image": image, "prefix": "p", "suffix": "s", **more}).encode()


def test_a_picture_in_a_row_is_named_by_its_sha256_so_that_no_list_holds_it() -> None:
    row = parse_row(line(f"data:image/png;base64,{coded(PNG)}"), 2)
    assert row == Row(2, (RowImage(f"data:sha256:{hashlib.sha256(PNG).hexdigest()}", inline=PNG),), "p", "s")


def test_a_long_line_is_read_if_a_picture_makes_it_long(tmp_path) -> None:
    large = PNG + bytes(2 * MAX_LINE_BYTES)
    bad = [
        line("a.png", note="x" * MAX_LINE_BYTES),
        line(f"data:image/png;base64,{coded(large)}", note="x" * MAX_LINE_BYTES),
        line("a.png", note=[0] * MAX_LINE_BYTES),
        line("data:image/png;base64," + "A" * MAX_INLINE_BYTES),
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join([line(f"data:image/png;base64,{coded(large)}"), *bad, line("a.png")]))
    first, *others, last = (row for _, row in read_rows(tmp_path / "x.jsonl"))
    assert isinstance(first, Row)
    assert first.images[0].inline == large
    assert [other.code for other in others if isinstance(other, RowError)] == ["line_too_long"] * 4
    assert "not by a picture in it" in str(others[2])  # it was not even parsed: two million numbers take fifty times its bytes
    assert last == Row(6, (RowImage("a.png"),), "p", "s")


@given(st.binary(min_size=1, max_size=200), st.sampled_from(["", "image/png", "image/jpeg;charset=utf-8", "text/plain"]))
def test_it_is_what_pythons_own_reader_of_such_addresses_gives(data: bytes, kind: str) -> None:
    for text in (coded(data), quote(coded(data), safe="")):
        address = f"data:{kind};base64,{text}"
        with urllib.request.urlopen(address) as opened:
            assert inline_image(address) == opened.read() == data
