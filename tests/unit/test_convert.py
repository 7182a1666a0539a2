"""Published data sets to rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from paligemma.data.checks import text_warnings
from paligemma.data.convert import (
    box_text,
    coco_captions,
    coco_detection,
    labelled_folder,
    table_rows,
    vqav2,
    write_rows,
)
from paligemma.errors import InputError


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_coco_captions(tmp_path: Path) -> None:
    images = [{"id": 9, "file_name": "000000000009.jpg"}]
    captions = [{"image_id": 9, "caption": " Two dogs.\n"}, {"image_id": 9, "caption": "Dogs"}]
    path = write(tmp_path / "x.json", {"images": images, "annotations": captions})
    assert list(coco_captions(path, "caption en")) == [
        {"image": "000000000009.jpg", "prefix": "caption en", "suffix": "Two dogs."},
        {"image": "000000000009.jpg", "prefix": "caption en", "suffix": "Dogs"},
    ]


def test_coco_boxes_become_locations_in_paligemmas_order(tmp_path: Path) -> None:
    data = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 200, "height": 100},
            {"id": 2, "file_name": "b.jpg", "width": 1, "height": 1},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 8, "name": "cat"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [50, 20, 100, 80]},
            {"image_id": 1, "category_id": 8, "bbox": [0, 0, 200, 100]},
            {"image_id": 2, "category_id": 8, "bbox": [0, 0, 1, 1], "iscrowd": 1},
        ],
    }  # fmt: skip
    (row,) = coco_detection(write(tmp_path / "x.json", data))
    assert row["prefix"] == "detect cat ; dog"
    assert row["suffix"] == ("<loc0000><loc0000><loc1023><loc1023> cat ; <loc0205><loc0256><loc1023><loc0767> dog")
    assert list(text_warnings(row["suffix"])) == []


def test_boxes_beyond_the_image_end_at_its_edge() -> None:
    assert box_text(-0.1, 0, 1.2, 0.5) == "<loc0000><loc0000><loc1023><loc0512>"


def test_vqav2_has_the_answer_most_people_gave(tmp_path: Path) -> None:
    questions = write(tmp_path / "q.json", {"questions": [{"question_id": 5, "question": "How many?"}]})
    answers = [{"answer": answer} for answer in ("3", "2", "2")]
    annotations = write(tmp_path / "a.json", {"annotations": [{"question_id": 5, "image_id": 42, "answers": answers}]})
    assert list(vqav2(questions, annotations, "COCO_val2014_{:012d}.jpg")) == [
        {"image": "COCO_val2014_000000000042.jpg", "prefix": "answer en How many?", "suffix": "2", "answers": ["3", "2", "2"]}
    ]


def test_a_csv_table_with_texts_made_of_columns(tmp_path: Path) -> None:
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "q", "a"], ["a.png", "what, then?", "two\nlines"]])
    assert list(table_rows(tmp_path / "x.csv", tmp_path, "file", "answer en {q}", "{a}")) == [
        {"image": "a.png", "prefix": "answer en what, then?", "suffix": "two\nlines"}
    ]
    with pytest.raises(InputError, match="did you mean 'file'"):
        list(table_rows(tmp_path / "x.csv", tmp_path, "fil", "", ""))
    with pytest.raises(InputError, match="cannot be filled in"):
        list(table_rows(tmp_path / "x.csv", tmp_path, "file", "{question}", "{a}"))


def test_a_parquet_table_as_hugging_face_writes_it(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"image": {"bytes": b"png", "path": None}, "text": "t"}] * 2
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    converted = list(table_rows(tmp_path / "x.parquet", tmp_path, "image", "caption en", "{text}"))
    assert converted[0] == converted[1]
    assert (tmp_path / converted[0]["image"]).read_bytes() == b"png"


def test_a_folder_of_labels(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "dog/big/2.PNG", "dog/notes.txt", "3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [(row["image"], row["suffix"]) for row in labelled_folder(tmp_path, "p")] == [
        ("cat/1.jpg", "cat"),
        ("dog/big/2.PNG", "big"),
    ]


def test_rows_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    assert write_rows(tmp_path / "x.jsonl", [{"image": "a", "prefix": "é", "suffix": "s"}]) == 1
    with pytest.raises(InputError, match="nothing to convert"):
        write_rows(tmp_path / "x.jsonl", [])
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"image": "a", "prefix": "é", "suffix": "s"}


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"images": []}'])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match="annotations"):
        list(coco_captions(tmp_path / "x.json", "p"))
