"""`paligemma convert table`: CSV, JSONL, JSON and Parquet as people have them; nothing is changed or lost without a word."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from gzip import compress
from pathlib import Path

import pyarrow
import pytest
from converting import Conversion, run_convert
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from paligemma.data import image_suffixes
from paligemma.data.convert.reasons import REASONS
from paligemma.data.rows import Row, read_rows


def convert_table(folder: Path, name: str, content: bytes | str, *flags: str) -> Conversion:
    table = folder / name
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    flags = flags or ("--image", "file", "--prefix", "answer en {q}", "--suffix", "{a}")
    return run_convert(folder / "out.jsonl", "table", "--table", table, *flags)


GOOD = "b.png,q,x\n"
ODD_CSV = [
    # below the header file,q,a | suffixes | why others were skipped | words
    ("a.png,q,blue\n", ["blue"], [], "1 rows read: 1 used, 0 skipped"),
    ('a.png,q,"a red, round ball"\n', ["a red, round ball"], [], "1 used"),
    ('a.png,q,"say ""hi"""\n', ['say "hi"'], [], "1 used"),
    ('a.png,q,5" pipe\n', ['5" pipe'], [], "1 used"),
    ("a.png,q,blue", ["blue"], [], "1 used"),
    ("a.png,q,blue\r\n\r\n , ,\r\nb.png,q,x\r\n", ["blue", "x"], [], "2 rows read"),
    ("a.png,q,blue\rb.png,q,x\r", ["blue", "x"], [], "2 rows read"),
    ('a.png,q,"two\nlines"\n', ["two\nlines"], [], "1 cell_of_many_lines: rows have a cell of several lines"),
    ("a.png,q," + "x" * 200_000 + "\n", ["x" * 200_000], [], "1 used"),
    ("a.png,q,a red, round ball\n" + GOOD, ["x"], ["cells_too_many"], "a text with the delimiter in it is not in quotes"),
    ("a.png,q\n" + GOOD, ["x"], ["cells_too_few"], "the row has fewer cells than the header"),
    ("a.png,q,\n" + GOOD, ["x"], ["suffix_empty"], "nothing to learn"),
    (",q,y\n" + GOOD, ["x"], ["value_missing"], "the column is empty"),
    ("a.png,q,a\0b\n" + GOOD, ["x"], ["text_nul"], "NUL"),
    ('a.png,q,"never closed\n' + GOOD * 3, ["x"] * 3, ["quotes_broken"], "a quote in the row is not closed"),
    ('a.png,q,"red" ball\n' + GOOD, ["x"], ["quotes_broken"], "text follows a closing quote"),
    ('a.png,q,"open\nb.png,q,x\nc.png,q,"closed"\n', ["x", "closed"], ["quotes_broken"], "1 skipped"),
    ("../a.png,q,y\n" + GOOD, ["x"], ["image_path_unsafe"], "leads out"),
    ("sub\\a.png,q,y\n", ["y"], [], "1 name_backslashes"),
    ("a.png,q," + "x" * (17 << 20) + "\n" + GOOD, ["x"], ["cell_too_large"], "larger than 16 Mi"),
    ("a.png,q," + "x" * (2 << 20) + "\n" + GOOD, ["x"], ["line_too_long"], "1 MiB"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "suffixes", "codes", "words"), ODD_CSV, ids=range(len(ODD_CSV)))
def test_every_odd_row_of_a_csv_is_whole_or_skipped_with_its_reason(
    tmp_path: Path, lines: str, suffixes: list[str], codes: list[str], words: str
) -> None:
    end = "\r" if lines.endswith("\r") else "\n"
    done = convert_table(tmp_path, "x.csv", f"file,q,a{end}{lines}")
    assert [row["suffix"] for row in done.rows] == suffixes
    assert done.codes == codes
    assert words in done.words
    assert all(row["prefix"] == "answer en q" for row in done.rows)


def test_a_skipped_row_is_listed_with_its_line(tmp_path: Path) -> None:
    done = convert_table(tmp_path, "x.csv", 'file,q,a\na.png,q,"x\ny"\nb.png,q\n')
    assert done.skipped == [{"place": "line 4", "id": None, "code": "cells_too_few", "message": "2 cells for 3 columns"}]


