"""`paligemma convert table --masks`: a column of PNG pictures of masks, as bytes and as paths."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from converting import Conversion, run_convert
from PIL import Image
from published_forms import PICTURE, write_one
from pyarrow import parquet

from paligemma.data.run_lengths import read_runs

VALUES = np.zeros((30, 40), np.uint8)
VALUES[6:24, 10:20], VALUES[6:24, 20:30], VALUES[0, :] = 1, 2, 255
CLASSES = {"1": "cat", "2": "dog"}


def png(values: np.ndarray, kind: str = "PNG") -> bytes:
    packed = io.BytesIO()
    Image.fromarray(values).save(packed, kind)
    return packed.getvalue()


PHOTO = png(np.full((30, 40, 3), 90, np.uint8))
ROW = {"image": {"bytes": PHOTO, "path": None}, "annotation": {"bytes": png(VALUES), "path": "a.png"}, "text": "the cat"}


def convert(folder: Path, codes: Path, rows: list[dict], *flags: object) -> Conversion:
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "t.parquet")
    write_one(folder / "classes.json", CLASSES)
    flags = ("--table", folder / "t.parquet", "--masks", "annotation", "--mask-codes", codes, *flags)
    return run_convert(folder / "out.jsonl", "table", *flags)


def covered(done: Conversion) -> list[tuple[str, list]]:
    return [(row["prefix"], read_runs(row["masks"][0]).tolist()) for row in done.rows]


def test_a_column_of_masks_makes_a_row_for_each_class(tmp_path: Path, codes: Path) -> None:
    done = convert(tmp_path, codes, [ROW], "--classes", tmp_path / "classes.json")
    assert covered(done) == [("segment cat", (VALUES == 1).tolist()), ("segment dog", (VALUES == 2).tolist())]
    assert done.codes == ["label_void"]
    assert (tmp_path / done.rows[0]["image"]).read_bytes() == PHOTO
    assert done.rows[0]["round_trip_iou"] > 0.85


def test_a_label_may_be_a_column(tmp_path: Path, codes: Path) -> None:
    """As of referring expressions with a mask each: all that is not 0."""
    rows = [ROW, ROW | {"text": "the dog", "annotation": {"bytes": png(VALUES == 2), "path": None}}]
    done = convert(tmp_path, codes, rows, "--label", "{text}")
    assert covered(done) == [("segment the cat", (VALUES > 0).tolist()), ("segment the dog", (VALUES == 2).tolist())]


def test_pictures_may_be_named_by_a_table_of_any_kind(tmp_path: Path, codes: Path) -> None:
    write_one(tmp_path / "photos/7.png", PICTURE)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/7_mask.png").write_bytes(png(VALUES))
    write_one(tmp_path / "classes.json", CLASSES)
    flags = ("--classes", tmp_path / "classes.json", "--mask-codes", codes, "--image", "photos/{id}.png")
    for name, content in (("t.csv", "id,mask\n7,masks/7_mask.png\n"), ("t.jsonl", '{"id": 7, "mask": "masks/7_mask.png"}\n')):
        write_one(tmp_path / name, content)
        for masks in ("mask", "masks/{id}_mask.png"):
            done = run_convert(tmp_path / "out.jsonl", "table", "--table", tmp_path / name, "--masks", masks, *flags)
            assert [(row["image"], row["prefix"]) for row in done.rows] == [
                ("photos/7.png", "segment cat"),
                ("photos/7.png", "segment dog"),
            ]


ODD = [
    # changes to the row | codes | words
    ({"annotation": None}, ["value_missing"], "there is no image"),
    ({"annotation": {"bytes": b"no picture", "path": None}}, ["mask_file_unreadable"], "images/"),
    ({"annotation": {"bytes": png(VALUES, "JPEG"), "path": None}}, ["mask_file_unreadable"], "does not keep values exactly"),
    ({"annotation": {"bytes": None, "path": "gone.png"}}, ["mask_file_missing"], "gone.png"),
    ({"annotation": {"bytes": None, "path": "../../etc/passwd"}}, ["mask_file_missing"], "passwd"),
    ({"annotation": {"bytes": png(VALUES[:, :20]), "path": None}}, ["size_disagrees"], "is 40 x 30"),
    ({"annotation": {"bytes": png(VALUES * 0), "path": None}}, [], "1 pictures of masks with nothing but background"),
    ({"image": None}, ["value_missing"], "there is no image"),
    ({"text": None}, ["value_missing"], "'text' is empty"),
    ({"text": "a;b"}, ["category_unnamed"], "'a;b'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "found", "words"), ODD, ids=range(len(ODD)))
def test_every_odd_row_is_skipped_with_its_reason(
    tmp_path: Path, codes: Path, changes: dict, found: list[str], words: str
) -> None:
    done = convert(tmp_path, codes, [ROW, ROW | changes], "--label", "{text}")
    assert (len(done.rows), done.codes) == (1, found)
    assert words in done.words + json.dumps(done.skipped)


FLAGS = [
    (("--label", "x", "--prefix", "p"), "take no --prefix"),
    (("--label", "x", "--answers", "text"), "take no --prefix"),
    ((), "Masks need names"),
    (("--label", "a;b"), "cannot name a class"),
    (("--label", "{text"), "cannot be filled in"),
    (("--label", "{gone}"), "'gone'"),
]


@pytest.mark.parametrize(("flags", "words"), FLAGS)
def test_flags_that_do_not_fit_are_refused(tmp_path: Path, codes: Path, flags: tuple, words: str) -> None:
    done = convert(tmp_path, codes, [ROW], *flags)
    assert (done.exit_code, words in done.words, done.rows) == (2, True, [])


def test_masks_and_their_weights_need_each_other(tmp_path: Path, codes: Path) -> None:
    convert(tmp_path, codes, [ROW], "--label", "x")
    for flags, words in (
        (("--masks", "annotation", "--label", "x"), "need --masks and --mask-codes"),
        (("--mask-codes", codes, "--label", "x"), "need --masks and --mask-codes"),
        (("--label", "x"), "name the classes of masks"),
    ):
        done = run_convert(tmp_path / "out.jsonl", "table", "--table", tmp_path / "t.parquet", *flags)
        assert (done.exit_code, words in done.words) == (2, True)
