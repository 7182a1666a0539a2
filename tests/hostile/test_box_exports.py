"""Exports of boxes that are made to take memory or time, or to lead out of the folder, are refused or skipped in words."""

from __future__ import annotations

import gzip
import json
import resource
import time
from pathlib import Path

import pytest
from converting import Conversion, run_convert
from PIL import Image

LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "lol"}">' for n in range(10))
OBJECT = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object>"


def convert(folder: Path, form: str, *more: object) -> Conversion:
    return run_convert(folder / "out.jsonl", "boxes", "--form", form, "--images", folder, *more)


def cvat(folder: Path, content: bytes) -> Conversion:
    (folder / "a.xml").write_bytes(content)
    return convert(folder, "cvat", "--annotations", folder / "a.xml")


def voc(folder: Path, content: str) -> Conversion:
    (folder / "Annotations").mkdir()
    (folder / "Annotations/1.xml").write_text(content)
    return convert(folder, "voc", "--annotations", folder / "Annotations")


def yolo(folder: Path, labels: str, data: str = "train: images\nnames: [cat]\n") -> Conversion:
    for name in ("images", "labels"):
        (folder / name).mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(folder / "images/1.png")
    (folder / "labels/1.txt").write_text(labels)
    (folder / "data.yaml").write_text(data)
    return convert(folder, "yolo", "--annotations", folder / "data.yaml")


DOCTYPES = [
    f"<!DOCTYPE annotation [{LAUGHS}]><annotation><filename>&a9;</filename></annotation>",
    '<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>',
    '<!DOCTYPE annotation SYSTEM "http://127.0.0.1/x.dtd"><annotation><filename>1.jpg</filename></annotation>',
    f'<!DOCTYPE annotation [<!ENTITY a "{"a" * 100_000}">]><annotation>{"&a;" * 100_000}</annotation>',
]


@pytest.mark.parametrize("content", DOCTYPES, ids=["laughs", "file", "address", "quadratic"])
def test_a_document_type_is_refused_before_any_entity_is_read(tmp_path: Path, content: str) -> None:
    before = time.monotonic()
    done = voc(tmp_path, content)
    assert done.codes == ["file_unreadable"]
    assert "document type" in done.words + done.skipped[0]["message"]
    assert time.monotonic() - before < 2
    done = cvat(tmp_path, content.encode())
    assert (done.exit_code, "document type" in done.words) == (2, True)


