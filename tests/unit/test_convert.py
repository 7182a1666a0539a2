"""`paligemma convert` on COCO's and VQA's files and on folders: odd entries are skipped and counted, never a traceback."""

from __future__ import annotations

import inspect
import json
import re
from gzip import compress
from pathlib import Path

import pytest
from converting import VALUES, Conversion, assert_accounted, places, run_convert, with_value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paligemma.data import convert as package
from paligemma.data.convert.outcomes import MAX_REJECT_FRACTION
from paligemma.data.convert.reasons import NOTES, ON_PURPOSE, REASONS
from paligemma.data.image_suffixes import SUFFIXES
from paligemma.data.images import FORMATS

MISSING = object()
IMAGES = [
    {"id": 1, "file_name": "a.jpg", "width": 200, "height": 100},
    {"id": "b", "file_name": "b.jpg", "width": 10, "height": 10},
]
CATEGORIES = [
    {"id": 0, "name": "cat"},
    {"id": 7, "name": "dog", "supercategory": "animal"},
    {"id": 8, "name": "a;b"},
    {"id": 9},
]
BOX = {"id": 5, "image_id": 1, "category_id": 7, "bbox": [50, 20, 100, 80], "iscrowd": 0}
DOG = "<loc0205><loc0256><loc1023><loc0767> dog"


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def but(entry: dict, **changes: object) -> dict:
    return {key: value for key, value in (entry | changes).items() if value is not MISSING}


def convert_boxes(folder: Path, annotations: list, **others: object) -> Conversion:
    data = {"images": IMAGES, "categories": CATEGORIES, "annotations": annotations} | others
    return run_convert(folder / "out.jsonl", "coco-detection", "--annotations", write(folder / "x.json", data))


def convert_captions(folder: Path, annotations: list, images: list = IMAGES) -> Conversion:
    path = write(folder / "x.json", {"images": images, "annotations": annotations})
    return run_convert(folder / "out.jsonl", "coco-captions", "--annotations", path)


def convert_vqa(folder: Path, annotations: list, questions: list) -> Conversion:
    asked, answered = write(folder / "q.json", {"questions": questions}), write(folder / "a.json", {"annotations": annotations})
    name = "COCO_val2014_{:012d}.jpg"
    return run_convert(folder / "out.jsonl", "vqav2", "--questions", asked, "--annotations", answered, "--images", name)


