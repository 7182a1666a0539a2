"""Annotations that name their images by an address: a file in the folder is taken, else an address that prepare_data reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from converting import Conversion, run_convert
from published_forms import PICTURE, write_one

RECTANGLE = {"x": 25, "y": 20, "width": 50, "height": 60, "rotation": 0, "rectanglelabels": ["cat"]}
SIZE = {"original_width": 40, "original_height": 30}


def studio(folder: Path, *addresses: str, results: int = 1) -> Conversion:
    result = {"type": "rectanglelabels", "value": RECTANGLE, **SIZE}
    tasks = [{"data": {"image": address}, "annotations": [{"result": [result] * results}]} for address in addresses]
    write_one(folder / "tasks.json", tasks)
    flags = ("--form", "label-studio", "--annotations", folder / "tasks.json", "--images", folder)
    return run_convert(folder / "out.jsonl", "boxes", *flags)


STUDIO = [
    # the task's address | the file that is in the folder | the row's image | words
    ("gs://bucket/photos/1.png", "", "gs://bucket/photos/1.png", "1 address_kept"),
    ("gs://bucket/photos/1.png", "1.png", "1.png", "1 name_from_address"),
    ("https://x.org/a%20b/1.png?signature=a%2Fb", "", "https://x.org/a%20b/1.png?signature=a%2Fb", "1 address_kept"),
    ("HTTPS://x.org/1.png", "", "HTTPS://x.org/1.png", "1 address_kept"),
    ("https://x.org/uploads/0a1b2c3d-1.png", "1.png", "1.png", "1 name_from_address"),
    ("https://labels.x.org/data/upload/7/0a1b2c3d-1.png", "", "0a1b2c3d-1.png", "1 name_from_address"),
    ("https://labels.x.org/data/local-files/?d=a/1.png", "", "a/1.png", "1 name_from_address"),
    ("/data/local-files/?d=a/1.png", "a/1.png", "a/1.png", "1 name_from_address"),
    ("/data/upload/7/0a1b2c3d-1.png", "", "0a1b2c3d-1.png", "1 name_from_address"),
    ("s3://bucket/photos/1.png", "", "1.png", "1 name_from_address"),
    ("http://x.org/1.png", "", "1.png", "1 name_from_address"),
]


@pytest.mark.parametrize(("address", "there", "image", "words"), STUDIO)
def test_a_task_keeps_an_address_that_leads_somewhere(tmp_path: Path, address: str, there: str, image: str, words: str) -> None:
    if there:
        write_one(tmp_path / there, PICTURE)
    done = studio(tmp_path, address)
    assert [row["image"] for row in done.rows] == [image]
    assert words in done.words


def test_an_address_is_counted_once_for_a_task(tmp_path: Path) -> None:
    done = studio(tmp_path, "gs://bucket/1.png", "gs://bucket/2.png", results=3)
    assert [row["image"] for row in done.rows] == ["gs://bucket/1.png", "gs://bucket/2.png"]
    assert "2 address_kept" in done.words


@pytest.mark.parametrize("address", ["https://[", "gs://", "https://x.org/..", "https://x.org/../../1.png"])
def test_an_odd_address_opens_no_file(tmp_path: Path, address: str) -> None:
    """What it leads to is for prepare_data to refuse; here, it must not be taken for a path."""
    folder = tmp_path / "set"
    write_one(tmp_path / "1.png", PICTURE)
    folder.mkdir()
    done = studio(folder, address)
    assert [row["image"] for row in done.rows] == ([] if address == "https://[" else [address])


SHAPE = {"label": "cat", "points": [[10, 6], [30, 24]], "shape_type": "rectangle"}
OBJECT = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
BOX = '<box label="cat" xtl="10" ytl="6" xbr="30" ybr="24"/>'
VOC_SIZE = "<size><width>40</width><height>30</height></size>"
EXPORTS = [
    # form | file, with the address in place of {}
    ("cvat", "a.xml", f'<annotations><image id="0" name="{{}}" width="40" height="30">{BOX}</image></annotations>'),
    ("voc", "Annotations/1.xml", f"<annotation><filename>{{}}</filename>{VOC_SIZE}{OBJECT}</annotation>"),
    ("labelme", "x/1.json", '{"imagePath": "{}", "imageWidth": 40, "imageHeight": 30, "shapes": [' + json.dumps(SHAPE) + "]}"),
]


@pytest.mark.parametrize(("form", "name", "content"), EXPORTS, ids=[one[0] for one in EXPORTS])
@pytest.mark.parametrize("there", ["", "cat.png"])
def test_exports_keep_an_address_that_leads_somewhere(tmp_path: Path, form: str, name: str, content: str, there: str) -> None:
    address = "https://x.org/photos/cat.png?a=b"
    write_one(tmp_path / name, content.replace("{}", address))
    if there:
        write_one(tmp_path / there, PICTURE)
    annotations = tmp_path / (name.rpartition("/")[0] or name)
    done = run_convert(tmp_path / "out.jsonl", "boxes", "--form", form, "--annotations", annotations, "--images", tmp_path)
    assert [row["image"] for row in done.rows] == [there or address]
    assert ("1 address_kept" in done.words) == (not there)


COCO = [
    # the image's entry | the file that is in the folder | the row's image | words
    ({"file_name": "1.png", "coco_url": "https://x.org/train/1.png"}, "", "https://x.org/train/1.png", "1 address_kept"),
    ({"file_name": "1.png", "coco_url": "https://x.org/train/1.png"}, "1.png", "1.png", "1 used"),
    ({"file_name": "a/1.png", "coco_url": "https://x.org/train/1.png"}, "1.png", "1.png", "1 used"),
    ({"file_name": "1.png", "coco_url": "http://images.cocodataset.org/1.png"}, "", "1.png", "1 used"),
    ({"file_name": "1.png", "flickr_url": "https://farm.example.org/9.png"}, "", "https://farm.example.org/9.png",
     "1 address_kept"),
    ({"file_name": "1.png", "coco_url": "http://x.org/1.png", "flickr_url": "gs://b/1.png"}, "", "gs://b/1.png",
     "1 address_kept"),
    ({"coco_url": "https://x.org/train2017/1.png"}, "", "https://x.org/train2017/1.png", "1 address_kept"),
    ({"coco_url": "https://x.org/train2017/1.png"}, "train2017/1.png", "train2017/1.png", "1 name_from_url"),
    ({"coco_url": "http://x.org/train2017/1.png"}, "", "train2017/1.png", "1 name_from_url"),
    ({"file_name": "gs://bucket/1.png"}, "", "gs://bucket/1.png", "1 used"),
    ({"file_name": "1.png", "coco_url": 7, "flickr_url": ["https://x.org/1.png"]}, "", "1.png", "1 used"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "there", "image", "words"), COCO, ids=range(len(COCO)))
def test_coco_keeps_an_address_where_the_file_is_absent(
    tmp_path: Path, entry: dict, there: str, image: str, words: str
) -> None:
    if there:
        write_one(tmp_path / there, PICTURE)
    images = [{"id": 1, "width": 40, "height": 30} | entry]
    annotations = [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [10, 6, 20, 18]}]
    write_one(tmp_path / "i.json", {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]})
    flags = ("--annotations", tmp_path / "i.json", "--images", tmp_path)
    done = run_convert(tmp_path / "out.jsonl", "coco-detection", *flags)
    assert [row["image"] for row in done.rows] == [image]
    assert words in done.words


def test_a_column_of_a_table_keeps_its_addresses(tmp_path: Path) -> None:
    write_one(tmp_path / "t.csv", "image,prefix,suffix\nhttps://x.org/1.png,a,b\ngs://b/2.png,a,b\n")
    write_one(tmp_path / "1.png", PICTURE)
    done = run_convert(tmp_path / "out.jsonl", "table", "--table", tmp_path / "t.csv")
    assert [row["image"] for row in done.rows] == ["https://x.org/1.png", "gs://b/2.png"]