ODD_TABLES = [
    # a file | words | exit code
    ("x.csv", b"", "The table is empty", 2),
    ("x.csv", b"\xef\xbb\xbf\n \n", "The table is empty", 2),
    ("x.csv", b"file,q,a\n", "no rows in it", 2),
    ("x.csv", b"fil,q,a\na,b,c\n", "has no column 'file'", 2),
    ("x.csv", b"fil,q,a\na,b,c\n", "did you mean 'fil'", 2),
    ("x.csv", b"file,q,a,a\na,b,c,d\n", "has 2 columns 'a'", 2),
    ("x.csv", b'"file,q,a\na,b,c\n', "The header cannot be read", 2),
    ("x.jsonl", b"", "The table is empty", 2),
    ("x.jsonl", b'{"fil": "a", "q": "q", "a": "b"}', "did you mean 'fil'", 2),
    ("x.json", b"[1, 2", "are not JSON", 2),
    ("x.parquet", b"hello", "not a Parquet file", 2),
    ("x.parquet", b"PAR1 hello", "cannot be read", 2),
    ("x.xlsx", b"PK\x03\x04", "Excel workbook", 2),
    ("x.csv", b"ARROW1\0\0", "is an Arrow file, whose name is to end in .arrow", 2),
    ("x.arrow", b"ARROW1\0\0", "cannot be read after row 0", 2),
    ("x.arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f", "cannot be read after row 0", 2),
    ("x.arrow", b"", "cannot be read after row 0", 2),
    ("x.csv.gz", compress(b"file,q,a\n" * 99, mtime=0)[:-9], "cannot be unpacked", 3),
]


@pytest.mark.parametrize(("name", "content", "words", "exit_code"), ODD_TABLES)
def test_other_tables_are_refused_in_words(tmp_path: Path, name: str, content: bytes, words: str, exit_code: int) -> None:
    done = convert_table(tmp_path, name, content)
    assert words in done.words
    assert done.exit_code == exit_code