ODD_BOXES = [
    # the annotation | its box in the row, if it is used | why not, if it is not | words
    (BOX, DOG, None, "1 annotations read: 1 used, 0 skipped"),
    (but(BOX, image_id="1"), DOG, None, "1 used"),
    (but(BOX, image_id=1.0, category_id="7"), DOG, None, "1 used"),
    (but(BOX, image_id=" 001 "), DOG, None, "1 used"),
    (but(BOX, category_id=0), DOG.replace("dog", "cat"), None, "1 used"),
    (but(BOX, bbox=["50", "20", 100.0, 80]), DOG, None, "1 used"),
    (but(BOX, iscrowd="0"), DOG, None, "1 used"),
    (but(BOX, iscrowd=MISSING), DOG, None, "1 used"),
    (but(BOX, bbox=MISSING, segmentation=[[50, 20, 150, 20, 150, 100]]), DOG, None, "1 box_from_polygon"),
    (but(BOX, bbox=[], segmentation=[[50, 20, 150, 20, 60, 60], [50, 100, 60, 90, 60, 99]]), DOG, None, "1 box_from_polygon"),
    (but(BOX, bbox=[50, 20, 100, 80.4]), DOG, None, "1 used"),  # rounding beyond the edge is no news
    (but(BOX, bbox=[50, 20, 100, 90]), DOG, None, "1 box_clipped: boxes reach beyond their image"),
    (but(BOX, bbox=[-50, -20, 300, 200]), "<loc0000><loc0000><loc1023><loc1023> dog", None, "1 box_clipped"),
    (but(BOX, bbox=[0, 0, 1e308, 1e308]), "<loc0000><loc0000><loc1023><loc1023> dog", None, "1 box_clipped"),
    (7, None, "not_an_object", "the annotation is 7"),
    (but(BOX, image_id=MISSING), None, "image_id_missing", "the id is nothing"),
    (but(BOX, image_id=True), None, "image_id_missing", "the id is True"),
    (but(BOX, image_id=1.5), None, "image_id_missing", "the id is 1.5"),
    (but(BOX, image_id=[1]), None, "image_id_missing", "the id is a list of 1"),
    (but(BOX, image_id=99), None, "image_unlisted", "1 annotations of unlisted images"),
    (but(BOX, image_id="B"), None, "image_unlisted", "there is none of id 'B'"),
    (but(BOX, category_id=MISSING), None, "category_missing", "the id is nothing"),
    (but(BOX, category_id=77), None, "category_unlisted", "there is none of id 77"),
    (but(BOX, category_id=8), None, "category_unnamed", "'a;b'"),
    (but(BOX, category_id=9), None, "category_unnamed", "category 9 is named nothing"),
    (but(BOX, iscrowd=1), None, "crowd", "left out on purpose"),
    (but(BOX, bbox=MISSING), None, "box_missing", "neither bbox nor segmentation"),
    (but(BOX, bbox=None, segmentation={"size": [1, 1], "counts": [1]}), None, "box_missing", "a mask, not polygons"),
    (but(BOX, bbox=None, segmentation=[[1, 2, 3]]), None, "box_missing", "not polygons"),
    (but(BOX, bbox=None, segmentation=[[1, 2, 1, 3, 1, 4]]), None, "box_empty", "no width"),
    (but(BOX, bbox=[1, 2, 3]), None, "box_malformed", "[1, 2, 3]"),
    (but(BOX, bbox=[1, 2, None, 3]), None, "box_malformed", "None"),
    (but(BOX, bbox=[1, 2, True, 3]), None, "box_malformed", "True"),
    (but(BOX, bbox="1 2 3 4"), None, "box_malformed", "'1 2 3 4'"),
    (but(BOX, bbox={"x": 1}), None, "box_malformed", "an object of 1"),
    (but(BOX, bbox=[float("nan"), 0, 1, 1]), None, "box_malformed", "nan"),
    (but(BOX, bbox=[0, 0, float("inf"), 1]), None, "box_malformed", "inf"),
    (but(BOX, bbox=[50, 20, 0, 80]), None, "box_empty", "zero or negative width"),
    (but(BOX, bbox=[50, 20, 100, -80]), None, "box_empty", "zero or negative width"),
    (but(BOX, bbox=[200, 20, 50, 80]), None, "box_outside", "from 200, 20 to 250, 100 in 200 x 100"),
    (but(BOX, bbox=[-60, 20, 50, 80]), None, "box_outside", "outside of the image"),
    (but(BOX, bbox=[50, 20, 0.01, 80]), None, "box_too_small", "a step is 1/1023"),
    (but(BOX, bbox=[0.25, 0.2, 0.5, 0.8]), None, "box_fraction", "these are fractions of the image"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "box", "code", "words"), ODD_BOXES)
def test_every_odd_box_is_used_or_skipped_with_its_reason(
    tmp_path: Path, annotation: object, box: str | None, code: str | None, words: str
) -> None:
    done = convert_boxes(tmp_path, [annotation])
    assert [row["suffix"] for row in done.rows] == ([box] if box else [])
    assert done.codes == ([code] if code else [])
    assert words in done.words
    assert done.exit_code == (0 if box else 2)
    for entry in done.skipped:
        assert entry["place"] == "annotations[0]"
        assert entry["id"] == (5 if isinstance(annotation, dict) else None)


