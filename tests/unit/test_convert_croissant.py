"""Converting data sets that a Croissant file describes. The descriptions are written by hand, in the format's form."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from converting import run_convert
from PIL import Image

from paligemma.data.convert.croissant import Choice, croissant_rows
from paligemma.data.convert.croissant_records import MOST_DEPTH, _expression_fault, _steps
from paligemma.data.convert.outcomes import EntryError, Tally
from paligemma.errors import DamagedError, InputError


def picture(level: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 0)).save(held, "PNG")
    return held.getvalue()


def file(name: str, url: str, kind: str = "text/csv", **more: object) -> dict:
    return {"@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": url, "encodingFormat": kind, **more}


def file_set(name: str, includes: object, *within: str, kind: str = "image/png") -> dict:
    contained = {"containedIn": [{"@id": one} for one in within]} if within else {}
    return {"@type": "cr:FileSet", "@id": name, "includes": includes, "encodingFormat": kind, **contained}


def field(name: str, kind: object, source: str, how: str, what: str, **more: object) -> dict:
    taken = {"fileObject": {"@id": source}, "extract": {how: what}, **({"transform": more.pop("t")} if "t" in more else {})}
    return {"@type": "cr:Field", "@id": name, "dataType": kind, "source": taken, **more}


def describe(folder: Path, files: list[dict], *sets: tuple[str, list[dict]], name: str = "metadata.json") -> Path:
    records = [{"@type": "cr:RecordSet", "@id": one, "field": fields} for one, fields in sets]
    value = {"@type": "sc:Dataset", "conformsTo": "http://mlcommons.org/croissant/1.0", "name": "made",
             "distribution": files, "recordSet": records}  # fmt: skip
    (folder / name).write_text(json.dumps(value))
    return folder / name


def rows(description: Path, folder: Path | None = None, files: dict[str, Path] | None = None, **choice: object) -> list:
    """Rows, and codes and messages of what was skipped."""
    chosen, tally = Choice(**choice), Tally("records")
    outcomes = croissant_rows(description, chosen, files or {}, folder or description.parent, tally)
    return [(one.result.code, one.result.message) if isinstance(one.result, EntryError) else one.result for one in outcomes]


@pytest.fixture
def asked(tmp_path: Path) -> list[dict]:
    """A table of questions about pictures in a zip file: files and fields of a description."""
    (tmp_path / "asked.csv").write_text("id,question,answer\n1,what?,red\n2,who?,nobody\n")
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for number in (1, 2):
            archive.writestr(f"all/{number}.png", picture(number))
        archive.writestr("all/readme.txt", "none")
    return [
        file("pictures", "pictures.zip", "application/zip"),
        file_set("images", "*.png", "pictures"),
        file("asked", "asked.csv"),
    ]


ID_OF_IMAGE = field("qa/id", "sc:Text", "images", "fileProperty", "filename", t={"regex": r"(\d+)\.png"},
                    references={"fileObject": {"@id": "asked"}, "extract": {"column": "id"}})  # fmt: skip
IMAGE = field("qa/image", "sc:ImageObject", "images", "fileProperty", "content")
QUESTION = field("qa/question", "sc:Text", "asked", "column", "question")
ANSWER = field("qa/answer", ["wd:Q1", "sc:Text"], "asked", "column", "answer")


def named(data: bytes) -> str:
    return f"images/{hashlib.sha256(data).hexdigest()}"


def test_pictures_of_an_archive_are_joined_with_a_table(tmp_path: Path, asked: list[dict]) -> None:
    made = describe(tmp_path, asked, ("qa", [ID_OF_IMAGE, IMAGE, QUESTION, ANSWER]))
    assert rows(made) == [
        {"image": named(picture(1)), "prefix": "answer en what?", "suffix": "red"},
        {"image": named(picture(2)), "prefix": "answer en who?", "suffix": "nobody"},
    ]
    assert (tmp_path / named(picture(2))).read_bytes() == picture(2)
    (tmp_path / "asked.csv").write_text("id,question,answer\n1,a,b\n1,c,d\n")
    assert [code for code, _ in rows(made)] == ["value_wrong", "value_missing"]
    assert "'asked' has several records for '1'" in rows(made)[0][1]


def test_the_command_writes_rows_that_prepare_data_takes(tmp_path: Path, asked: list[dict]) -> None:
    made = describe(tmp_path, asked, ("qa", [ID_OF_IMAGE, IMAGE, QUESTION, ANSWER]))
    flags = ("--prefix", "ask {question}", "--suffix", "{answer} {id}", "--answers", "answer")
    done = run_convert(tmp_path / "out/rows.jsonl", "croissant", "--description", made, *flags)
    assert done.exit_code == 0, done.words
    assert [json.loads(line)["suffix"] for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()] == [
        "red 1",
        "nobody 2",
    ]
    assert "2 records read: 2 used, 0 skipped" in done.words
    assert (tmp_path / "out" / named(picture(1))).is_file()


def test_names_of_images_may_be_made_of_fields(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps({"annotations": [{"image_id": 7, "caption": "A"}, {"image_id": 8}, {"caption": "B"}]})
    )
    ids = field("c/image_id", "sc:Integer", "a", "jsonPath", "$.annotations[*].image_id")
    captions = field("c/caption", "sc:Text", "a", "jsonPath", "$['annotations'][*]['caption']")
    made = describe(tmp_path, [file("a", "a.json", "application/json")], ("c", [ids, captions]))
    found = rows(made, image="{image_id:04d}.png")
    assert found[0] == {"image": "0007.png", "prefix": "caption en", "suffix": "A"}
    assert [code for code, _ in found[1:]] == ["value_missing", "value_missing"]


def test_pictures_beside_the_description_stay_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "train/cat").mkdir(parents=True)
    (tmp_path / "train/cat/1.png").write_bytes(picture(1))
    (tmp_path / "train/cat/1.txt").write_text("no picture")
    (tmp_path / "secret.png").write_bytes(picture(9))
    (tmp_path / "train/cat/link.png").symlink_to(tmp_path / "secret.png")
    label = field("p/label", "sc:Text", "images", "fileProperty", "fullpath", t={"regex": r"train/(\w+)/"})
    image = field("p/image", "sc:ImageObject", "images", "fileProperty", "content")
    made = describe(tmp_path / "train", [file_set("images", "*.png")], ("p", [image, label]))
    assert rows(made, suffix="{label}") == [{"image": "cat/1.png", "prefix": "caption en", "suffix": "cat/1.png"}]
    assert rows(made, tmp_path, suffix="x") == [{"image": "train/cat/1.png", "prefix": "caption en", "suffix": "x"}]


def test_parquet_of_hugging_face_in_a_repository_that_is_cloned(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    clone = tmp_path / "clone/default/train"
    clone.mkdir(parents=True)
    images = [{"bytes": picture(n), "path": f"{n}.png"} for n in (1, 2)]
    parquet.write_table(
        pyarrow.table({"image": images, "question": ["q", None], "answers": [["a", "b", "b"], ["c"]]}), clone / "0.parquet"
    )
    repo = file(
        "repo", "https://huggingface.co/datasets/a/b/tree/refs%2Fconvert%2Fparquet", "git+https", sha256="https://no/hash"
    )
    files = [repo, file_set("parquet", ["default/*/*.parquet"], "repo", kind="application/x-parquet")]
    image = field("default/image", "sc:ImageObject", "parquet", "column", "image", t={"jsonPath": "bytes"})
    split = field(
        "default/split",
        "sc:Text",
        "parquet",
        "fileProperty",
        "fullpath",
        t={"regex": "default/(?:partial-)?(train)/.+parquet$"},
    )
    question = field("default/question", "sc:Text", "parquet", "column", "question")
    answers = field("default/answers", "sc:Text", "parquet", "column", "answers", repeated=True)
    splits = {"@type": "cr:RecordSet", "@id": "splits", "field": [], "data": [{"splits/name": "train"}]}
    made = describe(tmp_path, files, ("default", [split, question, answers, image]))
    value = json.loads(made.read_text())
    made.write_text(json.dumps({**value, "recordSet": [splits, *value["recordSet"]]}))
    with pytest.raises(InputError, match=r"(?s)'repo' is a git repository.*--files repo=FOLDER"):
        rows(made, answers=("answers",))
    found = rows(made, files={"repo": tmp_path / "clone"}, answers=("answers",), prefix="{split}: {question}")
    assert found[0] == {"image": named(picture(1)), "prefix": "train: q", "suffix": "b", "answers": ["a", "b", "b"]}
    assert found[1][0] == "value_missing"


def test_fields_of_fields_and_lists_in_a_text(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"im": "1.png", "all": "x;y"}\n{"im": "2.png", "all": "z"}\nnot JSON\n')
    image = field("a/im", "sc:Text", "t", "column", "im")
    listed = field("a/all", "sc:Text", "t", "column", "all", t=[{"separator": ";"}])
    again = {"@id": "b/image", "source": {"field": {"@id": "a/im"}}}
    both = {"@id": "b/all", "source": {"field": {"@id": "a/all"}}}
    made = describe(tmp_path, [file("t", "t.jsonl", "application/jsonlines")], ("a", [image, listed]), ("b", [again, both]))
    found = rows(made, record_set="b", image="image", answers=("all",))
    assert [one.get("answers") for one in found[:2]] == [["x", "y"], ["z"]]
    assert found[2][0] == "json_invalid"
    with pytest.raises(
        InputError, match=r"(?s)has 2 record sets.*--record-set NAME, one of: a im \(Text\), all \(Text\); b image \(Text\)"
    ):
        rows(made)


def test_a_tar_file_that_is_packed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name, data in (("../x/1.png", picture(1)), ("t.csv", b"word\nhello\n")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    files = [file("tar", "a.tar.gz", "application/x-tar"), file_set("images", "x/*", "tar"),
             file("t", "t.csv", containedIn={"@id": "tar"})]  # fmt: skip
    word = field("w/word", "sc:Text", "t", "column", "word")
    image = field("i/image", "sc:ImageObject", "images", "fileProperty", "content")
    name = field("i/name", "sc:Text", "images", "fileProperty", "fullpath")
    made = describe(tmp_path, files, ("w", [word]), ("i", [image, name]))
    assert rows(made) == [{"image": named(picture(1)), "prefix": "caption en", "suffix": "x/1.png"}]
    assert rows(made, record_set="w", image="{word}.png", suffix="{word}")[0]["suffix"] == "hello"
    assert not (tmp_path.parent / "x").exists()


IMAGE_OF_T = field("r/image", "sc:ImageObject", "t", "column", "image")
TEXT_OF_T = field("r/text", "sc:Text", "t", "column", "text")

WRONG: list[tuple[dict, str]] = [
    ({"contentUrl": "../secret.csv"}, r"'t' is at '\.\./secret\.csv'"),
    ({"contentUrl": "/etc/passwd"}, "'t' is at '/etc/passwd'"),
    ({"contentUrl": "link.csv"}, "leads out of the folder"),
    ({"contentUrl": "none.csv"}, r"There is no .*none\.csv"),
    ({"contentUrl": ""}, "it is empty"),
    ({"contentUrl": 7}, "There is no .*7"),
    ({"contentUrl": "http://a.org/t.csv"}, "'t' is not on https"),
    ({"contentUrl": "ftp://a.org/t.csv"}, "'t' is not on https"),
    ({"contentUrl": "gs://b/t.csv"}, "'t' is not on https"),
    ({"contentUrl": "https://a.org/t.csv"}, "'t' has no sha256"),
    ({"contentUrl": "https://127.0.0.1/t.csv", "sha256": "a" * 64}, "not on the internet"),
    ({"contentUrl": "https://169.254.169.254/t.csv", "sha256": "a" * 64}, "link-local"),
    ({"containedIn": {"@id": "t"}}, "'t' is contained in itself"),
    ({"containedIn": {"@id": "none"}}, "lists no file 'none'"),
    ({"containedIn": {"@id": "u"}}, "The archive cannot be read"),
    ({"@type": "cr:FileSet", "includes": "*.none"}, "The files of 't' are not there"),
    ({"@type": "cr:FileSet", "includes": [7]}, "'includes' of 't' is no pattern"),
    ({"@type": "cr:FileSet", "includes": "*a" * 20}, "'includes' of 't' is no pattern"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), WRONG, ids=range(len(WRONG)))
def test_a_file_that_is_not_to_be_read_is_refused(tmp_path: Path, change: dict, words: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    for path in (tmp_path / "secret.csv", inside / "t.csv", inside / "u.csv"):
        path.write_text("image,text\n1.png,a\n")
    (inside / "link.csv").symlink_to(tmp_path / "secret.csv")
    files = [{**file("t", "t.csv"), **change}, file("u", "u.csv")]
    made = describe(inside, files, ("r", [IMAGE_OF_T, TEXT_OF_T]))
    with pytest.raises(InputError, match=words):
        rows(made)


def test_a_file_with_another_hash_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,text\n1.png,a\n")
    right = hashlib.sha256((tmp_path / "t.csv").read_bytes()).hexdigest()
    made = describe(tmp_path, [file("t", "t.csv", sha256=right.upper())], ("r", [IMAGE_OF_T, TEXT_OF_T]))
    assert rows(made) == [{"image": "1.png", "prefix": "caption en", "suffix": "a"}]
    with (tmp_path / "t.csv").open("a") as table:
        table.write("2.png,b\n")
    with pytest.raises(DamagedError, match=f"expected: sha256 {right}"):
        rows(made)


def test_what_the_user_names_may_be_anywhere(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "elsewhere.csv").write_text("image,text\n1.png,a\n")
    made = describe(tmp_path / "d", [file("t", "http://a.org/t.csv")], ("r", [IMAGE_OF_T, TEXT_OF_T]))
    assert len(rows(made, files={"t": tmp_path / "elsewhere.csv"})) == 1
    for files, words in (({"x": tmp_path}, "There is no 'x' in the description"), ({"t": tmp_path / "no"}, "There is no .*no")):
        with pytest.raises(InputError, match=words):
            rows(made, files=files)
    for text in ("t", "=a", "t="):
        done = run_convert(tmp_path / "rows.jsonl", "croissant", "--description", made, "--files", text)
        assert (done.exit_code, f"{text!r} names no file" in done.words) == (2, True)


SETS: list[tuple[list[dict], dict, str]] = [
    ([IMAGE_OF_T], {}, "not clear which field of 'r' is the suffix"),
    ([TEXT_OF_T], {}, "'r' has 0 fields with images"),
    ([IMAGE_OF_T, {**IMAGE_OF_T, "@id": "r/other"}, TEXT_OF_T], {}, "'r' has 2 fields with images"),
    ([IMAGE_OF_T, TEXT_OF_T], {"suffix": "{tex}"}, "(?s)no field 'tex'.*did you mean 'text'"),
    ([IMAGE_OF_T, TEXT_OF_T], {"record_set": "s"}, "There is no record set 's'"),
    ([IMAGE_OF_T, TEXT_OF_T], {"suffix": "{"}, "cannot be filled in"),
    ([IMAGE_OF_T, {**TEXT_OF_T, "source": {"field": {"@id": "r/text"}}}], {}, "its source is a circle"),
    ([IMAGE_OF_T, {**TEXT_OF_T, "source": 7}], {}, "it has no source"),
    ([IMAGE_OF_T, {**TEXT_OF_T, "source": {"fileObject": {"@id": "x"}}}], {}, "'x' is no file that is listed"),
    ([IMAGE_OF_T, field("r/text", "sc:Text", "t", "fileProperty", "owner")], {}, "fileProperty 'owner'"),
    ([IMAGE_OF_T, field("r/text", "sc:Text", "t", "jsonPath", "$..a")], {}, "more than names, numbers"),
    ([IMAGE_OF_T, field("r/text", "sc:Text", "t", "jsonPath", "$[*].a")], {}, "are extracted in 2 ways, column, jsonPath"),
    ([IMAGE_OF_T, field("r/text", "sc:Text", "t", "column", "text", t={"regex": "(a+)+$"})], {}, "may take for ever"),
    ([IMAGE_OF_T, field("r/text", "sc:Text", "t", "column", "text", t={"regex": "("})], {}, "is none"),
    ([IMAGE_OF_T, field("r/text", "sc:Text", "t", "column", "text", t={"replace": "a"})], {}, "transformed by replace"),
    ([IMAGE_OF_T, field("r/text", "sc:Text", "t", "column", "txt")], {}, "no column 'txt'|column"),
    ([IMAGE_OF_T, field("r/text", "sc:Text", "u", "column", "text")], {}, "does not join: 't', 'u'"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "choice", "words"), SETS, ids=range(len(SETS)))
def test_what_is_not_clear_or_not_read_is_said(tmp_path: Path, fields: list[dict], choice: dict, words: str) -> None:
    for name in ("t.csv", "u.csv"):
        (tmp_path / name).write_text("image,text\n1.png,a\n")
    made = describe(tmp_path, [file("t", "t.csv"), file("u", "u.csv")], ("r", fields))
    with pytest.raises(InputError, match=words):
        rows(made, **choice)


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "{", '{"recordSet": 7}', "[" * 100_000, '{"a": 1, "a": 2}', '{"recordSet": []}']
)
def test_what_is_no_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError):
        rows(tmp_path / "m.json")


def test_odd_parts_of_a_description_leave_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,text\n1.png,a\n")
    made = describe(tmp_path, [file("t", "t.csv")], ("r", [IMAGE_OF_T, TEXT_OF_T]))
    value = json.loads(made.read_text())

    def places(at: object, way: tuple = ()) -> list[tuple]:
        inner = at.items() if isinstance(at, dict) else enumerate(at) if isinstance(at, list) else ()
        return [way, *(place for key, one in inner for place in places(one, (*way, key)))]

    for way in places(value)[1:]:
        for odd in (None, 7, "x", [], {}, [None], {"@id": 7}, [["a"]], True, "\u0000", "../.."):
            copy = json.loads(json.dumps(value))
            at = copy
            for key in way[:-1]:
                at = at[key]
            at[way[-1]] = odd
            (tmp_path / "odd.json").write_text(json.dumps(copy))
            try:
                rows(tmp_path / "odd.json")
            except (InputError, DamagedError):
                continue


def test_a_picture_that_unpacks_to_gigabytes_costs_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paligemma.data.convert.croissant_files.FoundFile.read.__defaults__", (1 << 20,))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(1 << 24))
        archive.writestr("2.png", picture(2))
    image = field("i/image", "sc:ImageObject", "images", "fileProperty", "content")
    made = describe(tmp_path, [file("zip", "a.zip"), file_set("images", "*.png", "zip")], ("i", [image]))
    found = rows(made, suffix="x")
    assert found[0] == ("file_unreadable", "'1.png' has more than 1048576 bytes")
    assert found[1]["image"] == named(picture(2))


@pytest.mark.parametrize(
    ("expression", "tried"),
    [
        (r"ai2d/(?:partial-)?(lite)/.+parquet$", True),
        (r"(.+)/.+/.+\.parquet", True),
        (r"^(train|val|test)2014/.*\.jpg$", True),
        (r"([^\/]*)\.jpg", True),
        (r"[)*+]+x", True),
        (r"(a+)+$", False),
        (r"(a|a)*$", False),
        (r"(a){9}", False),
        (r"a?a?a?a?a?a?a?a?a?a?aaaaaaaaaa", False),
        (r".*.*.*.*x", False),
        (r"(a*)\1b", False),
        (r"[", False),
        ("a" * 501, False),
    ],
)
def test_an_expression_that_may_take_for_ever_is_not_tried(expression: str, tried: bool) -> None:
    assert (not _expression_fault(expression)) == tried
    if tried:
        start = time.process_time()
        for text in ("a" * 500, "/" * 500, "ai2d/lite/" + "." * 490, "a/" * 250):
            re.match(expression, text)
        assert time.process_time() - start < 5


def test_steps_of_json_paths() -> None:
    assert _steps("$.a[*]['b c'][3].d") == ["a", None, "b c", 3, "d"]
    assert _steps("bytes") == ["bytes"]
    assert _steps("$") == []
    for path in ("$..a", "$.a[?(@.b)]", "$.a[-1]", "$.a[1:2]", "$.a.", "$['a", "$" + ".a" * (MOST_DEPTH + 1)):
        assert _steps(path) is None


def test_a_pipe_is_no_file_of_a_data_set(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    image = field("i/image", "sc:ImageObject", "images", "fileProperty", "content")
    made = describe(tmp_path, [file_set("images", "*.png")], ("i", [image]))
    with pytest.raises(InputError, match="are not there"):
        rows(made, suffix="x")