ANSWERS = [
    # a file | columns of answers | suffix | answers | words
    ("x.csv", "file,a,b\na.png,two,2\n", ["a", "b"], "two", ["two", "2"], "1 used"),
    ("x.csv", "file,a,b\na.png,two,\n", ["a", "b"], "two", ["two"], "1 answer_dropped"),
    ("x.csv", 'file,a\na.png,"[""3"", ""2"", ""2""]"\n', ["a"], "2", ["3", "2", "2"], "1 used"),
    ("x.csv", "file,a\na.png,\"['3', '2', '2']\"\n", ["a"], "2", ["3", "2", "2"], "1 used"),
    ("x.csv", "file,a\na.png,[sic] so\n", ["a"], "[sic] so", ["[sic] so"], "1 used"),
    ("x.csv", "file,a\na.png," + "[" * 9000 + "\n", ["a"], "[" * 9000, ["[" * 9000], "1 used"),
    ("x.csv", "file,a\na.png,\n", ["a"], None, None, "no answer that is text or a number"),
    ("x.csv", "file,a\na.png,[]\n", ["a"], None, None, "no answer that is text or a number"),
    ("x.jsonl", '{"file": "a.png", "a": ["3", 2, 2.0, null]}', ["a"], "2", ["3", "2", "2"], "1 answer_dropped"),
    ("x.jsonl", '{"file": "a.png", "a": [{"answer": "3", "answer_id": 1}]}', ["a"], "3", ["3"], "1 used"),
    ("x.jsonl", '{"file": "a.png", "a": [[1]]}', ["a"], None, None, "no answer that is text or a number"),
    ("x.jsonl", '{"file": "a.png", "b": 1}', ["a"], None, None, "has no such column"),
    ("x.csv", "file,a\na.png,x\n", ["c"], None, None, "has no column 'c'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "columns", "suffix", "answers", "words"), ANSWERS, ids=range(len(ANSWERS)))
def test_a_table_with_several_answers_keeps_them_all_and_teaches_the_most_frequent(
    tmp_path: Path, name: str, content: str, columns: list[str], suffix: str | None, answers: list[str] | None, words: str
) -> None:
    flags = [part for column in columns for part in ("--answers", column)]
    done = convert_table(tmp_path, name, content, "--image", "file", "--prefix", "answer en how many?", *flags)
    assert [(row["suffix"], row["answers"]) for row in done.rows] == ([(suffix, answers)] if suffix else [])
    assert words in done.words


def test_a_suffix_that_is_named_stays_beside_several_answers(tmp_path: Path) -> None:
    flags = ("--image", "file", "--prefix", "", "--suffix", "{a}", "--answers", "a", "--answers", "b")
    done = convert_table(tmp_path, "x.csv", "file,a,b\na.png,x,y\n", *flags)
    assert [(row["suffix"], row["answers"]) for row in done.rows] == [("x", ["x", "y"])]


def test_answers_in_a_column_of_lists_of_a_parquet_file_are_kept(tmp_path: Path) -> None:
    rows = [{"file": "a.png", "question": "How many?", "answers": ["2", "two", "2"]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    flags = ("--image", "file", "--prefix", "answer en {question}", "--answers", "answers")
    done = run_convert(tmp_path / "out.jsonl", "table", "--table", tmp_path / "x.parquet", *flags)
    assert [(row["suffix"], row["answers"]) for row in done.rows] == [("2", ["2", "two", "2"])]


@pytest.mark.parametrize("column", ["a", "b"])
def test_columns_of_one_name_matter_only_where_they_are_used(tmp_path: Path, column: str) -> None:
    flags = ("--image", "file", "--prefix", "", "--suffix", f"{{{column}}}")
    done = convert_table(tmp_path, "x.csv", "file,b,a,a,,\na.png,x,y,z,,\n", *flags)
    assert done.exit_code == (2 if column == "a" else 0)


@pytest.mark.parametrize(
    ("name", "header", "line"),
    [
        ("x.tsv", "file\tq\ta", "a.png\tq\tred, round; big"),
        ("X.TSV", "file\tq\ta", "a.png\tq\tred, round; big"),
        ("x.csv", "file;q;a", 'a.png;q;"red, round; big"'),
        ("x.csv", "file\tq\ta", "a.png\tq\tred, round; big"),
        ("x.csv", "sep=;\r\nfile;q;a", 'a.png;q;"red, round; big"'),
        ("x.csv", "file|q|a", "a.png|q|red, round; big"),
        ("x.csv", '"file","q","a"', 'a.png,q,"red, round; big"'),
        ("x.csv", 'file,q,a,"x;y;z;w"', 'a.png,q,"red, round; big",.'),
        ("x.txt", "file,q,a", 'a.png,q,"red, round; big"'),
    ],
)
def test_the_delimiter_is_that_of_the_header(tmp_path: Path, name: str, header: str, line: str) -> None:
    done = convert_table(tmp_path, name, f"{header}\n{line}\n")
    assert [row["suffix"] for row in done.rows] == ["red, round; big"]


def test_a_delimiter_may_be_told(tmp_path: Path) -> None:
    flags = ("--image", "file", "--prefix", "", "--suffix", "{a}")
    assert convert_table(tmp_path, "x.csv", "file~a\na.png~x\n", *flags, "--delimiter", "~").rows[0]["suffix"] == "x"
    done = convert_table(tmp_path, "x.csv", "file~a\na.png~x\n", *flags, "--delimiter", "~~")
    assert "'~~' cannot be a delimiter" in done.words


TEXT = "file,q,a\n" + "a.png,q,café crème à Gijón\n" * 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("pack", [bytes, compress])
def test_utf_8_and_files_with_a_byte_order_mark_need_no_flag(
    tmp_path: Path, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    done = convert_table(tmp_path, "x.csv", pack(TEXT.encode(encoding)))
    assert [row["suffix"] for row in done.rows] == ["café crème à Gijón"] * 2


@pytest.mark.parametrize(
    ("encoding", "text", "guess"),
    [
        ("latin-1", TEXT, "try --encoding latin-1, in which a word of it reads 'café'"),
        ("cp1252", TEXT.replace("café", "“café”"), "try --encoding cp1252, in which a word of it reads '“café”'"),
        ("utf-16-le", TEXT, "pass --encoding utf-16-le"),
        ("utf-16-be", TEXT, "pass --encoding utf-16-be"),
        ("cp1251", "file,q,a\na.png,q,кошка на столе\n", "cp1251 'кошка'"),
        ("shift_jis", "file,q,a\na.png,q,猫が好き\n", "shift_jis '猫が好き'"),
        ("gb18030", "file,q,a\na.png,q,红色的球\n", "gb18030 '红色的球'"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_another_encoding_is_guessed_in_the_message_and_read_when_told(
    tmp_path: Path, encoding: str, text: str, guess: str, kind: str
) -> None:
    if kind == "jsonl":
        keys, *values = [line.split(",") for line in text.splitlines()]
        rows = [json.dumps(dict(zip(keys, value, strict=True)), ensure_ascii=False) for value in values]
        text = "".join(f"{row}\n" for row in rows)
    data = text.encode(encoding, "ignore")
    done = convert_table(tmp_path, f"x.{kind}", data)
    assert (done.exit_code, done.rows) == (2, [])
    assert guess in done.words
    flags = ("--image", "file", "--prefix", "", "--suffix", "{a}", "--encoding", encoding)
    done = convert_table(tmp_path, f"x.{kind}", data, *flags)
    assert {row["suffix"] in text for row in done.rows} == {True}
    assert done.exit_code == 0


def test_one_wrong_byte_among_many_right_ones_costs_its_row(tmp_path: Path) -> None:
    done = convert_table(tmp_path, "x.csv", TEXT.encode() + b"a.png,q,caf\xe9\n")
    assert (len(done.rows), done.codes) == (2, ["encoding_invalid"])


@pytest.mark.parametrize("encoding", ["klingon", "base64", "hex", "\0"])
def test_an_encoding_that_there_is_not_is_refused(tmp_path: Path, encoding: str) -> None:
    flags = ("--image", "file", "--suffix", "{a}", "--prefix", "", "--encoding", encoding)
    done = convert_table(tmp_path, "x.csv", TEXT, *flags)
    assert (done.exit_code, "There is no text encoding" in done.words) == (2, True)


ROW = {"file": "a.png", "q": "q", "a": "x"}
ODD_JSONL = [
    (ROW | {"a": 3}, ["3"], [], "1 used"),
    (ROW | {"a": 2.5}, ["2.5"], [], "1 used"),
    (ROW | {"file": {"path": "a.png", "bytes": None}}, ["x"], [], "1 used"),
    (ROW | {"file": [{"path": "a.png"}]}, ["x"], [], "1 used"),
    (ROW | {"a": None}, [], ["value_missing"], "'a' is empty"),
    (ROW | {"a": float("nan")}, [], ["value_missing"], "'a' is empty"),
    (ROW | {"a": ["x", "y"]}, [], ["value_wrong"], "name a part of it, as {a[0]}"),
    (ROW | {"a": {"text": "x"}}, [], ["value_wrong"], "an object of 1"),
    (ROW | {"a": " "}, [], ["suffix_empty"], "nothing to learn"),
    (ROW | {"file": None}, [], ["value_missing"], "there is no image"),
    (ROW | {"file": 3}, [], ["value_wrong"], "neither a path nor bytes"),
    (ROW | {"file": {"bytes": "iVBORw0KGgo="}}, [], ["value_wrong"], "the image's bytes"),
    (ROW | {"file": ["a.png", "b.png"]}, [], ["value_wrong"], "a list of 2"),
    ({"file": "a.png", "q": "q"}, [], ["column_missing"], "there is no 'a'"),
    ({"q": "q", "a": "x"}, [], ["column_missing"], "there is no 'file'"),
    ([1], [], ["not_an_object"], "the row is list"),
    (b"{not json", [], ["json_invalid"], "not JSON"),
    (b"[" * 100_000, [], ["json_invalid"], "not JSON"),
    (b'{"file": "a.png", "q": "q", "a": "x", "a": "y"}', [], ["key_repeated"], "'a' is there twice"),
    (b'{"file": "a.png", "q": "q", "a": {"b": 1, "b": 2}}', [], ["value_wrong"], "an object with 'b' twice"),
    (b'{"file": {"path": "a.png", "path": "b.png"}, "q": "q", "a": "x"}', [], ["value_wrong"], "an object with 'path' twice"),
    (b'{"file": "a.png", "q": "q", "a": "\\ud800"}', [], ["encoding_invalid"], "half a surrogate pair"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "suffixes", "codes", "words"), ODD_JSONL, ids=range(len(ODD_JSONL)))
@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_every_odd_row_of_json_is_used_or_skipped_with_its_reason(
    tmp_path: Path, name: str, line: object, suffixes: list[str], codes: list[str], words: str
) -> None:
    whole = name == "x.json" and not isinstance(line, bytes)
    data = json.dumps([line]).encode() if whole else line if isinstance(line, bytes) else json.dumps(line).encode()
    done = convert_table(tmp_path, "x.json" if whole else "x.jsonl", data)
    assert [row["suffix"] for row in done.rows] == suffixes
    assert done.codes == codes
    assert words in done.words


def test_parts_of_a_column_and_formats_can_be_named(tmp_path: Path) -> None:
    line = json.dumps({"image": "a.png", "a": {"text": ["x", "y"]}, "n": 3.0})
    done = convert_table(tmp_path, "x.jsonl", line, "--prefix", "{{{n:.0f}}}", "--suffix", "{a[text][1]}")
    assert (done.rows[0]["prefix"], done.rows[0]["suffix"]) == ("{3}", "y")
    done = convert_table(tmp_path, "x.jsonl", line, "--prefix", "", "--suffix", "{a[text][2]}")
    assert done.codes == ["value_wrong"]


@pytest.mark.parametrize("text", ["{", "{}", "{0}", "a}"])
def test_texts_that_cannot_be_filled_in_are_refused(tmp_path: Path, text: str) -> None:
    done = convert_table(tmp_path, "x.jsonl", json.dumps(ROW), "--image", "file", "--prefix", "", "--suffix", text)
    assert "cannot be filled in" in done.words


def write_parquet(path: Path, rows: list[dict], features: object = None) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path)
    return path


def convert_parquet(folder: Path, rows: list[dict], suffix: str, features: object = None) -> Conversion:
    path = write_parquet(folder / "x.parquet", rows, features)
    return run_convert(folder / "out.jsonl", "table", "--table", path, "--prefix", "caption en", "--suffix", suffix)


def test_images_in_a_parquet_table_are_written_once_under_their_hash(tmp_path: Path) -> None:
    done = convert_parquet(tmp_path, [{"image": {"bytes": b"png", "path": None}, "text": "t"}] * 2, "{text}")
    assert done.rows[0] == done.rows[1]
    assert (tmp_path / done.rows[0]["image"]).read_bytes() == b"png"


def test_text_that_parquet_holds_as_bytes_is_text(tmp_path: Path) -> None:
    done = convert_parquet(tmp_path, [{"image": "a", "text": "é".encode()}, {"image": "b", "text": b"\xe9"}], "{text}")
    assert ([row["suffix"] for row in done.rows], done.codes) == (["é"], ["value_wrong"])


LABEL = {"names": ["cat", "dog"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    ("value", "feature", "suffix", "expected"),
    [
        (1, LABEL, "{x}", "dog"),
        (0, LABEL | {"names": {"0": "cat", "1": "dog"}}, "{x}", "cat"),
        ([0, 1], {"feature": LABEL, "_type": "Sequence"}, "{x[1]}", "dog"),
        ([0, 1], {"feature": LABEL, "_type": "List"}, "{x[0]}", "cat"),
        ([0, 1], [LABEL], "{x[1]}", "dog"),
        ({"category": [1], "id": [7]}, {"feature": {"category": LABEL}, "_type": "Sequence"}, "{x[category][0]}", "dog"),
        ([{"category": 1}], [{"category": LABEL}], "{x[0][category]}", "dog"),
        ({"category": 1}, {"category": LABEL}, "{x[category]}", "dog"),
        (1, {"dtype": "int64", "_type": "Value"}, "{x}", "1"),
        (1, None, "{x}", "1"),
        (1, {"_type": "ClassLabel"}, "{x}", "1"),
        ("dog", LABEL, "{x}", "dog"),
        (2, LABEL, "{x}", "label_unknown"),
        (-1, LABEL, "{x}", "value_missing"),
        (None, LABEL, "{x}", "value_missing"),
    ],
)
def test_numbers_of_a_class_label_come_out_as_names(
    tmp_path: Path, value: object, feature: object, suffix: str, expected: str
) -> None:
    rows = [{"image": "a.png", "x": value}, {"image": "b.png", "x": value}]
    done = convert_parquet(tmp_path, rows, suffix, {"x": feature})
    assert [row["suffix"] for row in done.rows] + done.codes == [expected] * 2


def test_parquet_columns_are_checked_and_values_that_python_has_no_type_for_cost_their_row(tmp_path: Path) -> None:
    assert "did you mean 'text'" in convert_parquet(tmp_path, [{"image": "a", "text": "t"}], "{txt}").words
    times = pyarrow.table({"image": ["a", "b"], "t": pyarrow.array([2**55, 0], pyarrow.timestamp("ms"))})
    parquet.write_table(times, tmp_path / "x.parquet")
    done = run_convert(tmp_path / "out.jsonl", "table", "--table", tmp_path / "x.parquet", "--prefix", "", "--suffix", "{t:%Y}")
    assert ([row["suffix"] for row in done.rows], done.codes) == (["1970"], ["value_wrong"])


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=5
)


def assert_accounted(done: Conversion, output: Path, entries: int | None) -> None:
    assert done.exit_code in (0, 2)
    assert {entry["code"] for entry in done.skipped} <= REASONS.keys()
    if found := re.search(r"(\d+) rows read: (\d+) used, (\d+) skipped", done.words):
        read, used, skipped = map(int, found.groups())
        assert (used, skipped) == (len(done.rows), len(done.skipped))
        assert read == used + skipped
        assert entries is None or read == entries
    if output.exists():
        assert all(isinstance(row, Row) for _, row in read_rows(output))


@settings(max_examples=100)
@given(key=st.sampled_from(["file", "q", "a"]), value=VALUES, place=st.integers(0, 2), whole=st.booleans())
def test_any_value_anywhere_in_a_json_table_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object, place: int, whole: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "out.jsonl").unlink(missing_ok=True)
    rows: list[object] = [ROW, ROW]
    rows.insert(place, value if place == 1 else ROW | {key: value})
    data = json.dumps(rows) if whole else "".join(f"{json.dumps(row)}\n" for row in rows)
    done = convert_table(folder, "x.json" if whole else "x.jsonl", data)
    assert_accounted(done, folder / "out.jsonl", 3)


@settings(max_examples=200)
@given(text=st.text(st.sampled_from('a,";\t|\n\r\0 é{\\/')) | st.text() | st.binary(max_size=40))
def test_any_text_as_a_csv_never_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "out.jsonl").unlink(missing_ok=True)
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    done = convert_table(folder, "x.csv", b"file,q,a\na.png,q,x\n" + data)
    assert_accounted(done, folder / "out.jsonl", None)


def photos_and_table(folder: Path, header: str, cell: str) -> Path:
    """Two photos in a folder of their own, and a table that names them."""
    (folder / "photos").mkdir()
    for number in (1, 2):
        (folder / f"photos/{number}.jpg").touch()
    (folder / "t.csv").write_text(f"{header}\n" + "".join(f"{cell.format(number)},what?,x{number}\n" for number in (1, 2)))
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("cell", "flags", "remedy"),
    [
        ("{}", ("--images", "{}/photos"), "--image '{{file}}.jpg'"),
        ("{}.jpg", (), "there is one in {}/photos: --images {}/photos"),
        ("{}", (), "--images {}/photos --image '{{file}}.jpg'"),
        ("no-{}.gif", (), "pass --images, the folder that they are in"),
    ],
)
def test_images_are_looked_for_and_the_remedy_is_named(tmp_path: Path, cell: str, flags: tuple[str, ...], remedy: str) -> None:
    table = photos_and_table(tmp_path, "file,question,label", cell)
    given = ("--table", table, "--image", "file", "--prefix", "{question}", "--suffix", "{label}")
    flags = tuple(flag.format(tmp_path) for flag in flags)
    done = run_convert(tmp_path / "rows.jsonl", "table", *given, *flags, limit=0.1)
    assert done.exit_code == 2
    assert done.rows == []
    assert "2 of 2 rows name an image that is not there" in done.words
    assert remedy.format(tmp_path, tmp_path) in done.words


@pytest.mark.parametrize(("ending", "heif"), [(".JPG", False), (".heic", True), (".HEIC", True)])
def test_the_ending_that_names_lack_may_be_that_of_any_image_that_is_decoded(
    tmp_path: Path, ending: str, heif: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_suffixes, "heif_is_read", lambda: heif)
    table = photos_and_table(tmp_path, "file,question,label", "{}")
    for photo in (tmp_path / "photos").iterdir():
        photo.rename(photo.with_suffix(ending))
    given = ("--table", table, "--image", "file", "--prefix", "{question}", "--suffix", "{label}")
    done = run_convert(tmp_path / "rows.jsonl", "table", *given, "--images", str(tmp_path / "photos"), limit=0.1)
    assert f"the names lack their ending: --image '{{file}}{ending}'" in done.words


def test_a_row_has_the_images_of_all_columns_that_are_named(tmp_path: Path) -> None:
    flags = ("--image", "right", "--image", "left", "--image", "photos/{id}.png", "--prefix", "p")
    done = convert_table(tmp_path, "t.csv", "left,right,id,suffix\nl.png,r.png,7,x\nl.png,,7,y\n", *flags)
    assert done.codes == ["value_missing"]
    assert "1 rows name an image that is not in" in done.words
    for name in ("l.png", "r.png", "photos/7.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    done = convert_table(tmp_path, "t.csv", "left,right,id,suffix\nl.png,r.png,7,x\n", *flags)
    assert [row["image"] for row in done.rows] == [["r.png", "l.png", "photos/7.png"]]
    assert "1 used, 0 skipped" in done.words
    assert (
        "no column 'below'" in convert_table(tmp_path, "t.csv", "left,suffix\nl.png,x\n", *flags[2:4], "--image", "below").words
    )


def test_an_image_is_a_column_or_a_template(tmp_path: Path) -> None:
    table = photos_and_table(tmp_path, "id,question,label", "{}")
    given = ("--table", table, "--image", "photos/{id}.jpg", "--prefix", "{question}", "--suffix", "{label}")
    done = run_convert(tmp_path / "rows.jsonl", "table", *given, limit=0.1)
    assert [row["image"] for row in done.rows] == ["photos/1.jpg", "photos/2.jpg"]


@pytest.mark.parametrize(("flag", "other"), [("--prefix", "--suffix"), ("--suffix", "--prefix")])
def test_a_text_that_is_the_name_of_a_column_is_refused(tmp_path: Path, flag: str, other: str) -> None:
    table = photos_and_table(tmp_path, "file,question,label", "photos/{}.jpg")
    done = run_convert(tmp_path / "rows.jsonl", "table", "--table", table, "--image", "file", flag, "Label", other, "{label}")
    assert done.exit_code == 2
    assert f"{flag} 'Label' would be the same text in every row" in done.words
    assert f"{flag} '{{label}}'" in done.words


def test_images_may_be_anywhere_that_prepare_data_reads(tmp_path: Path) -> None:
    names = ["https://host/a.jpg?x=1", "gs://bucket/a.jpg", "data:image/png;base64,aGVsbG8=", "http://host/a.jpg"]
    lines = [json.dumps({"image": name, "answer": "x"}) for name in names]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    arguments = ("--table", tmp_path / "x.jsonl", "--image", "image", "--prefix", "what?", "--suffix", "{answer}")
    done = run_convert(tmp_path / "out.jsonl", "table", *arguments)
    assert [row["image"] for row in done.rows] == names[:3]
    assert done.codes == ["image_path_unsafe"]
    assert "that is not in" not in done.words