ODD_IMAGES = [
    # the images | names in rows | skipped | words
    ([{"id": "1", "file_name": "a.jpg", "width": "200", "height": 100.0}], ["a.jpg"], [], "1 used"),
    ([but(IMAGES[0], id="000001")], ["a.jpg"], [], "1 used"),
    ([but(IMAGES[0], file_name=MISSING, coco_url="http://images.x/val2017/a.jpg")], ["val2017/a.jpg"], [], "1 name_from_url"),
    ([but(IMAGES[0], file_name="sub\\a.jpg")], ["sub/a.jpg"], [], "1 name_backslashes"),
    ([IMAGES[0], IMAGES[0]], ["a.jpg"], [], "1 entry_repeated"),
    ([IMAGES[0], IMAGES[1]], ["a.jpg"], [], "1 images without any annotation"),
    ([IMAGES[0], 3, {"file_name": "c.jpg"}], ["a.jpg"], [], "2 image_entry_unusable"),
    ([IMAGES[0], but(IMAGES[0], file_name="other.jpg")], [], ["image_ambiguous"], "different ones of id 1"),
    ([but(IMAGES[0], id="01"), but(IMAGES[0], id="001")], [], ["image_unlisted"], "none of id 1"),
    ([but(IMAGES[0], file_name=MISSING)], [], ["image_unnamed"], "file_name is nothing"),
    ([but(IMAGES[0], file_name=["a.jpg"])], [], ["image_unnamed"], "a list of 1"),
    ([but(IMAGES[0], file_name="a\0.jpg")], [], ["image_unnamed"], "a\\x00.jpg"),
    ([but(IMAGES[0], file_name="../a.jpg")], [], ["image_path_unsafe"], "leads out of the image folder"),
    ([but(IMAGES[0], file_name="/elsewhere/a.jpg")], [], ["image_path_unsafe"], "not relative"),
    ([but(IMAGES[0], file_name="C:\\a.jpg")], [], ["image_path_unsafe"], "not relative"),
    ([but(IMAGES[0], file_name="http://x/a.jpg")], [], ["image_path_unsafe"], "not relative"),
    ([but(IMAGES[0], file_name="a\ud800.jpg")], [], ["encoding_invalid"], "half a surrogate pair"),
    ([but(IMAGES[0], height=MISSING)], [], ["size_unknown"], "no width and height"),
    ([but(IMAGES[0], width=0)], [], ["size_unknown"], "no width and height"),
    ([but(IMAGES[0], width=-200)], [], ["size_unknown"], "no width and height"),
    ([but(IMAGES[0], width="wide")], [], ["size_unknown"], "no width and height"),
    ([], [], ["image_unlisted"], "0 images listed" and "none of id 1"),
]  # fmt: skip


@pytest.mark.parametrize(("images", "names", "codes", "words"), ODD_IMAGES)
def test_every_odd_image_entry_is_used_or_its_annotations_are_skipped(
    tmp_path: Path, images: list, names: list[str], codes: list[str], words: str
) -> None:
    done = convert_boxes(tmp_path, [BOX], images=images)
    assert ([row["image"] for row in done.rows], done.codes) == (names, codes)
    assert words in done.words


def test_an_image_with_many_boxes_is_one_row_and_only_what_is_wrong_is_left_out(tmp_path: Path) -> None:
    annotations = [
        but(BOX, id="x"),
        but(BOX, category_id=0, bbox=[0, 0, 200, 100]),
        but(BOX, id=3, bbox=[0, 0, 0, 0]),
        but(BOX, id=4, iscrowd=1),
        but(BOX, id=6, image_id="b", bbox=[0, 0, 10, 10]),
    ]
    done = convert_boxes(tmp_path, annotations)
    assert done.rows == [
        {"image": "a.jpg", "prefix": "detect cat ; dog", "suffix": f"<loc0000><loc0000><loc1023><loc1023> cat ; {DOG}"},
        {"image": "b.jpg", "prefix": "detect dog", "suffix": "<loc0000><loc0000><loc1023><loc1023> dog"},
    ]
    assert [(entry["id"], entry["code"]) for entry in done.skipped] == [(3, "box_empty"), (4, "crowd")]
    assert "5 annotations read: 3 used, 2 skipped (1 box_empty, 1 crowd)" in done.words


