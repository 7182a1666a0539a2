"""`paligemma convert table` on folders: Hugging Face data sets saved on disk, Parquet files, and WebDataset's tar files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from converting import Conversion, run_convert
from PIL import Image
from pyarrow import ipc, parquet

from components.prepare_data.__main__ import run as prepare

FEATURES = {
    "image": {"_type": "Image"},
    "question": {"dtype": "string", "_type": "Value"},
    "answers": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
    "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
}


def picture(level: int) -> bytes:
    packed = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 2 * level, 3)).save(packed, "PNG")
    return packed.getvalue()


def table(*levels: int) -> pyarrow.Table:
    rows = [
        {
            "image": {"bytes": picture(level), "path": f"{level}.png"},
            "question": "how many?",
            "answers": ["2", "two", "2"],
            "label": level % 2,
        }
        for level in levels
    ]
    kinds = {"image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}), "question": pyarrow.string()}
    kinds |= {"answers": pyarrow.list_(pyarrow.string()), "label": pyarrow.int64()}
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    return pyarrow.Table.from_pylist(rows, pyarrow.schema(kinds, metadata=metadata))


def save(folder: Path, *parts: tuple[int, ...], **state: object) -> Path:
    """A data set as `Dataset.save_to_disk` writes it: Arrow streams and `state.json`."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(parts):05d}.arrow" for number in range(len(parts))]
    for name, levels in zip(names, parts, strict=True):
        made = table(*levels)
        with ipc.new_stream(folder / name, made.schema) as writer:
            writer.write_table(made, max_chunksize=2)
    said = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "a1",
        "_format_type": None,
        "_split": "train",
    }
    (folder / "state.json").write_text(json.dumps(said | state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    return folder


ASK = ("--prefix", "answer en {question}", "--answers", "answers")


def convert(folder: Path, source: Path, *flags: str) -> Conversion:
    return run_convert(folder / "out.jsonl", "table", "--table", source, *(flags or ASK))


def test_a_data_set_saved_on_disk_is_read_and_prepared(tmp_path: Path) -> None:
    done = convert(tmp_path, save(tmp_path / "set", (1, 2, 3), (4,)))
    assert [(row["prefix"], row["suffix"], row["answers"]) for row in done.rows] == [
        ("answer en how many?", "2", ["2", "two", "2"])
    ] * 4
    assert [(tmp_path / row["image"]).read_bytes() for row in done.rows] == [picture(level) for level in (1, 2, 3, 4)]
    assert "4 rows read: 4 used, 0 skipped" in done.words
    prepare(data=str(tmp_path / "out.jsonl"), checkpoint="embedded:tiny", output=str(tmp_path / "records"), workers=1)
    assert json.loads((tmp_path / "records/dataset.json").read_text())["rows"] == 4


def test_numbers_of_classes_become_their_names(tmp_path: Path) -> None:
    done = convert(tmp_path, save(tmp_path / "set", (1, 2)), "--prefix", "what?", "--suffix", "{label}")
    assert [row["suffix"] for row in done.rows] == ["dog", "cat"]


def test_an_arrow_file_and_a_folder_of_parquet_files_are_tables_too(tmp_path: Path) -> None:
    made = table(1, 2)
    with ipc.new_file(tmp_path / "a.arrow", made.schema) as writer:
        writer.write_table(made)
    (tmp_path / "data").mkdir()
    for number, levels in enumerate(((1,), (2,))):
        parquet.write_table(table(*levels), tmp_path / f"data/train-{number:05d}-of-00002.parquet")
    for source in (tmp_path / "a.arrow", tmp_path / "data"):
        assert [row["suffix"] for row in convert(tmp_path, source).rows] == ["2", "2"]


ODD_FOLDERS = [
    # files of a folder | words
    ({}, "The folder has no table"),
    ({"dataset_dict.json": {"splits": ["train", "test"]}}, "name one of them: --table"),
    ({"dataset_dict.json": [1]}, "The list of splits cannot be read"),
    ({"state.json": {}}, "names no files"),
    ({"state.json": {"_data_files": [{"filename": "../x.arrow"}]}}, "names '../x.arrow'"),
    ({"state.json": {"_data_files": [{"filename": "/etc/passwd"}]}}, "names '/etc/passwd'"),
    ({"state.json": {"_data_files": [7]}}, "names nothing"),
    ({"state.json": {"_data_files": [{"filename": "no.arrow"}]}}, "cannot be read after row 0"),
    ({"state.json": {"_data_files": [{"filename": "state.json"}]}}, "cannot be read after row 0"),
    ({"state.json": {"_indices_data_files": [{"filename": "indices.arrow"}]}}, "flatten_indices()"),
    ({"a.parquet": {}, "a.tar": {}}, "has both Parquet and tar files"),
    ({"a.tar": {}}, "The tar file cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "words"), ODD_FOLDERS, ids=range(len(ODD_FOLDERS)))
def test_other_folders_are_refused_in_words(tmp_path: Path, files: dict[str, object], words: str) -> None:
    (tmp_path / "set").mkdir()
    for name, value in files.items():
        (tmp_path / "set" / name).write_text(json.dumps(value))
    done = convert(tmp_path, tmp_path / "set")
    assert (done.exit_code, words in done.words) == (2, True)


def test_a_column_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    done = convert(tmp_path, save(tmp_path / "set", (1,)), "--prefix", "{questions}", "--suffix", "x")
    assert "did you mean 'question'" in done.words


def test_damaged_arrow_files_never_end_in_a_traceback(tmp_path: Path) -> None:
    whole = (save(tmp_path / "set", (1, 2, 3)) / "data-00000-of-00001.arrow").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for place in random.integers(0, len(data), random.integers(1, 5)):
            data[place] = random.integers(0, 256)
        (tmp_path / "set/data-00000-of-00001.arrow").write_bytes(data[: random.integers(len(data) // 2, len(data) + 1)])
        done = convert(tmp_path, tmp_path / "set")
        assert done.exit_code in (0, 2, 3)


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path.parent


def test_samples_of_webdataset_are_rows_and_their_pictures_stay_where_they_are(tmp_path: Path) -> None:
    described = json.dumps({"caption": "a cat", "tags": ["x", "y"]}).encode()
    shards = shard(tmp_path / "shards/00000.tar", [("a/1.jpg", picture(1)), ("a/1.json", described), ("a/1.txt", b"one")])
    shard(tmp_path / "shards/00001.tar", [("2.cls", b"7"), ("2.seg.png", picture(9)), ("2.json", described), ("2.txt", b"two")])
    done = convert(tmp_path, shards, "--prefix", "caption en", "--suffix", "{txt}: {json[caption]}, {json[tags][1]}")
    assert [(row["image"], row["suffix"]) for row in done.rows] == [
        ("shards/00000.tar/a/1.jpg", "one: a cat, y"),
        ("shards/00001.tar/2.seg.png", "two: a cat, y"),
    ]
    prepare(data=str(tmp_path / "out.jsonl"), checkpoint="embedded:tiny", output=str(tmp_path / "records"), workers=1)
    assert json.loads((tmp_path / "records/dataset.json").read_text())["rows"] == 2


ODD_SAMPLES = [
    # the files of a sample | code of its skip
    ([("1.txt", b"x")], "column_missing"),
    ([("1.jpg", b"")], "column_missing"),
    ([("1.jpg", b""), ("1.txt", b"")], "suffix_empty"),
    ([("1.jpg", b""), ("1.txt", b"\xff\xfe")], "value_wrong"),
    ([("1.jpg", b""), ("1.txt", b"x" * ((1 << 20) + 1))], "line_too_long"),
    ([("../1.jpg", b""), ("../1.txt", b"x")], "image_path_unsafe"),
    ([("1.jpg", b""), *((f"1.{n}.bin", b"") for n in range(99)), ("1.txt", b"x")], "value_wrong"),
    ([("1.jpg", b""), ("1.json", b"{" * 9000), ("1.txt", b"x")], None),  # the JSON is not asked for
]  # fmt: skip


@pytest.mark.parametrize(("members", "code"), ODD_SAMPLES, ids=range(len(ODD_SAMPLES)))
def test_every_odd_sample_is_skipped_with_its_reason(
    tmp_path: Path, members: list[tuple[str, bytes]], code: str | None
) -> None:
    shards = shard(tmp_path / "shards/0.tar", members)
    done = convert(tmp_path, shards, "--prefix", "caption en", "--suffix", "{txt}")
    assert done.codes == ([code] if code else [])
    assert len(done.rows) == (code is None)


def test_json_of_a_sample_that_cannot_be_read_is_skipped_where_it_is_asked_for(tmp_path: Path) -> None:
    shards = shard(tmp_path / "shards/0.tar", [("1.jpg", b""), ("1.json", b'{"a": 1, "a": 2}')])
    done = convert(tmp_path, shards, "--prefix", "caption en", "--suffix", "{json[a]}")
    assert (done.codes, "the key 'a' is there twice" in done.skipped[0]["message"]) == (["value_wrong"], True)
