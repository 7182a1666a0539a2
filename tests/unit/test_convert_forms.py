"""Odd entries of published questions, captions, boxes and expressions: each is used, or skipped with its reason."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow
import pytest
from converting import Conversion, run_convert
from PIL import Image
from pyarrow import parquet


def convert(folder: Path, command: str, content: object, *more: object, name: str = "a.json", images: tuple = ()) -> Conversion:
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(folder / image)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    annotations = folder / (name.rpartition("/")[0] or name)
    return run_convert(folder / "out.jsonl", *command.split(), "--annotations", annotations, "--images", folder, *more)


AOKVQA = {"question_id": "a", "image_id": 42, "question": " Why? ", "choices": ["x", "y"], "correct_choice_idx": 1}
TEXTVQA = {"question_id": 1, "image_id": "0a", "question": "What?", "answers": ["A", "b", "b"]}
INFOVQA = {"questionId": 1, "image_local_name": "1.jpg", "question": "Who?", "answers": ["B, a"]}
SCIENCEQA = {"image": "image.png", "question": "Q?", "choices": ["x", "y"], "answer": 1, "hint": "H", "split": "train"}
BOOK = {"imageURL": "http://x/1.PNG?a=b", "questions": ["Who?", "What?"], "answers": ["A", "B"], "split": 1}


def but(entry: dict, **changes: object) -> dict:
    return {key: value for key, value in (entry | changes).items() if value is not ...}


QUESTIONS = [
    # form | file | what the row has | codes | words
    ("aokvqa-mc", [AOKVQA], ("answer en  Why? choose from: x \t y", "y", ["y"]), [], "1 used"),
    ("aokvqa-mc", [but(AOKVQA, correct_choice_idx="1")], ("answer en  Why? choose from: x \t y", "y", ["y"]), [], "1 used"),
    ("aokvqa-mc", [but(AOKVQA, correct_choice_idx=2)], None, ["answer_missing"], "2, of 2 choices"),
    ("aokvqa-mc", [but(AOKVQA, correct_choice_idx=-1)], None, ["answer_missing"], "-1, of 2 choices"),
    ("aokvqa-mc", [but(AOKVQA, correct_choice_idx=0.5)], None, ["answer_missing"], "0.5"),
    ("aokvqa-mc", [but(AOKVQA, correct_choice_idx=...)], None, ["answer_missing"], "nothing, of 2"),
    ("aokvqa-mc", [but(AOKVQA, choices=["x", None])], None, ["choices_wrong"], "a list of 2"),
    ("aokvqa-mc", [but(AOKVQA, choices="xy")], None, ["choices_wrong"], "'xy'"),
    ("aokvqa-mc", [but(AOKVQA, choices=[])], None, ["choices_wrong"], "a list of 0"),
    ("aokvqa-mc", [but(AOKVQA, choices=["c"] * 27)], None, ["choices_wrong"], "a list of 27"),
    ("aokvqa-mc", [but(AOKVQA, choices=["{x}", "{0}"])], ("answer en  Why? choose from: {x} \t {0}", "{0}", ["{0}"]), [],
     "1 used"),
    ("aokvqa-da", [but(AOKVQA, direct_answers=[])], None, ["answer_missing"], "a list of 0"),
    ("aokvqa-da", [but(AOKVQA, direct_answers=["{a}"], question="{choices}")], ("answer en {choices}", "{a}", ["{a}"]), [],
     "1 used"),
    ("aokvqa-da", [but(AOKVQA, direct_answers=["z"], image_id="x")], None, ["image_id_missing"], "'x'"),
    ("aokvqa-da", [but(AOKVQA, direct_answers=["z"], image_id=4.5)], None, ["image_id_missing"], "image_id is 4.5"),
    ("textvqa", {"data": [TEXTVQA]}, ("answer en What?", "b", ["A", "b", "b"]), [], "1 used"),
    ("textvqa", {"data": [but(TEXTVQA, image_id="../0a")]}, None, ["image_path_unsafe"], "leads out"),
    ("textvqa", {"data": [but(TEXTVQA, image_id="0a\0")]}, None, ["image_unnamed"], "name that can be used"),
    ("textvqa", {"data": [but(TEXTVQA, question=["What?"])]}, None, ["question_missing"], "has no text"),
    ("textvqa", {"data": [7, None]}, None, ["not_an_object"] * 2, "the annotation is 7"),
    ("textvqa", [TEXTVQA], None, [], "are a list"),
    ("textvqa", {"dataa": []}, None, [], "have no 'data'"),
    ("vizwiz", {"data": []}, None, [], "are an object with data, not list"),
    ("gqa", [], None, [], "are list, not object"),
    ("infovqa", {"data": [INFOVQA]}, ("answer en Who?", "b, a", ["b, a", "a, b"]), [], "1 used"),
    ("infovqa", {"data": [but(INFOVQA, answers=["a, b, c, d, e, f"])]}, ("answer en Who?", "a, b, c, d, e, f",
     ["a, b, c, d, e, f"]), [], "1 answer_in_order"),
    ("ocrvqa", {"7": BOOK}, ("answer en Who?", "A", ["A"]), [], "2 used"),
    ("ocrvqa", {"7": but(BOOK, answers=["A"])}, None, ["answer_missing"], "2 questions, and answers is a list of 1"),
    ("ocrvqa", {"7": but(BOOK, questions=...)}, None, ["question_missing"], "questions is nothing"),
    ("ocrvqa", {"7": but(BOOK, split=2)}, None, ["left_out"] * 2, "left out on purpose"),
    ("ocrvqa", {"7": but(BOOK, imageURL="http://[")}, ("answer en Who?", "A", ["A"]), [], "2 used"),
    ("scienceqa", {"7": SCIENCEQA}, ("Question: Q?\nContext: H\nOptions: (A) x, (B) y\nAnswer:", "The answer is B.",
     ["The answer is B."]), [], "1 used"),
    ("scienceqa", {"7": but(SCIENCEQA, image=None)}, None, ["left_out"], "image is nothing"),
    ("scienceqa", {"7": but(SCIENCEQA, image="")}, None, ["left_out"], "image is ''"),
    ("scienceqa", {"7": but(SCIENCEQA, split=["train"])}, None, ["left_out"], "split is a list of 1"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "content", "row", "codes", "words"), QUESTIONS, ids=range(len(QUESTIONS)))
def test_every_odd_question_is_used_or_skipped_with_its_reason(
    tmp_path: Path, form: str, content: object, row: tuple | None, codes: list[str], words: str
) -> None:
    split = ("--split", "train") if form in ("ocrvqa", "scienceqa") else ()
    done = convert(tmp_path, f"vqa --form {form}", content, *split)
    found = [(row["prefix"], row["suffix"], row["answers"]) for row in done.rows]
    assert found[:1] == ([row] if row else [])
    assert done.codes == codes
    assert words in done.words + json.dumps(done.skipped)


FLAGS = [
    ("vqa --form ocrvqa", (), "The file has several splits"),
    ("vqa --form ocrvqa", ("--split", "trian"), "did you mean 'train'?"),
    ("vqa --form textvqa", ("--split", "train"), "have one split each"),
    ("vqa --form okvqa", (), "pass --questions FILE"),
    ("vqa --form textvqa", ("--questions", "q.json"), "has its questions in the annotations"),
    ("vqa --form textvqa", ("--image", "a.jpg"), "would be the same image for every question"),
    ("vqa --form textvqa", ("--image", "{a"), "cannot be filled in"),
    ("captions --form textcaps", ("--ids", "x"), "--ids has no meaning"),
    ("captions --form textcaps", ("--language", "de"), "--language has no meaning"),
    ("boxes --form cvat", ("--split", "train"), "--split has no meaning"),
    ("refcoco", ("--split", "train"), "Without --refs"),
]


@pytest.mark.parametrize(("command", "flags", "words"), FLAGS)
def test_flags_that_do_not_fit_a_form_are_refused(tmp_path: Path, command: str, flags: tuple, words: str) -> None:
    done = convert(tmp_path, command, {"7": BOOK, "data": [TEXTVQA], "images": [], "annotations": []}, *flags)
    assert (done.exit_code, words in done.words) == (2, True)


def test_an_image_may_be_named_otherwise_and_one_that_is_there_is_taken(tmp_path: Path) -> None:
    done = convert(tmp_path, "vqa --form textvqa", {"data": [TEXTVQA]}, "--image", "photos/{image_id}.png")
    assert [row["image"] for row in done.rows] == ["photos/0a.png"]
    done = convert(tmp_path, "vqa --form textvqa", {"data": [TEXTVQA]}, images=("test_images/0a.jpg",))
    assert [row["image"] for row in done.rows] == ["test_images/0a.jpg"]


def test_a_wrong_image_folder_is_said_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": [TEXTVQA]}))
    arguments = ("vqa", "--form", "textvqa", "--annotations", tmp_path / "a.json")
    done = run_convert(tmp_path / "out.jsonl", *arguments, limit=0.1)
    assert (done.exit_code, "name an image that is not there" in done.words) == (2, True)
    assert not (tmp_path / "out.jsonl").exists()


CAPTIONS = [
    # form | file's name and content | flags | rows | codes
    ("coco35l", "a.jsonl", '{"image_id": "5_0", "trg_lang": "de", "translation_tokenized": "x", "caption_tokenized": "y"}',
     "--language en", [("caption en", "y")], []),
    ("coco35l", "a.jsonl", '{"image_id": "5_0", "trg_lang": "fr", "translation_tokenized": "x"}', "--language en", [], []),
    ("coco35l", "a.jsonl", '{"image_id": "5_0", "trg_lang": "../x", "translation_tokenized": "x"}', "", [],
     ["language_missing"]),
    ("coco35l", "a.jsonl", '{"image_id": 5, "trg_lang": "fr", "translation_tokenized": "x"}', "", [("caption fr", "x")], []),
    ("coco35l", "a.jsonl", '{"image_id": "a_0", "trg_lang": "fr", "translation_tokenized": "x"}', "", [],
     ["image_id_missing"]),
    ("coco35l", "a.jsonl", '{"image_id": "5_0", "trg_lang": "fr"}\n[1]\n{', "", [], ["caption_missing", "not_an_object",
     "json_invalid"]),
    ("xm3600", "a.jsonl", '{"image/key": "k", "de": {"caption": ["x", " ", "z"]}}', "", [("caption de", "x"), ("caption de",
     "z")], ["caption_missing"]),
    ("xm3600", "a.jsonl", '{"image/key": "k", "de": {"caption": ["x"]}}', "--language fr", [], ["caption_missing"]),
    ("xm3600", "a.jsonl", '{"image/key": "k"}', "", [], ["language_missing"]),
    ("xm3600", "a.jsonl", '{"image/key": "k", "de": {"caption": ["x", "y", "x\\u0000"]}}', "--rows-for image",
     [("caption de", "x")], ["text_nul"]),
    ("textcaps", "a.json", '{"data": [{"image_id": "k", "caption_str": "A Sign"}, {"image_id": "k"}]}', "", [("caption en",
     "a sign")], ["caption_missing"]),
    ("screen2words", "a.csv", "screenId,summary\n1,x\n2,\n3\n", "", [("caption en", "x")], ["caption_missing",
     "cells_too_few"]),
    ("widgetcap", "a.csv", "screenId,nodeId,captions\n1,0.0,x|y\n", "", [], ["picture_unreadable"] * 2),
    ("scicap", "c/k.json", '{"1-lowercase-and-token-and-remove-figure-index": {"caption": "x"}}', "", [("caption en", "x")],
     []),
    ("scicap", "c/k.json", "[" * 100_000, "", [], ["file_unreadable"]),
    ("scicap", "c/k.json", '{"1-lowercase-and-token-and-remove-figure-index": "x"}', "", [], ["caption_missing"]),
]  # fmt: skip


@pytest.mark.parametrize(("form", "name", "content", "flags", "rows", "codes"), CAPTIONS, ids=range(len(CAPTIONS)))
def test_every_odd_caption_is_used_or_skipped_with_its_reason(
    tmp_path: Path, form: str, name: str, content: str, flags: str, rows: list[tuple[str, str]], codes: list[str]
) -> None:
    done = convert(tmp_path, f"captions --form {form}", content, *flags.split(), name=name)
    assert [(row["prefix"], row["suffix"]) for row in done.rows] == rows
    assert done.codes == codes


NODES = [
    # a screen's view | node | code
    ({"activity": {"root": {"bounds": [0, 0, 9, 9]}}}, "0", None),
    ({"activity": {"root": {"bounds": [0, 0, 9, 9]}}}, "0.0", "box_missing"),
    ({"activity": {"root": {"children": [{"bounds": [1, 1, 9]}]}}}, "0.0", "box_missing"),
    ({"activity": {"root": {"children": [None]}}}, "0.0", "box_missing"),
    ({"activity": {"root": {"bounds": [9, 0, 0, 9]}}}, "0", "box_empty"),
    ({"activity": {"root": {"bounds": [-1e308, 0, 1e308, 9]}}}, "0", None),
    ({"activity": []}, "0", "box_missing"),
    ([], "0", "not_an_object"),
    ({"activity": {"root": {"bounds": [0, 0, 9, 9]}}}, "0." + "0." * 300 + "0", "box_missing"),
    ({"activity": {"root": {"children": [{"bounds": [1, 1, 9, 9]}]}}}, "0.-1", "box_missing"),
    ({"activity": {"root": {"bounds": [0, 0, 9, 9]}}}, "../../x", "box_missing"),
]


@pytest.mark.parametrize(("view", "node", "code"), NODES, ids=range(len(NODES)))
def test_a_widget_is_drawn_where_its_screen_has_it(tmp_path: Path, view: object, node: str, code: str | None) -> None:
    (tmp_path / "1.json").write_text(json.dumps(view))
    table = f"screenId,nodeId,captions\n1,{node},x\n"
    done = convert(tmp_path, "captions --form widgetcap", table, "--size", "16", name="a.csv", images=("1.jpg",))
    assert done.codes == ([code] if code else [])
    assert [row["image"] for row in done.rows] == ([] if code else ["images/box-1_0-16.png"])


def voc(*objects: str, size: str = "<size><width>40</width><height>30</height></size>", name: str = "1.png") -> str:
    boxes = "".join(f"<object><name>cat</name>{one}</object>" for one in objects)
    return f"<annotation><filename>{name}</filename>{size}{boxes}</annotation>"


def bndbox(x1: object, y1: object, x2: object, y2: object) -> str:
    return f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"


def cvat(*shapes: str) -> str:
    return f'<annotations><image id="0" name="1.png" width="40" height="30">{"".join(shapes)}</image></annotations>'


def labelme(*shapes: dict, **more: object) -> dict:
    return {"imagePath": "1.png", "imageWidth": 40, "imageHeight": 30, "shapes": list(shapes)} | more


def shape(kind: str, *points: tuple[float, float]) -> dict:
    return {"label": "cat", "points": [list(point) for point in points], "shape_type": kind}


def studio(kind: str, value: dict, **more: object) -> list:
    result = {"type": kind, "value": value, "original_width": 40, "original_height": 30} | more
    return [{"data": {"image": "/data/upload/1/0a1b2c3d-1.png"}, "annotations": [{"result": [but(result)]}]}]


RECTANGLE = {"x": 25, "y": 20, "width": 50, "height": 60, "rotation": 0, "rectanglelabels": ["cat"]}
CAT = "<loc0205><loc0256><loc0818><loc0767> cat"  # 10, 6 to 30, 24 in 40 x 30
WHOLE = "<loc0000><loc0000><loc1023><loc1023> cat"
BOXES = [
    # form | file | suffixes | codes | words
    ("voc", voc(bndbox(11, 7, 30, 24)), [CAT], [], "1 boxes in pixels that are counted from 1"),
    ("voc", voc(bndbox(10, 6, 30, 24), bndbox(0, 0, 40, 30)), [f"{WHOLE} ; {CAT}"], [], "2 used"),
    ("voc", voc(bndbox("10.0", "6.0", "30.0", "24.0"), bndbox("0.5", "0.5", "40", "30")), None, [], "2 used"),
    ("voc", voc(bndbox(30, 24, 11, 7)), [], ["box_empty"], "from 30, 24 to 11, 7"),
    ("voc", voc(bndbox("a", 7, 30, 24), "<polygon/>"), [], ["box_malformed", "box_missing"], "has no bndbox"),
    ("voc", voc(bndbox(11, 7, 30, 24), size=""), [CAT], [], "1 size_from_file"),
    ("voc", voc(bndbox(1, 1, 9, 9), size="<size><width>99</width><height>30</height></size>"), [], ["size_disagrees"],
     "other proportions"),
    ("voc", voc(bndbox(1, 1, 9, 9), name=""), ["<loc0000><loc0000><loc0307><loc0230> cat"], [], "1 used"),
    ("voc", voc(bndbox(1, 1, 9, 9), name="no.png", size=""), [], ["size_unknown"], "cannot be opened"),
    ("voc", "<annotations/>", [], ["file_unreadable"], "begin with <annotations>"),
    ("voc", "<annotation>", [], ["file_unreadable"], "not XML"),
    ("voc", voc(), [], [], "There is nothing to convert"),
    ("cvat", cvat('<box label="cat" xtl="10" ytl="6" xbr="30" ybr="24"/>'), [CAT], [], "1 used"),
    ("cvat", cvat('<box label="cat" xtl="11" ytl="5" xbr="29" ybr="25" rotation="90"/>'), [CAT], [], "1 box_rotated"),
    ("cvat", cvat('<mask label="cat" rle="1,2" left="10" top="6" width="20" height="18"/>'), [CAT], [], "1 box_from_polygon"),
    ("cvat", cvat('<ellipse label="cat" cx="20" cy="15" rx="10" ry="9"/>'), [CAT], [], "1 box_from_polygon"),
    ("cvat", cvat('<polygon label="cat" points="10,6;30,6;x,24"/>'), [], ["box_malformed"],
     "3 points, of which 1 have no numbers"),
    ("cvat", cvat('<polyline label="cat" points="1,1;2,2"/><points label="a" points="1,1"/>'), [], ["shape_other"] * 2,
     "left out on purpose"),
    ("cvat", cvat('<box xtl="10" ytl="6" xbr="30" ybr="24"/>'), [], ["category_unnamed"], "None"),
    ("cvat", '<annotations><track id="0" label="cat"/></annotations>', [], [], "tracks of a video"),
    ("labelme", labelme(shape("rectangle", (10, 6), (30, 24))), [CAT], [], "1 used"),
    ("labelme", labelme(shape("rectangle", (30, 6), (10, 24))), [CAT], [], "1 used"),
    ("labelme", labelme(shape("circle", (20, 15), (20, 24))), ["<loc0205><loc0281><loc0818><loc0742> cat"], [],
     "1 box_from_polygon"),
    ("labelme", labelme(shape("circle", (20, 15))), [], ["box_malformed"], "a list of 1"),
    ("labelme", labelme(shape("linestrip", (1, 1), (2, 2))), [], ["shape_other"], "'linestrip'"),
    ("labelme", labelme(but(shape("polygon", (10, 6), (30, 24), (10, 24)), shape_type=...)), [CAT], [], "1 used"),
    ("labelme", labelme(shape("rectangle", (10, 6), (30, 24)), imagePath=None), [], ["image_unnamed"], "nothing"),
    ("labelme", labelme(imagePath="1.png"), [], [], "no boxes in it"),
    ("labelme", "{", [], ["file_unreadable"], "not JSON"),
    ("label-studio", studio("rectanglelabels", RECTANGLE), [CAT], [], "1 used"),
    ("label-studio", studio("labels", {"x": 25, "y": 20, "width": 50, "height": 60, "labels": ["cat"]}), [CAT], [], "1 used"),
    ("label-studio", studio("ellipselabels", {"x": 50, "y": 50, "radiusX": 25, "radiusY": 30, "ellipselabels": ["cat"]}),
     [CAT], [], "1 used"),
    ("label-studio", studio("rectanglelabels", RECTANGLE | {"x": 75, "y": 20, "width": 45, "height": 200 / 3,
     "rotation": 90}), [CAT], [], "1 box_rotated"),
    ("label-studio", studio("rectanglelabels", RECTANGLE, original_width=...), [CAT], [], "1 used"),
    ("label-studio", studio("rectanglelabels", but(RECTANGLE, width=...)), [], ["box_malformed"], "width is nothing"),
    ("label-studio", studio("rectanglelabels", but(RECTANGLE, rectanglelabels=[])), [], ["category_unnamed"], "None"),
    ("label-studio", studio("brushlabels", {"rle": [1], "brushlabels": ["cat"]}), [], ["mask_malformed"], "a list of 1"),
    ("label-studio", [{"data": {"image": "1.png"}, "annotations": [{"was_cancelled": True, "result": [1]}]}], [], [],
     "no boxes in it"),
    ("label-studio", [{"data": {}, "annotations": []}], [], ["image_unnamed"], "has no address of an image"),
    ("label-studio", [{"data": {"image": "http://["}, "annotations": []}], [], ["image_unnamed"], "address"),
    ("label-studio", [{"annotations": 7}, 7], [], ["not_an_object"] * 2, "the annotation is 7"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "content", "suffixes", "codes", "words"), BOXES, ids=range(len(BOXES)))
def test_every_odd_box_is_used_or_skipped_with_its_reason(
    tmp_path: Path, form: str, content: object, suffixes: list[str] | None, codes: list[str], words: str
) -> None:
    name = {"voc": "x/1.xml", "cvat": "1.xml", "labelme": "x/1.json", "label-studio": "1.json"}[form]
    images = ("1.png", "x/1.png") if form == "labelme" else ("1.png",)
    done = convert(tmp_path, f"boxes --form {form}", content, name=name, images=images)
    assert suffixes is None or [row["suffix"] for row in done.rows] == suffixes
    assert done.codes == codes
    assert words in done.words + json.dumps(done.skipped, ensure_ascii=False)


def test_of_several_annotations_of_a_task_the_ground_truth_is_taken(tmp_path: Path) -> None:
    task = studio("rectanglelabels", RECTANGLE)[0]
    other = {"result": studio("rectanglelabels", RECTANGLE | {"rectanglelabels": ["dog"]})[0]["annotations"][0]["result"]}
    task["annotations"] = [other, task["annotations"][0] | {"ground_truth": True}]
    done = convert(tmp_path, "boxes --form label-studio", [task], images=("1.png",))
    assert [row["suffix"] for row in done.rows] == [CAT]
    assert "1 annotations of tasks that have another one" in done.words


ADDRESSES = [
    ("/data/upload/1/0a1b2c3d-1.png", "1.png"),
    ("/data/local-files/?d=photos/1.png", "photos/1.png"),
    ("s3://bucket/photos/1.png", "1.png"),
    ("https://x.org/a%20b/1.png?signature=abc", "1.png"),
    ("1.png", "1.png"),
]


@pytest.mark.parametrize(("address", "name"), ADDRESSES)
def test_a_tasks_image_is_found_by_its_address(tmp_path: Path, address: str, name: str) -> None:
    task = studio("rectanglelabels", RECTANGLE)[0] | {"data": {"note": "a b", "image": address}}
    done = convert(tmp_path, "boxes --form label-studio", [task], images=(name,))
    assert [row["image"] for row in done.rows] == [name]


def test_boxes_in_fractions_may_be_on_photos_as_they_are_stored(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (40, 30)).save(tmp_path / "images/1.jpg", exif=exif)
    (tmp_path / "labels/1.txt").write_text("0 0.25 0.125 0.5 0.25\n")
    data = "train: images\nnames: [cat]\n"
    done = convert(tmp_path, "boxes --form yolo", data, name="data.yaml")
    assert [row["suffix"] for row in done.rows] == ["<loc0000><loc0000><loc0256><loc0512> cat"]
    done = convert(tmp_path, "boxes --form yolo", data, "--box-pixels", "stored", name="data.yaml")
    assert [row["suffix"] for row in done.rows] == ["<loc0000><loc0767><loc0512><loc1023> cat"]


def test_the_folder_of_a_yolo_set_may_be_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths then begin with `images`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/1.txt").write_text("0 0.5 0.5 0.5 0.6\n")
    done = convert(Path(), "boxes --form yolo", "train: images\nnames: [cat]\n", name="data.yaml", images=("images/1.png",))
    assert [(row["image"], row["suffix"]) for row in done.rows] == [("images/1.png", CAT)]


IMAGES = [{"id": 1, "file_name": "1.png", "width": 40, "height": 30}]
ANNOTATION = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [10, 6, 20, 18]}
REF = {"ref_id": 3, "ann_id": 7, "split": "train", "sentences": [{"sent": "the cat"}]}
EXPRESSIONS = [
    # a ref | an annotation | suffix | code
    (REF, ANNOTATION, "<loc0205><loc0256><loc0818><loc0767> the cat", None),
    (but(REF, ann_id="7"), ANNOTATION, "<loc0205><loc0256><loc0818><loc0767> the cat", None),
    (but(REF, ann_id=8), ANNOTATION, None, "annotation_unlisted"),
    (but(REF, ann_id=None), ANNOTATION, None, "annotation_missing"),
    (but(REF, split="val"), ANNOTATION, None, "left_out"),
    (but(REF, sentences=[]), ANNOTATION, None, "expression_missing"),
    (but(REF, sentences=[{"sent": " "}]), ANNOTATION, None, "expression_missing"),
    (but(REF, sentences=[{"sent": "a ; b"}]), ANNOTATION, None, "category_unnamed"),
    (but(REF, sentences=["the cat"]), ANNOTATION, None, "not_an_object"),
    (REF, but(ANNOTATION, image_id=2), None, "image_unlisted"),
    (REF, but(ANNOTATION, bbox=[0, 0, 0, 0]), None, "box_empty"),
    (7, ANNOTATION, None, "not_an_object"),
]


@pytest.mark.parametrize(("ref", "annotation", "suffix", "code"), EXPRESSIONS, ids=range(len(EXPRESSIONS)))
def test_every_odd_expression_is_used_or_skipped_with_its_reason(
    tmp_path: Path, ref: object, annotation: dict, suffix: str | None, code: str | None
) -> None:
    (tmp_path / "refs.json").write_text(json.dumps([ref]))
    instances = {"images": IMAGES, "annotations": [annotation], "categories": []}
    flags = ("--refs", tmp_path / "refs.json", "--split", "train")
    done = convert(tmp_path, "refcoco", instances, *flags, images=("1.png",))
    assert [(row["prefix"], row["suffix"]) for row in done.rows] == ([("detect the cat", suffix)] if suffix else [])
    assert done.codes == ([code] if code else [])


PACKED = io.BytesIO()
Image.new("RGB", (40, 30)).save(PACKED, "PNG")
PNG = PACKED.getvalue()
SENTENCES = [{"raw": "The cat.", "sent": "the cat", "sent_id": 1, "tokens": ["the", "cat"]}]
TABLES = [
    # a row of a Parquet file | suffix | codes
    ({"image_path": "coco/train2014/1.png", "bbox": [10, 6, 30, 24], "sentences": SENTENCES, "split": "train"}, CAT, []),
    ({"image_path": "coco/train2014/1.png", "bbox": [10, 6, 30, 24], "sentences": SENTENCES, "split": "val"}, None,
     ["left_out"]),
    ({"image_path": "1.png", "bbox": [30, 24, 10, 6], "sentences": SENTENCES, "split": "train"}, None, ["box_empty"]),
    ({"image_path": "1.png", "bbox": [10, 6, 30], "sentences": SENTENCES, "split": "train"}, None, ["box_malformed"]),
    ({"image_path": "1.png", "bbox": None, "sentences": SENTENCES, "split": "train"}, None, ["box_missing"]),
    ({"image_path": None, "bbox": [10, 6, 30, 24], "sentences": SENTENCES, "split": "train"}, None, ["value_missing"]),
    ({"image_path": "1.png", "bbox": [10, 6, 30, 24], "sentences": [], "split": "train"}, None, ["expression_missing"]),
    ({"image_path": "../x.png", "bbox": [10, 6, 30, 24], "sentences": SENTENCES, "split": "train"}, None, ["size_unknown"]),
    ({"image": {"bytes": PNG, "path": "x"}, "bbox": [10.0, 6.0, 20.0, 18.0], "answer": ["the cat"], "split": "train"}, CAT,
     []),
    ({"image": {"bytes": PNG, "path": "x"}, "bbox": [10.0, 6.0, 20.0, 18.0], "answer": [None], "split": "train"}, None,
     ["expression_missing"]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "suffix", "codes"), TABLES, ids=range(len(TABLES)))
def test_expressions_in_parquet_are_read_in_both_forms(tmp_path: Path, row: dict, suffix: str | None, codes: list[str]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "val.parquet")
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png")
    arguments = ("refcoco", "--annotations", tmp_path / "val.parquet", "--images", tmp_path, "--split", "train")
    done = run_convert(tmp_path / "out.jsonl", *arguments)
    assert [row["suffix"] for row in done.rows] == ([suffix.replace("cat", "the cat")] if suffix else [])
    assert done.codes == codes


def test_other_parquet_files_hold_no_expressions(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([{"a": 1}]), tmp_path / "val.parquet")
    for source in (tmp_path / "val.parquet", tmp_path):
        done = run_convert(tmp_path / "out.jsonl", "refcoco", "--annotations", source)
        assert (done.exit_code, "has no column 'answer'" in done.words) == (2, True)
    (tmp_path / "val.parquet").write_bytes(b"PAR1 no")
    done = run_convert(tmp_path / "out.jsonl", "refcoco", "--annotations", tmp_path / "val.parquet")
    assert (done.exit_code, "cannot be read" in done.words) == (2, True)
