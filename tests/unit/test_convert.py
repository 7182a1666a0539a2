"""`paligemma convert` on COCO's and VQA's annotations: odd entries are skipped and counted, never a traceback."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from coco_sets import (
    ANSWERED,
    BOX,
    CATEGORIES,
    DOG,
    IMAGES,
    MISSING,
    QUESTION,
    but,
    convert_boxes,
    convert_captions,
    convert_vqa,
    write,
)
from converting import VALUES, assert_accounted, places, run_convert, with_value
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.data import convert as package
from paligemma.data.convert.reasons import NOTES, ON_PURPOSE, REASONS

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