def test_ids_that_several_things_have_are_not_guessed(tmp_path: Path) -> None:
    categories = [{"id": 7, "name": "dog"}, {"id": "7", "name": "wolf"}]
    done = convert_boxes(tmp_path, [BOX], categories=categories)
    assert done.codes == ["category_ambiguous"]
    assert convert_boxes(tmp_path, [BOX], categories=[{"id": 7, "name": "dog"}, {"id": "07", "name": "wolf"}]).rows


ODD_CAPTIONS = [
    ({"id": 5, "image_id": 1, "caption": " Two dogs.\n"}, "Two dogs.", None, "1 used"),
    ({"id": 5, "image_id": "1", "caption": 12}, "12", None, "1 used"),
    ({"id": 5, "image_id": 1, "caption": 2.0}, "2", None, "1 used"),
    ({"id": 5, "image_id": 1, "caption": "日本"}, "日本", None, "1 used"),
    ({"id": 5, "image_id": 1}, None, "caption_missing", "the caption is nothing"),
    ({"id": 5, "image_id": 1, "caption": ["two", "dogs"]}, None, "caption_missing", "a list of 2"),
    ({"id": 5, "image_id": 1, "caption": True}, None, "caption_missing", "True"),
    ({"id": 5, "image_id": 1, "caption": float("nan")}, None, "caption_missing", "nan"),
    ({"id": 5, "image_id": 1, "caption": " \n"}, None, "suffix_empty", "nothing to learn"),
    ({"id": 5, "image_id": 1, "caption": "\ud800"}, None, "encoding_invalid", "not UTF-8"),
    ({"id": 5, "image_id": 1, "caption": "a\0b"}, None, "text_nul", "NUL"),
    ({"id": 5, "image_id": 1, "caption": "long " * 250_000}, None, "line_too_long", "1048576 at most"),
    ({"id": 5, "image_id": 2, "caption": "x"}, None, "image_unlisted", "1 annotations of unlisted images"),
    ({"id": 5, "caption": "x"}, None, "image_id_missing", "the id is nothing"),
    (None, None, "not_an_object", "the annotation is nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "suffix", "code", "words"), ODD_CAPTIONS, ids=range(len(ODD_CAPTIONS)))
def test_every_odd_caption_is_used_or_skipped_with_its_reason(
    tmp_path: Path, annotation: object, suffix: str | None, code: str | None, words: str
) -> None:
    done = convert_captions(tmp_path, [annotation])
    assert [row["suffix"] for row in done.rows] == ([suffix] if suffix else [])
    assert done.codes == ([code] if code else [])
    assert words in done.words


def test_the_name_of_an_image_in_the_image_folder_may_be_absolute(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": str(tmp_path / "photos" / "a.jpg")}]
    done = convert_captions(tmp_path, [{"image_id": 1, "caption": "x"}], images)
    assert [row["image"] for row in done.rows] == ["photos/a.jpg"]
    assert "1 name_absolute" in done.words


QUESTION = {"question_id": 5, "image_id": 42, "question": "How many?"}
ANSWERED = {"question_id": 5, "image_id": 42, "answers": [{"answer": answer} for answer in ("3", "2", "2")]}
ODD_ANSWERS = [
    (ANSWERED, QUESTION, ["3", "2", "2"], None, "1 used"),
    (but(ANSWERED, question_id="5"), but(QUESTION, question_id=5.0), ["3", "2", "2"], None, "1 used"),
    (but(ANSWERED, image_id="42"), QUESTION, ["3", "2", "2"], None, "1 used"),
    (but(ANSWERED, image_id=MISSING), QUESTION, ["3", "2", "2"], None, "1 used"),
    (ANSWERED, but(QUESTION, image_id=MISSING), ["3", "2", "2"], None, "1 used"),
    (but(ANSWERED, answers=[{"answer": 2}, {"answer": 2.0}, {"answer": 2.5}]), QUESTION, ["2", "2", "2.5"], None, "1 used"),
    (but(ANSWERED, answers=["two", "2"]), QUESTION, ["two", "2"], None, "1 used"),
    (but(ANSWERED, answers=[{"answer": None}, {"answer": "2"}, {}, 3, " "]), QUESTION, ["2", "3"], None, "3 answer_dropped"),
    (but(ANSWERED, answers=MISSING, multiple_choice_answer=2), QUESTION, ["2"], None, "1 used"),
    (but(ANSWERED, answers=[]), QUESTION, None, "answer_missing", "a list of 0"),
    (but(ANSWERED, answers=[{"answer": True}]), QUESTION, None, "answer_missing", "neither" and "a list of 1"),
    (but(ANSWERED, answers={"answer": "2"}), QUESTION, ["2"], None, "1 used"),
    (but(ANSWERED, question_id=MISSING), QUESTION, None, "question_id_missing", "the id is nothing"),
    (but(ANSWERED, question_id=6), QUESTION, None, "question_unlisted", "1 questions without an annotation"),
    (ANSWERED, but(QUESTION, question=MISSING), None, "question_missing", "question 5 has no text"),
    (ANSWERED, but(QUESTION, question_id=MISSING), None, "question_unlisted", "none of id 5"),
    (ANSWERED, 7, None, "question_unlisted", "none of id 5"),
    (but(ANSWERED, image_id=43), QUESTION, None, "image_disagrees", "image 43, the question of 42"),
    (but(ANSWERED, image_id="abc"), but(QUESTION, image_id=None), None, "image_id_missing", "'abc'"),
    (but(ANSWERED, image_id=None), but(QUESTION, image_id=None), None, "image_id_missing", "nothing"),
    ("2", QUESTION, None, "not_an_object", "'2'"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "question", "answers", "code", "words"), ODD_ANSWERS)
def test_every_odd_question_is_used_or_skipped_with_its_reason(
    tmp_path: Path, annotation: object, question: object, answers: list[str] | None, code: str | None, words: str
) -> None:
    done = convert_vqa(tmp_path, [annotation], [question])
    assert [row["answers"] for row in done.rows] == ([answers] if answers else [])
    assert all(row["image"] == "COCO_val2014_000000000042.jpg" for row in done.rows)
    assert all(row["prefix"] == "answer en How many?" for row in done.rows)
    assert done.codes == ([code] if code else [])
    assert words in done.words or code


def test_the_suffix_is_the_answer_that_most_people_gave(tmp_path: Path) -> None:
    assert [row["suffix"] for row in convert_vqa(tmp_path, [ANSWERED], [QUESTION]).rows] == ["2"]


@pytest.mark.parametrize("name", ["a.jpg", "{", "{x}.jpg", "{1}.jpg"])
def test_names_of_images_without_a_place_for_the_number_are_refused(tmp_path: Path, name: str) -> None:
    asked, answered = write(tmp_path / "q.json", {"questions": []}), write(tmp_path / "a.json", {"annotations": []})
    done = run_convert(tmp_path / "o", "vqav2", "--questions", asked, "--annotations", answered, "--images", name)
    assert done.exit_code == 2
    assert "has no place for an image's number" in done.words


ODD_FILES = [
    # a file in the place of COCO's | words | exit code
    (b"", "are empty", 2),
    (b"{", "are not JSON", 2),
    (b"[]", "are a list; is it a file of results?", 2),
    (b'{"images": [], "annotations": [], "images": [1]}', "have 'images' twice", 2),
    (b'{"images": ' + b"9" * 5000 + b"}", "are not JSON: Exceeds the limit", 2),
    (b"3", "are int, not an object", 2),
    (b'{"images": []}', "have no 'annotations'", 2),
    (b'{"images": {}, "annotations": []}', "'images' is dict", 2),
    (b'{"images": [], "annotations": []}', "no annotations in it", 2),
    (b"[" * 100_000, "nested too deeply", 2),
    (b'{"images": "caf\xe9"}', "are not UTF-8: byte 15 is 0xe9", 2),
    (b"PK\x03\x04...", "is a zip archive", 2),
    (b"BZh9", "packed with bzip2", 2),
    (compress(b'{"images": []}' * 9)[:-9], "cannot be unpacked", 3),
    (compress(b'{"images": []}'), "have no 'annotations'", 2),
]


@pytest.mark.parametrize(("content", "words", "exit_code"), ODD_FILES, ids=range(len(ODD_FILES)))
def test_other_files_are_refused_in_words(tmp_path: Path, content: bytes, words: str, exit_code: int) -> None:
    (tmp_path / "x.json").write_bytes(content)
    done = run_convert(tmp_path / "out.jsonl", "coco-captions", "--annotations", tmp_path / "x.json")
    assert words in done.words
    assert done.exit_code == exit_code


REPEATED = [
    # the image, the annotation, as JSON text | codes of what is skipped | words
    (
        '{"id": 1, "file_name": "a.jpg"}',
        '{"image_id": 1, "caption": "a cat", "caption": "a dog"}',
        "key_repeated",
        "'caption' is there twice",
    ),
    (
        '{"id": 1, "id": 2, "file_name": "a.jpg"}',
        '{"image_id": 1, "caption": "a cat"}',
        "image_unlisted",
        "images[0] is an object with 'id' twice",
    ),
]


@pytest.mark.parametrize(("image", "annotation", "code", "words"), REPEATED)
def test_an_object_with_a_key_twice_is_not_guessed_at(
    tmp_path: Path, image: str, annotation: str, code: str, words: str
) -> None:
    (tmp_path / "x.json").write_text(f'{{"images": [{image}], "annotations": [{annotation}]}}')
    done = run_convert(tmp_path / "out.jsonl", "coco-captions", "--annotations", tmp_path / "x.json")
    assert (done.rows, done.codes, words in done.words) == ([], [code], True)


def test_a_question_with_a_key_twice_is_none(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text('{"questions": [{"question_id": 1, "question": "a?", "question": "b?", "image_id": 1}]}')
    (tmp_path / "a.json").write_text('{"annotations": [{"question_id": 1, "answers": ["x"]}]}')
    done = run_convert(
        tmp_path / "out.jsonl", "vqav2", "--questions", tmp_path / "q.json", "--annotations", tmp_path / "a.json"
    )
    assert done.codes == ["question_unlisted"]
    assert "questions[0] is an object with 'question' twice" in done.words


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no.json"):
        done = run_convert(tmp_path / "out.jsonl", "coco-captions", "--annotations", path)
        assert (done.exit_code, "cannot be read" in done.words) == (2, True)


def test_a_json_file_larger_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paligemma.data.convert.files.MAX_JSON_BYTES", 20)
    done = convert_captions(tmp_path, [])
    assert "are too large" in done.words
    assert "ten times" in done.words


def test_packed_files_and_byte_order_marks_are_read_as_plain_ones_are(tmp_path: Path) -> None:
    data = json.dumps({"images": IMAGES, "annotations": [{"image_id": 1, "caption": "é"}]}, ensure_ascii=False)
    for content in (compress(data.encode()), data.encode("utf-8-sig"), data.encode("utf-16")):
        (tmp_path / "x.json").write_bytes(content)
        done = run_convert(tmp_path / "out.jsonl", "coco-captions", "--annotations", tmp_path / "x.json")
        assert [row["suffix"] for row in done.rows] == ["é"]


def test_a_conversion_fails_when_more_than_a_tenth_cannot_be_used_and_leaves_the_output_as_it_was(tmp_path: Path) -> None:
    good, bad = {"image_id": 1, "caption": "x"}, {"id": "b7", "image_id": 1}
    output, path = tmp_path / "out.jsonl", tmp_path / "x.json"
    write(path, {"images": IMAGES, "annotations": [*[good] * 9, bad]})
    done = run_convert(output, "coco-captions", "--annotations", path, limit=MAX_REJECT_FRACTION)
    assert (done.exit_code, len(done.rows)) == (0, 9)
    before = output.read_bytes()
    write(path, {"images": IMAGES, "annotations": [*[good] * 8, bad]})
    done = run_convert(output, "coco-captions", "--annotations", path, limit=MAX_REJECT_FRACTION)
    assert done.exit_code == 2
    assert output.read_bytes() == before
    assert done.skipped == [
        {"place": "annotations[8]", "id": "b7", "code": "caption_missing", "message": "the caption is nothing"}
    ]
    for words in (
        "1 of 9 annotations cannot be used",
        "annotations[8]: caption_missing",
        "at most 10%",
        "out.jsonl.skipped.jsonl",
    ):
        assert words in done.words
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.skipped.jsonl", "x.json"]


def test_the_limit_is_that_of_prepare_data_and_crowds_do_not_count_against_it(tmp_path: Path) -> None:
    from components.prepare_data.__main__ import run as prepare
    from pipelines.commands import convert as commands

    assert inspect.signature(prepare).parameters["max_reject_fraction"].default == MAX_REJECT_FRACTION
    for name in ("coco_captions", "coco_detection", "vqa", "captions", "boxes", "refcoco", "vqav2", "table", "folder"):
        command = getattr(commands, f"convert_{name}")
        assert inspect.signature(command).parameters["max_reject_fraction"].default == MAX_REJECT_FRACTION
    path = write(tmp_path / "x.json", {"images": IMAGES, "categories": CATEGORIES, "annotations": [BOX, but(BOX, iscrowd=1)]})
    assert run_convert(tmp_path / "out.jsonl", "coco-detection", "--annotations", path, limit=0.1).exit_code == 0


def test_a_rerun_gives_equal_bytes_and_a_list_of_skips_goes_when_nothing_is_skipped_any_more(tmp_path: Path) -> None:
    output, listed = tmp_path / "out.jsonl", tmp_path / "out.jsonl.skipped.jsonl"
    annotations = [BOX, but(BOX, bbox=None), but(BOX, image_id="b", bbox=[1, 1, 3, 3])]
    written = []
    for _ in range(2):
        convert_boxes(tmp_path, annotations)
        written.append((output.read_bytes(), listed.read_bytes()))
    assert written[0] == written[1]
    convert_boxes(tmp_path, [BOX])
    assert not listed.exists()


def test_an_output_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", {"images": IMAGES, "annotations": []})
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "file" / "out.jsonl"):
        done = run_convert(output, "coco-captions", "--annotations", path)
        assert (done.exit_code, "The output cannot be written" in done.words) == (2, True)


def test_what_is_read_is_never_overwritten(tmp_path: Path) -> None:
    asked, answered = write(tmp_path / "q.json", {"questions": []}), write(tmp_path / "a.json", {"annotations": []})
    listed = write(tmp_path / "out.jsonl.skipped.jsonl", {"questions": []})
    for output, questions in ((asked, asked), (answered, asked), (tmp_path / "out.jsonl", listed)):
        done = run_convert(output, "vqav2", "--questions", questions, "--annotations", answered)
        assert "is read and would be written" in done.words
    assert json.loads(asked.read_text()) == {"questions": []}


def test_a_folder_of_labels(tmp_path: Path) -> None:
    names = [
        "cat/1.jpg",
        "dog/big/2.PNG",
        "dog/3.jfif",
        "dog/notes.txt",
        "dog/4.heic",
        "dog/5.HEIC",
        "dog/LICENSE",
        "6.jpg",
        "a.md",
    ]
    hidden = ["cat/.ipynb_checkpoints/1-checkpoint.jpg", "__MACOSX/cat/._1.jpg", "cat/Thumbs.db", ".git/x.png", "cat/.7.jpg"]
    for name in names + hidden:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for _ in range(2):  # what the first run wrote is none of the folder's files
        done = run_convert(tmp_path / "rows.jsonl", "folder", "--folder", tmp_path, limit=0.1)
        assert [(row["image"], row["suffix"]) for row in done.rows] == [
            ("cat/1.jpg", "cat"),
            ("dog/3.jfif", "dog"),
            ("dog/big/2.PNG", "big"),
        ]
        assert [(entry["place"], entry["code"]) for entry in done.skipped] == [
            ("6.jpg", "label_missing"),
            ("dog/4.heic", "format_other"),
            ("dog/5.HEIC", "format_other"),
            ("dog/LICENSE", "format_other"),
            ("dog/notes.txt", "format_other"),
        ]
        for words in (
            "3 rows",
            "8 files read: 3 used, 5 skipped",
            "2 files left out that end in .heic",
            "1 files left out that end in .txt",
            "1 files left out that have no ending",
            "5 hidden_left_out",
        ):
            assert words in done.words


def test_a_folder_without_labels_and_none_at_all_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"")
    done = run_convert(tmp_path / "rows.jsonl", "folder", "--folder", tmp_path)
    assert done.exit_code == 2
    assert "The 1 pictures are in no folders of labels" in done.words
    assert f"--images {tmp_path} --image COLUMN" in done.words
    assert run_convert(tmp_path / "rows.jsonl", "folder", "--folder", tmp_path / "no").exit_code == 2


def test_links_to_folders_are_named_and_names_that_are_not_text_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "photos/cat").mkdir(parents=True)
    (tmp_path / "photos/cat/1.png").write_bytes(b"")
    (tmp_path / "photos/dog").symlink_to(tmp_path / "photos/cat")
    with open(b"%s/photos/cat/\xe9.png" % bytes(tmp_path), "wb"):
        pass
    done = run_convert(tmp_path / "rows.jsonl", "folder", "--folder", tmp_path / "photos")
    assert [row["image"] for row in done.rows] == ["cat/1.png"]
    assert done.codes == ["encoding_invalid"]
    assert "1 link_left_out" in done.words
    assert f"pass --images {tmp_path / 'photos'} to prepare_data" in done.words


def test_endings_are_those_of_every_format_that_is_decoded() -> None:
    Image.init()
    assert {ending for ending, name in Image.registered_extensions().items() if name in FORMATS} | {".mpo"} == SUFFIXES


def test_the_page_lists_every_code() -> None:
    page = (Path(inspect.getfile(package)).parent / "README.md").read_text()
    listed = dict(re.findall(r"^\| `([a-z_]+)` \| ([^|]*?) \|$", page, re.MULTILINE))
    assert listed == REASONS | NOTES
    assert REASONS.keys() >= ON_PURPOSE


COCO = {
    "images": IMAGES,
    "categories": CATEGORIES,
    "annotations": [but(BOX, caption="x"), but(BOX, image_id="b", caption="y", segmentation=[[1, 1, 2, 2, 3, 1]])],
}
VQA = {"questions": [QUESTION], "annotations": [but(ANSWERED, multiple_choice_answer="2"), but(ANSWERED, question_id="5")]}


@settings(max_examples=150)
@given(data=st.data(), value=VALUES, kind=st.sampled_from(["coco-detection", "coco-captions"]))
def test_any_value_anywhere_in_a_coco_file_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: object, kind: str
) -> None:
    changed = with_value(COCO, data.draw(st.sampled_from(places(COCO))), value)
    folder = tmp_path_factory.mktemp("coco")
    done = run_convert(folder / "out.jsonl", kind, "--annotations", write(folder / "x.json", changed))
    entries = changed.get("annotations") if isinstance(changed, dict) else None
    assert_accounted(done, folder / "out.jsonl", entries, one_each=kind == "coco-captions")


@settings(max_examples=100)
@given(data=st.data(), value=VALUES)
def test_any_value_anywhere_in_a_vqa_file_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: object
) -> None:
    changed = with_value(VQA, data.draw(st.sampled_from(places(VQA))), value)
    folder = tmp_path_factory.mktemp("vqa")
    path = write(folder / "x.json", changed)
    done = run_convert(folder / "out.jsonl", "vqav2", "--questions", path, "--annotations", path, "--images", "{}.jpg")
    assert_accounted(done, folder / "out.jsonl", changed.get("annotations") if isinstance(changed, dict) else None)