def _growth(read: object) -> int:
    """Bytes by which the process's peak grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10


GIGABYTE = 1 << 30
LARGE = [
    # begins with | is filled with | words
    (b"<annotations>", b" ", "256 MiB at most"),
    (b'<annotations><image name="', b"a", "An element of the annotations has more than 16 MiB"),
    (b"<annotations><image>", b"a", "An element of the annotations has more than 16 MiB"),
    (b"<annotations><image>", b"<a/>", "An element of the annotations has more than 200,000 elements"),
    (b"<annotations>", b"<a>", "nested deeper than 32 levels"),
    (b"<annotations><!--", b"a", "has more than 16 MiB"),
    (b"", b" ", "256 MiB at most"),
]


@pytest.mark.parametrize(("start", "fill", "words"), LARGE, ids=range(len(LARGE)))
def test_xml_of_a_gigabyte_is_refused_in_bounded_memory(tmp_path: Path, start: bytes, fill: bytes, words: str) -> None:
    block = fill * (1 << 22)
    packed = gzip.compress(start, 1) + gzip.compress(block, 1) * (GIGABYTE // len(block))
    (tmp_path / "a.xml").write_bytes(packed)
    done = []
    grown = _growth(lambda: done.append(convert(tmp_path, "cvat", "--annotations", tmp_path / "a.xml")))
    assert (done[0].exit_code, words in done[0].words) == (2, True)
    assert grown < 400 << 20


LABELS = [
    # a label file | codes of what is skipped | suffix
    ("0 nan 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5\n", ["box_malformed"], "<loc0256><loc0256><loc0767><loc0767> cat"),
    ("0 inf 0.5 0.5 0.5\n0 1e999 0.5 0.5 0.5\n", ["box_malformed"] * 2, None),
    ("0 0.5 0.5 0 0.5\n0 0.5 0.5 0.5 -0.5\n", ["box_empty"] * 2, None),
    ("0 2.5 0.5 0.5 0.5\n", ["box_outside"], None),
    ("nan 0.5 0.5 0.5 0.5\n", ["box_malformed"], None),
    ("0.5 0.5 0.5 0.5 0.5\n-1 0.5 0.5 0.5 0.5\n", ["category_unlisted"] * 2, None),
    ("0" + " 0.5" * 100_000 + "\n", ["box_malformed"], None),
    ("0 0.5 0.5 0.5 0.5\n" * 1_000_000, ["file_unreadable"], None),
    ("0 0.5 0.5 0.5 0.5\n" * 50_000, ["line_too_long"] * 50_000, None),
    ("\0\0\0", ["box_malformed"], None),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "codes", "suffix"), LABELS, ids=range(len(LABELS)))
def test_labels_that_are_no_boxes_are_skipped(tmp_path: Path, labels: str, codes: list[str], suffix: str | None) -> None:
    done = yolo(tmp_path, labels)
    assert done.codes == codes
    assert [row["suffix"] for row in done.rows] == ([suffix] if suffix else [])


ALIASES = "b0: &b0 [x, x]\n" + "".join(f"b{n + 1}: &b{n + 1} [*b{n}, *b{n}]\n" for n in range(40))
DATA = [
    # data.yaml | words
    ("train: ../../..\nnames: [cat]\n", "There is no folder '../../..' of images"),
    ("path: /\ntrain: etc\nnames: [cat]\n", "There is no folder 'etc' of images"),
    ("train: /etc/passwd\nnames: [cat]\n", "There is no folder '/etc/passwd' of images"),
    ('train: "a\\0b"\nnames: [cat]\n', "of images"),
    ("train: images\nnames: []\n", "has no names of classes"),
    ("train: images\nnames: 3\n", "has no names of classes"),
    ("val: images\nnames: [cat]\n", "has no split 'train'"),
    ("[1]", "The data set is no mapping"),
    (ALIASES, "The data set cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "words"), DATA, ids=range(len(DATA)))
def test_a_data_set_that_leads_out_of_the_folder_or_is_none_is_refused(tmp_path: Path, data: str, words: str) -> None:
    (tmp_path / "set").mkdir()
    done = yolo(tmp_path / "set", "0 0.5 0.5 0.5 0.5\n", data)
    assert (done.exit_code, words in done.words, done.rows) == (2, True, [])


def test_a_list_of_images_that_leads_out_of_the_folder_opens_nothing_there(tmp_path: Path) -> None:
    for name in ("set", "secret/images", "secret/labels"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "secret/labels/1.txt").write_text("9 9 9 9 9 secret\n")
    (tmp_path / "set/train.txt").write_text("../secret/images/1.png\n/etc/1.png\n./images/1.png\n")
    done = yolo(tmp_path / "set", "0 0.5 0.5 0.5 0.5\n", "train: train.txt\nnames: [cat]\n")
    assert (done.codes, [row["image"] for row in done.rows]) == (["image_path_unsafe"] * 2, ["images/1.png"])
    assert "9 9" not in json.dumps(done.skipped) + done.words


def test_names_that_lead_out_of_the_image_folder_are_skipped_whatever_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
    done = voc(folder, f"<annotation><filename>../secret.png</filename>{OBJECT}</annotation>")
    assert done.codes == ["size_unknown"]  # it was not opened
    shape = '<box label="cat" xtl="1" ytl="1" xbr="20" ybr="20"/>'
    done = cvat(folder, f'<annotations><image name="/etc/passwd" width="40" height="30">{shape}</image></annotations>'.encode())
    assert done.codes == ["image_path_unsafe"]
    labels = {"imagePath": "../../secret.png", "imageWidth": 40, "imageHeight": 30, "shapes": [
        {"label": "cat", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}]}  # fmt: skip
    (folder / "labels").mkdir()
    (folder / "labels/1.json").write_text(json.dumps(labels))
    assert convert(folder, "labelme", "--annotations", folder / "labels").codes == ["image_path_unsafe"]
    task = {"data": {"image": "/data/local-files/?d=../../secret.png"}, "annotations": [{"result": [{
        "type": "rectanglelabels", "original_width": 40, "original_height": 30,
        "value": {"x": 1, "y": 1, "width": 9, "height": 9, "rectanglelabels": ["cat"]}}]}]}  # fmt: skip
    (folder / "ls.json").write_text(json.dumps([task]))
    assert convert(folder, "label-studio", "--annotations", folder / "ls.json").codes == ["image_path_unsafe"]


@pytest.mark.parametrize("label", ["a;b", "<loc0001>", "a\nb", "", "\x1b[31m"])
def test_labels_that_would_end_a_box_are_skipped(tmp_path: Path, label: str) -> None:
    (tmp_path / "labels").mkdir()
    shape = {"label": label, "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}
    document = {"imagePath": "1.jpg", "imageWidth": 40, "imageHeight": 30, "shapes": [shape]}
    (tmp_path / "labels/1.json").write_text(json.dumps(document))
    assert convert(tmp_path, "labelme", "--annotations", tmp_path / "labels").codes == ["category_unnamed"]


@pytest.mark.parametrize(
    ("name", "content"), [("refs(unc).p", b"(lp0\n."), ("refs.json", b"\x80\x04]."), ("refs.json", b"(lp1\n.")]
)
def test_a_pickle_is_never_opened_as_one(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "instances.json").write_text("{}")
    arguments = ("refcoco", "--annotations", tmp_path / "instances.json", "--refs", tmp_path / name)
    done = run_convert(tmp_path / "out.jsonl", *arguments)
    assert (done.exit_code, "can run any program when it is opened" in done.words) == (2, True)
