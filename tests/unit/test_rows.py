"""JSONL rows: what is accepted, and what is said of the rest."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.data.jsonl_files import split_lines, unpack
from paligemma.data.rows import (
    MAX_LINE_BYTES,
    MOST_IMAGES,
    REASONS,
    Row,
    RowError,
    RowImage,
    image_path,
    parse_row,
    read_all_rows,
    read_rows,
    row_id,
)
from paligemma.errors import InputError

GOOD = {"image": "a.png", "prefix": "p", "suffix": "s"}
ONE = (RowImage("a.png"),)


def code_of(line: bytes) -> str:
    with pytest.raises(RowError) as caught:
        parse_row(line, 2)
    return caught.value.code


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "json_invalid"),
        (b"[" * 100_000, "json_invalid"),
        (b"9" * 5000, "json_invalid"),
        (b"[]", "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"image": "a", "prefix": "p"}', "key_missing"),
        (b'{"image": 1, "prefix": "p", "suffix": "s"}', "type_wrong"),
        (b'{"image": "a", "prefix": null, "suffix": "s"}', "type_wrong"),
        (b'{"image": "a", "prefix": "p", "suffix": " "}', "suffix_empty"),
        (b'{"image": "a", "prefix": "\\ud800", "suffix": "s"}', "encoding_invalid"),
        (b"\xff\xfe", "encoding_invalid"),
        (b'{"image": "a", "prefix": "p", "suffix": "s", "image": "b"}', "key_repeated"),
        (b'{"image": "a", "prefix": "p", "suffix": "s", "\\u0073uffix": "t"}', "key_repeated"),
        (b'{"image": "a", "prefix": "p", "suffix": "s", "note": 1, "note": 1}', "key_repeated"),
        (b'{"image": "a", "prefix": "p", "suffix": "s", "masks": [{"size": [1, 1], "counts": "1"}]}', "type_wrong"),
        (
            b'{"image": "a", "prefix": "p", "suffix": "s", "masks": [{"label": "x", "size": [1, 1], "counts": [1]}]}',
            "type_wrong",
        ),
        (
            b'{"image": "a", "prefix": "p", "suffix": "s", "masks": [{"label": "\\ud800", "size": [1, 1], "counts": "1"}]}',
            "encoding_invalid",
        ),
    ],
)
def test_what_is_wrong_has_a_code(line: bytes, code: str) -> None:
    assert code_of(line) == code


def test_an_empty_prefix_and_further_keys_are_fine() -> None:
    row = parse_row(json.dumps({**GOOD, "prefix": "", "source": 7}).encode(), 3)
    assert row == Row(3, ONE, "", "s")


def test_a_key_that_is_there_twice_is_named_and_one_that_is_ignored_may_hold_anything() -> None:
    with pytest.raises(RowError, match=r"^'suffix' is there twice$"):
        parse_row(b'{"image": "a.png", "suffix": "s", "prefix": "p", "suffix": "other"}', 3)
    row = parse_row(b'{"image": "a.png", "prefix": "p", "suffix": "s", "source": {"id": 1, "id": 2}, "score": NaN}', 3)
    assert row == Row(3, ONE, "p", "s")


def test_bom_crlf_and_blank_lines(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line)
    assert list(read_rows(tmp_path / "x.jsonl")) == [(1, Row(1, ONE, "p", "s")), (4, Row(4, ONE, "p", "s"))]


def test_a_long_line_is_rejected_and_the_next_is_read(tmp_path: Path) -> None:
    long = b'{"image": "' + b"a" * (3 * MAX_LINE_BYTES) + b'"}\n'
    (tmp_path / "x.jsonl").write_bytes(long + json.dumps(GOOD).encode())
    (first, error), (second, row) = read_rows(tmp_path / "x.jsonl")
    assert (first, error.code, second, row.line) == (1, "line_too_long", 2, 2)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_row_or_a_documented_reason(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("rows") / "x.jsonl"
    path.write_bytes(data)
    lines = data.split(b"\n")
    numbers = []
    for number, row in read_rows(path):
        numbers.append(number)
        assert isinstance(row, Row) or row.code in REASONS
    assert numbers == [number for number, line in enumerate(lines, 1) if line.strip()]


@given(st.text(), st.text(), st.text())
def test_any_text_survives(image: str, prefix: str, suffix: str) -> None:
    (row,) = read_rows_of(json.dumps({"image": image, "prefix": prefix, "suffix": suffix}).encode())
    if isinstance(row, Row):
        assert (row.names, row.prefix, row.suffix) == ([image], prefix, suffix)
    else:
        surrogates = any("\ud800" <= character <= "\udfff" for character in image + prefix + suffix)
        assert row.code == ("encoding_invalid" if surrogates else "suffix_empty")
        assert surrogates or not suffix.strip()


IMAGES = st.sampled_from(["a.png", "gs://b/c.png", "https://h.org/d.png?key", "data:image/png;base64,iVBORw0KGgo="])


@given(st.lists(IMAGES, max_size=MOST_IMAGES + 2), st.integers(1, MOST_IMAGES), st.booleans())
def test_a_row_has_as_many_images_as_wanted_or_is_refused(names: list[str], wanted: int, alone: bool) -> None:
    given = names[0] if alone and len(names) == 1 else names
    line = json.dumps({"image": given, "prefix": "p", "suffix": "s"}).encode()
    (row,) = read_rows_of(line, wanted)
    if isinstance(row, RowError):
        assert row.code == ("images_several" if names else "image_none")
        assert len(names) != wanted
        return
    assert len(names) == wanted
    assert row == parse_row(line, 2, images=None)
    alike = [parse_row(json.dumps({**GOOD, "image": name}).encode(), 2).images[0] for name in names]
    assert list(row.images) == alike


@given(st.lists(st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()), max_size=3))
def test_any_list_of_images_is_a_row_or_a_reason(images: list) -> None:
    for wanted in (1, 2, None):
        (row,) = read_rows_of(json.dumps({"image": images, "prefix": "p", "suffix": "s"}).encode(), wanted)
        assert row.code in REASONS if isinstance(row, RowError) else row.names == images


def test_hashes_of_several_images_are_as_many() -> None:
    two, digest = {**GOOD, "image": ["a.png", "b.png"]}, "A" * 64
    row = parse_row(json.dumps(two | {"image_sha256": [digest, ""]}).encode(), 2, 2)
    assert [image.sha256 for image in row.images] == ["a" * 64, ""]
    for wrong in (digest, [digest], [digest] * 3, [digest, 7], [digest, "x"], None, {}):
        with pytest.raises(RowError, match="'image_sha256'") as caught:
            parse_row(json.dumps(two | {"image_sha256": wrong}).encode(), 2, 2)
        assert caught.value.code == "type_wrong"
    assert parse_row(json.dumps(GOOD | {"image_sha256": [digest]}).encode(), 2).images[0].sha256 == "a" * 64


def test_pictures_in_a_row_are_not_counted_in_its_length(tmp_path: Path) -> None:
    coded = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(MAX_LINE_BYTES)).decode()
    both = {**GOOD, "image": [f"data:image/png;base64,{coded}"] * 2}
    row = parse_row(json.dumps(both).encode(), 2, 2)
    assert len({image.name for image in row.images}) == 1
    with pytest.raises(RowError, match="not counted"):
        parse_row(json.dumps(both | {"note": "x" * MAX_LINE_BYTES}).encode(), 2, 2)


def read_rows_of(line: bytes, images: int | None = 1) -> list[Row | RowError]:
    try:
        return [parse_row(line, 2, images)]
    except RowError as error:
        return [error]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "out/secret.png"])
def test_paths_out_of_the_folder_are_unsafe(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    os.symlink(tmp_path, folder / "out")
    with pytest.raises(RowError) as caught:
        image_path(folder, name)
    assert caught.value.code == "image_path_unsafe"


def said_of(folder: Path, name: str) -> str:
    with pytest.raises(RowError) as caught:
        image_path(folder, name)
    return f"{caught.value.code}: {caught.value.message}"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """An image folder with three files."""
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    for name in ("a/b.png", "caf\u00e9 1.png", "Cat.JPG"):
        (tmp_path / "pictures" / name).write_bytes(b"")
    (tmp_path / "other.png").write_bytes(b"")
    (tmp_path / "pictures" / "out.png").symlink_to(tmp_path / "other.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\\b.png", r"image_missing: 'a\\\\b.png' has backslashes.*write / between folders: there is 'a/b.png'"),
        ("a\\c.png", r"backslashes.*there is no 'a/c.png' either"),
        (r"C:\data\b.png", r"image_path_unsafe: .*absolute path of Windows; .*--images.*with /.*'data/b.png'"),
        (r"\\server\share\b.png", "absolute path of Windows"),
        ("C:/data/b.png", "absolute path of Windows"),
        ("https://host/b.png", "image_path_unsafe: 'https://host/b.png' is an address outside the image folder"),
        ("gs://bucket/b.png", "is an address outside"),
        ("../other.png", r"image_path_unsafe: '../other.png' leads out of the image folder .*pictures; .*without \.\."),
        ("out.png", "image_path_unsafe: 'out.png' leads out of the image folder .* through a link"),
        ("cat.jpg", "image_missing: there is no file 'cat.jpg' in the image folder; did you mean 'Cat.JPG'\\?"),
        ("cat", "did you mean 'Cat.JPG'"),
        ("cafe\u0301 1.png", "did you mean 'caf\u00e9 1.png'"),
        ("caf%C3%A9%201.png", "did you mean 'caf\u00e9 1.png'"),
        (" a/b.png ", "did you mean 'a/b.png'"),
        ("pictures/a/b.png", "did you mean 'a/b.png'"),
        ("%2e%2e/other.png", "there is no file '%2e%2e/other.png' in the image folder$"),
        ("a", "image_missing: 'a' is a folder, not a file"),
        ("none.png", "image_missing: there is no file 'none.png' in the image folder$"),
    ],
)
def test_a_name_of_no_image_is_answered_with_what_is_wrong_with_it(pictures: Path, name: str, said: str) -> None:
    assert re.search(said, said_of(pictures, name))


def test_an_absolute_path_is_told_from_where_it_is(pictures: Path) -> None:
    inside = said_of(pictures, str(pictures / "a" / "b.png"))
    assert "image_path_unsafe" in inside
    assert "is an absolute path; rows name images relative to the image folder (--images): write 'a/b.png'" in inside
    assert "write 'a/b.png'" in said_of(pictures, f"file://{pictures}/a/b.png")
    outside = said_of(pictures, str(pictures.parent / "other.png"))
    assert f"is an absolute path outside the image folder {pictures}; " in outside
    assert "write '" not in outside
    (pictures.parent / "link").symlink_to(pictures)
    assert "write 'a/b.png'" in said_of(pictures.parent / "link", str(pictures / "a" / "b.png"))
    assert "write 'a/b.png'" in said_of(pictures, str(pictures.parent / "link" / "a" / "b.png"))


def test_a_file_whose_name_has_a_backslash_is_found(tmp_path: Path) -> None:
    (tmp_path / "a\\b.png").write_bytes(b"")
    assert image_path(tmp_path, "a\\b.png").name == "a\\b.png"


@given(st.text(max_size=300))
def test_any_image_name_is_answered_with_a_documented_reason(tmp_path_factory, name: str) -> None:
    with pytest.raises(RowError) as caught:
        image_path(tmp_path_factory.getbasetemp() / "empty", name)
    assert caught.value.code in REASONS


def test_row_identity_tells_prefix_from_suffix() -> None:
    assert row_id("0", "a", "bc") != row_id("0", "ab", "c")
    assert row_id("0", "a", "b") == row_id(["0"], "a", "b")
    assert len({row_id(images, "a", "b") for images in (["0", "1"], ["1", "0"], ["0"], ["0", "0"], ["01"])}) == 5
    assert row_id(["0", "1"], "a", "b") != row_id(["0"], "1", "ab")


def test_answers_are_optional_and_must_be_strings() -> None:
    row = b'{"image": "a.png", "prefix": "q", "suffix": "two", "answers": ["two", "2"]}'
    assert parse_row(row, 1).answers == ("two", "2")
    assert parse_row(row.replace(b', "answers": ["two", "2"]', b""), 1).answers == ()
    for wrong in (b'"two"', b"[2]", b"null"):
        with pytest.raises(RowError, match="list of strings"):
            parse_row(row.replace(b'["two", "2"]', wrong), 1)
    with pytest.raises(RowError, match="surrogate"):
        parse_row(row.replace(b'"2"]', rb'"\ud800"]'), 1)


@given(
    st.lists(st.binary(max_size=6).map(lambda line: line.replace(b"\n", b"")), max_size=12), st.booleans(), st.integers(1, 5)
)
def test_ranges_hold_every_line_once(tmp_path_factory, lines: list[bytes], ended: bool, size: int) -> None:
    path = tmp_path_factory.mktemp("ranges") / "x.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" * ended)
    parts = split_lines(path, size)
    data = path.read_bytes()
    assert [data[part.start : part.stop].count(b"\n") for part in parts[:-1]] == [size] * len(parts[:-1])
    assert b"".join(data[part.start : part.stop] for part in parts) == data
    assert [part.line for part in parts] == [1 + number * size for number in range(len(parts))]
    assert sum(part.lines for part in parts) == data.count(b"\n") + (data != b"" and not data.endswith(b"\n"))
    read = [(number, str(row)) for part in parts for number, row in read_rows(path, part)]
    assert read == [(number, str(row)) for number, row in read_rows(path)]


def test_a_long_line_at_the_end_of_a_range_leaves_the_next_range_whole(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode() + b"\n"
    (tmp_path / "x.jsonl").write_bytes(good + b"a" * (2 * MAX_LINE_BYTES) + b"\n" + good)
    first, second = split_lines(tmp_path / "x.jsonl", 2)
    assert [number for number, _ in read_rows(tmp_path / "x.jsonl", first)] == [1, 2]
    assert list(read_rows(tmp_path / "x.jsonl", second)) == [(3, Row(3, ONE, "p", "s"))]


@pytest.mark.parametrize("read", [lambda path: unpack(path, path.with_name("rows")), lambda path: list(read_all_rows(path))])
def test_a_gzip_file_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path, monkeypatch, read) -> None:
    monkeypatch.setattr("paligemma.data.jsonl_files._ANY_RATIO", 1 << 20)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(bytes(8 << 20)))
    with pytest.raises(InputError, match="250 times its own"):
        read(path)


def test_a_gzip_file_of_rows_unpacks_whole(tmp_path) -> None:
    rows = b"".join(b'{"image": "%d.png", "prefix": "what is it?", "suffix": "a cat"}\n' % number for number in range(40_000))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(rows))
    unpack(tmp_path / "rows.jsonl.gz", tmp_path / "rows")
    assert (tmp_path / "rows").read_bytes() == rows


def test_a_gzip_file_that_does_not_fit_is_refused_before_the_disk_is_full(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    with pytest.raises(InputError, match="not enough room"):
        unpack(tmp_path / "rows.jsonl.gz", tmp_path / "rows")


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b'[{"image": "a"}]', "not_an_object: the line is an array; the file looks like one JSON array"),
        (b'[\n{"image": "a"}\n]', "json_invalid: .* at character 3 of the line; the file looks like one JSON array"),
        ('{"image": "a"}'.encode("utf-16"), "encoding_invalid: the file is UTF-16; save it as UTF-8"),
        (b"image,prefix,suffix\n", "json_invalid: Expecting value at character 1 of the line$"),
        (b"null", "not_an_object: the line is null$"),
        (b'{"image": null, "prefix": "", "suffix": "s"}', "image_none: 'image' is null: without an image"),
        (b'{"messages": [], "images": ["a"]}', "key_missing: .*; paligemma convert chat makes rows of conversations$"),
        (b'{"prefix": "", "suffix": "s", "images": ["a"]}', "image_none: the row has 'prefix', 'suffix', 'images': without"),
        (
            b'{"image": ["a", "b"], "prefix": "", "suffix": "s"}',
            "images_several: 'image' is an array of 2; write a row",
        ),
        (b'{"image": 7, "prefix": "", "suffix": "s"}', "type_wrong: 'image' is a number, not a string"),
        (b'{"image": [["a"]], "prefix": "", "suffix": "s"}', "type_wrong: 'image' has an array, not a string"),
        (b'{"image": {"path": "a"}, "prefix": "", "suffix": "s"}', "type_wrong: 'image' is an object, not a string"),
    ],
)
def test_a_file_of_another_kind_is_told_in_words_of_json(tmp_path: Path, contents: bytes, said: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(contents)
    _, first = next(read_rows(tmp_path / "x.jsonl"))
    assert isinstance(first, RowError)
    assert re.search(said, f"{first.code}: {first.message}")


def test_true_masks_of_a_row_are_of_one_size() -> None:
    masks = [{"label": "cat", "size": [1, 2], "counts": "11"}, {"label": "dog", "size": [1, 2], "counts": "02", "iou": 1}]
    row = parse_row(json.dumps(GOOD | {"masks": masks}).encode(), 2)
    assert json.loads(row.masks) == [masks[0], {"label": "dog", "size": [1, 2], "counts": "02"}]
    for other in ([], None, "all", ["a_mask.png"], [{"label": "x"}], {"counts": "1"}):  # such keys are data of others
        assert parse_row(json.dumps(GOOD | {"masks": other}).encode(), 2).masks == ""
    assert code_of(json.dumps(GOOD | {"masks": [masks[0], masks[1] | {"size": [2, 1]}]}).encode()) == "type_wrong"
