"""`paligemma convert boxes` and `refcoco` with `--mask-codes`: the outlines of annotation tools as rows with `<seg>`."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from converting import VALUES, Conversion, assert_accounted, places, run_convert, with_value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from published_boxes import BOXES
from published_forms import PICTURE, Published, write_one
from pyarrow import parquet
from pycocotools import mask as coco

from paligemma.data.run_lengths import read_runs, write_runs

WIDTH, HEIGHT = 40, 30
BOX = (10, 6, 30, 24)
POLYGON = [(10, 6), (30, 8), (26, 24), (12, 20)]


def rectangle(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def polygon(points: list, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """As pycocotools makes it."""
    flat = [[float(value) for point in points for value in point]]
    return coco.decode(coco.merge(coco.frPyObjects(flat, height, width))).astype(bool)


def ellipse(x: float, y: float, right: float, down: float) -> np.ndarray:
    """The pixels whose middles are inside."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return ((columns - x) / right) ** 2 + ((rows - y) / down) ** 2 <= 1


def png(mask: np.ndarray) -> str:
    packed = io.BytesIO()
    Image.fromarray(mask).save(packed, "PNG")
    return base64.b64encode(packed.getvalue()).decode()


def row_lengths(mask: np.ndarray) -> str:
    """Runs along the rows, from one outside the object, as CVAT writes them."""
    flat = [False, *mask.reshape(-1).tolist()]
    changes = [place for place in range(1, len(flat)) if flat[place] != flat[place - 1]]
    return ", ".join(str(stop - start) for start, stop in itertools.pairwise([1, *changes, len(flat)]))


def cvat(*shapes: str) -> str:
    return f'<annotations><image id="0" name="1.png" width="40" height="30">{"".join(shapes)}</image></annotations>'


def labelme(kind: str | None, points: object, **more: object) -> dict:
    shape = {"label": "cat", "points": points, "shape_type": kind} | more
    return {"imagePath": "1.png", "imageWidth": WIDTH, "imageHeight": HEIGHT, "shapes": [shape]}


def studio(kind: str, value: dict, **more: object) -> list:
    result = {"type": kind, "value": value, "original_width": WIDTH, "original_height": HEIGHT} | more
    result = {key: value for key, value in result.items() if value is not ...}
    return [{"data": {"image": "/data/upload/1/0a1b2c3d-1.png"}, "annotations": [{"result": [result]}]}]


def voc(*boxes: tuple[int, int, int, int], segmented: str = "1") -> str:
    edges = ("xmin", "ymin", "xmax", "ymax")
    objects = ["".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(edges, box, strict=True)) for box in boxes]
    size = "<size><width>40</width><height>30</height></size>"
    named = [f"<object><name>cat</name><bndbox>{box}</bndbox></object>" for box in objects]
    return f"<annotation><filename>1.png</filename>{size}<segmented>{segmented}</segmented>{''.join(named)}</annotation>"


NAMES = {"yolo": "data.yaml", "voc": "Annotations/1.xml", "cvat": "1.xml", "labelme": "x/1.json", "label-studio": "1.json"}


def convert(folder: Path, codes: Path, form: str, content: object, *flags: object) -> Conversion:
    """Converts one file, beside a picture of 40 x 30 pixels; of yolo, the labels of the picture."""
    for picture in ("1.png", "x/1.png", "images/1.png"):
        write_one(folder / picture, PICTURE)
    name = "labels/1.txt" if form == "yolo" else NAMES[form]
    write_one(folder / "data.yaml", "train: images\nnames: [cat, dog]\n")
    write_one(folder / name, content)
    annotations = folder / (NAMES[form].rpartition("/")[0] or NAMES[form])
    flags = ("--annotations", annotations, "--images", folder, "--mask-codes", codes, *flags)
    return run_convert(folder / "out.jsonl", "boxes", "--form", form, *flags)


# label_studio_converter 0.0.59 wrote this: brush.mask2rle of an ellipse, 20 x 18 pixels, with levels at its edge.
BRUSH = list(base64.b64decode(
    "AAASwDkb/wP7AIxCNwjr4++f/j746+NwjEM5gEcBH34f/4++OAzOARiEefi//jz4xDLYBGIR5+N/+PPjEMrgEdBj//joMpgEZhkf/jMMngEdBkf/joMngEe/"
    "kf/j38ngGT//J4Bk//yeAR7+R/+PfyeAR0GR/+OgyeARmGR/+MwymAR0GP/+OgyuARiEefjf/jz4xDLYBGIR5+L/+PPjEMzgEcBH34f/4++OAzmARiEbhHXx"
    "98//H3x18bhGIcD+wAA="
))  # fmt: skip
TURNED = [(20 - 9, 15 - 10), (20 + 9, 15 - 10), (20 + 9, 15 + 10), (20 - 9, 15 + 10)]
SMALL = ellipse(10, 9, 10, 9)[:18, :20]
YOLO = " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in POLYGON)
POINTS = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in POLYGON]
MASKS = [
    # form | file | the mask
    ("yolo", f"0 {YOLO}\n", polygon(POLYGON)),
    ("yolo", f"0 {YOLO} {10 / WIDTH} {6 / HEIGHT}\n", polygon(POLYGON)),  # closed
    ("cvat", cvat('<polygon label="cat" points="10,6;30,8;26,24;12,20"/>'), polygon(POLYGON)),
    ("cvat", cvat('<box label="cat" xtl="10" ytl="6" xbr="30" ybr="24"/>'), rectangle(*BOX)),
    ("cvat", cvat('<box label="cat" xtl="10" ytl="6" xbr="30" ybr="24" rotation="90"/>'), polygon(TURNED)),
    ("cvat", cvat('<ellipse label="cat" cx="20" cy="15" rx="10" ry="9"/>'), ellipse(20, 15, 10, 9)),
    ("cvat", cvat(f'<mask label="cat" rle="{row_lengths(SMALL)}" left="10" top="6" width="20" height="18"/>'),
     ellipse(20, 15, 10, 9)),
    ("labelme", labelme("polygon", POLYGON), polygon(POLYGON)),
    ("labelme", labelme(None, POLYGON), polygon(POLYGON)),
    ("labelme", labelme("oriented_rectangle", TURNED), polygon(TURNED)),
    ("labelme", labelme("rectangle", [(30, 6), (10, 24)]), rectangle(*BOX)),
    ("labelme", labelme("circle", [(20, 15), (20, 24)]), ellipse(20, 15, 9, 9)),
    ("labelme", labelme("mask", [(10, 6), (29, 23)], mask=png(SMALL)), ellipse(20, 15, 10, 9)),
    ("label-studio", studio("polygonlabels", {"points": POINTS, "polygonlabels": ["cat"]}), polygon(POLYGON)),
    ("label-studio", studio("polygonlabels", {"points": POINTS, "polygonlabels": ["cat"]}, original_width=...),
     polygon(POLYGON)),
    ("label-studio", studio("rectanglelabels", {"x": 25, "y": 20, "width": 50, "height": 60, "rectanglelabels": ["cat"]}),
     rectangle(*BOX)),
    ("label-studio", studio("rectanglelabels", {"x": 75, "y": 20, "width": 45, "height": 200 / 3, "rotation": 90,
     "rectanglelabels": ["cat"]}), rectangle(*BOX)),
    ("label-studio", studio("ellipselabels", {"x": 50, "y": 50, "radiusX": 25, "radiusY": 30, "ellipselabels": ["cat"]}),
     ellipse(20, 15, 10, 9)),
    ("label-studio", studio("brushlabels", {"format": "rle", "rle": BRUSH, "brushlabels": ["cat"]}), None),
    ("label-studio", studio("labels", {"format": "rle", "rle": BRUSH, "labels": ["cat"]}), None),
]  # fmt: skip


@pytest.mark.parametrize(("form", "content", "mask"), MASKS, ids=range(len(MASKS)))
def test_an_outline_is_the_mask_of_its_row(
    tmp_path: Path, codes: Path, form: str, content: object, mask: np.ndarray | None
) -> None:
    done = convert(tmp_path, codes, form, content)
    (row,) = done.rows
    assert row["prefix"] == "segment cat"
    assert re.fullmatch(r"(<loc\d{4}>){4}(<seg\d{3}>){16} cat", row["suffix"])
    found = read_runs(row["masks"][0])
    if mask is None:  # the brush's levels begin outside of the ellipse that was painted
        assert found.sum() == 308
        assert (found >= ellipse(20, 15, 10, 9)).all()
    else:
        assert (found != mask).sum() <= ("ellipse" in str(content))  # one pixel, whose middle is on the edge
    assert row["round_trip_iou"] > 0.85
    columns, rows = np.flatnonzero(found.any(0)), np.flatnonzero(found.any(1))
    edges = rows[0] / HEIGHT, columns[0] / WIDTH, (rows[-1] + 1) / HEIGHT, (columns[-1] + 1) / WIDTH
    location = [int(step) for step in re.findall(r"<loc(\d{4})>", row["suffix"])]
    assert np.abs(np.array(location) - np.array(edges) * 1023).max() < 1023 / 30  # a pixel, by which a polygon may be less
    assert "1 used, 0 skipped" in done.words


def test_without_the_flag_the_same_file_makes_boxes(tmp_path: Path, codes: Path) -> None:
    for form, content, _ in MASKS[2:]:
        convert(tmp_path, codes, form, content)
        annotations = tmp_path / (NAMES[form].rpartition("/")[0] or NAMES[form])
        flags = ("--form", form, "--annotations", annotations, "--images", tmp_path)
        done = run_convert(tmp_path / "out.jsonl", "boxes", *flags)
        assert [row["prefix"] for row in done.rows] == ["detect cat"], form
        assert "<seg" not in done.rows[0]["suffix"]


def _drawn(draw: Callable[[ImageDraw.ImageDraw], None], share: float) -> np.ndarray:
    """Pillow's drawing at 16 times the size: a pixel is inside if more than a share of it is."""
    large = Image.new("L", (WIDTH * 16, HEIGHT * 16))
    draw(ImageDraw.Draw(large))
    return np.asarray(large.resize((WIDTH, HEIGHT), Image.Resampling.BOX)) > 255 * share


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_outlines_cover_what_pillow_draws(tmp_path: Path, codes: Path, seed: int) -> None:
    """Pixels may differ that the outline goes through, and no others."""
    draw = np.random.default_rng(seed)
    angles = np.sort(draw.random(draw.integers(3, 9))) * 2 * np.pi
    far = draw.uniform(5, 20, len(angles))
    points = [(20 + r * np.cos(a), 15 + 0.7 * r * np.sin(a)) for r, a in zip(far, angles, strict=True)]
    around = np.ptp(points, axis=0)
    if around.min() < 3:
        return
    done = convert(tmp_path, codes, "labelme", labelme("polygon", points))
    if not done.rows:
        assert done.codes in (["mask_empty"], ["box_outside"])
        return
    drawn = _drawn(lambda canvas: canvas.polygon([(16 * x, 16 * y) for x, y in points], fill=255), 0.5)
    line = _drawn(lambda canvas: canvas.line([(16 * x, 16 * y) for x, y in [*points, points[0]]], fill=255, width=24), 0)
    assert not ((read_runs(done.rows[0]["masks"][0]) != drawn) & ~line).any()


def test_objects_of_one_class_are_one_row_and_of_two_are_two(tmp_path: Path, codes: Path) -> None:
    labels = "0 0.1 0.1 0.4 0.1 0.4 0.4\n1 0.5 0.5 0.9 0.5 0.9 0.9\n0 0.6 0.1 0.9 0.1 0.9 0.4\n"
    done = convert(tmp_path, codes, "yolo", labels)
    assert [(row["prefix"], len(row["masks"])) for row in done.rows] == [("segment cat", 2), ("segment dog", 1)]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_masks_in_fractions_may_be_on_photos_as_they_are_stored(tmp_path: Path, codes: Path, orientation: int) -> None:
    convert(tmp_path, codes, "yolo", f"0 {YOLO}\n")
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Image.new("RGB", (WIDTH, HEIGHT))
    photo.save(tmp_path / "images/1.png", exif=exif)
    displayed = (WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH)
    done = convert_again(tmp_path, codes)
    scaled = [(x / WIDTH * displayed[0], y / HEIGHT * displayed[1]) for x, y in POLYGON]
    assert (read_runs(done.rows[0]["masks"][0]) == polygon(scaled, displayed[1], displayed[0])).all()
    done = convert_again(tmp_path, codes, "--box-pixels", "stored")
    turned = Image.fromarray(polygon(POLYGON).astype(np.uint8)).transpose(
        {1: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270,
         8: Image.Transpose.ROTATE_90}[orientation]
    )  # fmt: skip
    turned = turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if orientation == 1 else turned
    assert (read_runs(done.rows[0]["masks"][0]) == np.asarray(turned)).all()


def convert_again(folder: Path, codes: Path, *flags: object) -> Conversion:
    flags = ("--annotations", folder / "data.yaml", "--images", folder, "--mask-codes", codes, *flags)
    return run_convert(folder / "out.jsonl", "boxes", "--form", "yolo", *flags)


MASK = '<mask label="cat" rle="{}" left="{}" top="6" width="20" height="18"/>'
HALF = BRUSH[: len(BRUSH) // 2]
LARGE = png(np.ones((HEIGHT, 400), bool))
ODD = [
    # form | file | codes | words
    ("yolo", "0 0.5 0.5 0.5 0.5\n", ["mask_missing"], "there is only a box"),
    ("yolo", "0 0.1 0.1 0.4 0.1 0.4\n", ["box_malformed"], "the line is"),
    ("yolo", "0 0.1 0.1 0.4 0.1 nan 0.4\n", ["box_malformed"], "the line is"),
    ("yolo", "0 0.1 0.1 0.4 0.1 9e5 0.4\n", ["mask_too_large"], "pixels"),
    ("yolo", "0 0.1 0.1 0.4 0.1 1e300 0.4\n", ["mask_too_large"], "reaches farther"),
    ("yolo", "0 2 2 3 2 3 3\n", ["box_outside"], "outside of the image"),
    ("yolo", "0 0.1 0.1 0.4 0.1 0.4 0.1\n", ["box_empty"], "the box around the points"),
    ("cvat", cvat('<polyline label="cat" points="1,1;2,2"/><tag label="cat"/>'), ["shape_other"] * 2, "left out on purpose"),
    ("cvat", cvat('<polygon label="cat" points="1,1;9,9"/>'), ["mask_malformed"], "a polygon of 2 points"),
    ("cvat", cvat(MASK.format(row_lengths(SMALL), 10.5)), ["mask_malformed"], "not whole numbers"),
    ("cvat", cvat(MASK.format(row_lengths(SMALL), -1e30)), ["box_empty"], "-1e+30"),
    ("cvat", cvat(MASK.format("1,2", 10)), ["mask_malformed"], "counts are of 3 pixels, its size of 360"),
    ("cvat", cvat(MASK.format("", 10)), ["mask_malformed"], "negative"),
    ("cvat", cvat(MASK.format("-1,361", 10)), ["mask_malformed"], "negative"),
    ("cvat", cvat(MASK.format("1e2,260", 10)), ["mask_malformed"], "negative"),
    ("cvat", cvat(MASK.format("9" * 5000 + ",1", 10)), ["mask_malformed"], "negative"),
    ("cvat", cvat(MASK.format("360", 10)), ["mask_empty"], "0 in the image"),
    ("cvat", cvat(MASK.format(row_lengths(SMALL), 35)), [], "1 box_clipped"),
    ("cvat", cvat(MASK.format(row_lengths(SMALL), 45)), ["box_outside"], "outside of the image"),
    ("cvat", cvat('<mask label="cat" rle="1" left="0" top="0" width="60000" height="60000"/>'), ["mask_malformed"],
     "more than 67108864 pixels"),
    ("cvat", cvat('<ellipse label="cat" cx="20" cy="15" rx="1e9" ry="9"/>'), ["mask_too_large"], "a radius of 1e+09"),
    ("cvat", cvat('<box label="cat" xtl="1" ytl="1" xbr="1e9" ybr="9"/>'), ["mask_too_large"], "reaches farther"),
    ("labelme", labelme("linestrip", POLYGON), ["shape_other"], "'linestrip'"),
    ("labelme", labelme("mask", [(10, 6), (29, 23)]), ["mask_missing"], "the mask is nothing"),
    ("labelme", labelme("mask", [(10, 6), (29, 23)], mask="no base64"), ["mask_missing"], "'no base64'"),
    ("labelme", labelme("mask", [(10, 6), (29, 23)], mask=7), ["mask_missing"], "the mask is 7"),
    ("labelme", labelme("mask", [(10, 6), (29, 23)], mask="AAAA"), ["mask_file_unreadable"], "the mask"),
    ("labelme", labelme("mask", [(10, 6), (29, 23)], mask=png(SMALL)[:80]), ["mask_file_unreadable"], "the mask"),
    ("labelme", labelme("mask", [(10, 6), (29, 23)], mask=png(~SMALL & False)), ["mask_empty"], "0 in the image"),
    ("labelme", labelme("mask", [(0, 0), (39, 29)], mask=LARGE), [], "1 used"),  # what is outside is cut off
    ("labelme", labelme("mask", POLYGON, mask=png(SMALL)), ["box_malformed"], "a list of 4"),
    ("label-studio", studio("brushlabels", {"rle": HALF, "brushlabels": ["cat"]}), ["mask_malformed"], "bits end"),
    ("label-studio", studio("brushlabels", {"rle": "AAAS", "brushlabels": ["cat"]}), ["mask_malformed"], "not a list of bytes"),
    ("label-studio", studio("brushlabels", {"rle": [256], "brushlabels": ["cat"]}), ["mask_malformed"], "a list of 1"),
    ("label-studio", studio("brushlabels", {"rle": [None] * 99, "brushlabels": ["cat"]}), ["mask_malformed"], "a list of 99"),
    ("label-studio", studio("brushlabels", {"rle": BRUSH, "brushlabels": ["cat"]}, original_width=41), ["mask_size"],
     "4800 values, the image 41 x 30"),
    ("label-studio", studio("brushlabels", {"rle": BRUSH, "brushlabels": ["cat"]}, original_width=...), ["mask_size"],
     "no original_width"),
    ("label-studio", studio("brushlabels", {"rle": BRUSH, "brushlabels": ["cat"]}, original_width=1e9, original_height=1e9),
     ["mask_too_large"], "1000000000 x 1000000000"),
    ("label-studio", studio("brushlabels", {"rle": BRUSH, "brushlabels": []}), ["category_unnamed"], "None"),
    ("label-studio", studio("keypointlabels", {"keypointlabels": ["cat"]}), ["shape_other"], "'keypointlabels'"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "content", "found", "words"), ODD, ids=range(len(ODD)))
def test_every_odd_outline_is_used_or_skipped_with_its_reason(
    tmp_path: Path, codes: Path, form: str, content: object, found: list[str], words: str
) -> None:
    done = convert(tmp_path, codes, form, content)
    assert done.codes == found
    assert len(done.rows) == (not found)
    assert words in done.words + json.dumps(done.skipped, ensure_ascii=False)


def test_a_mask_in_fractions_of_a_picture_that_is_not_there_is_skipped(tmp_path: Path, codes: Path) -> None:
    task = studio("polygonlabels", {"points": POINTS, "polygonlabels": ["cat"]}, original_width=...)
    task[0]["data"]["image"] = "gone.png"
    assert convert(tmp_path, codes, "label-studio", task).codes == ["size_unknown"]


# --- Pascal VOC


def indices(path: Path, values: np.ndarray) -> None:
    picture = Image.fromarray(values.astype(np.uint8), "P")
    picture.putpalette(bytes(range(256)) * 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


OBJECTS = np.zeros((HEIGHT, WIDTH), np.uint8)
OBJECTS[6:24, 10:20], OBJECTS[6:24, 20:30], OBJECTS[5, 10:30] = 1, 2, 255


def test_the_nth_object_of_voc_has_the_value_n(tmp_path: Path, codes: Path) -> None:
    indices(tmp_path / "SegmentationObject/1.png", OBJECTS)
    done = convert(tmp_path, codes, "voc", voc((11, 6, 20, 24), (21, 6, 30, 24)))
    (row,) = done.rows
    assert row["prefix"] == "segment cat"
    assert [read_runs(mask).tolist() for mask in row["masks"]] == [(value == OBJECTS).tolist() for value in (1, 2)]
    assert "2 boxes in pixels that are counted from 1" in done.words


VOC = [
    # the file | the picture of objects | codes
    (voc((11, 6, 20, 24), segmented="0"), OBJECTS, ["left_out"]),
    (voc((11, 6, 20, 24)), None, ["mask_file_missing"]),
    (voc((21, 6, 30, 24)), OBJECTS, ["mask_empty"]),  # the first object is elsewhere
    (voc((11, 6, 20, 24), (21, 6, 30, 24), (1, 1, 9, 9)), OBJECTS, ["mask_empty"]),
    (voc((11, 6, 20, 24)), OBJECTS[:, :20], ["mask_size"]),
]


@pytest.mark.parametrize(("content", "picture", "found"), VOC, ids=range(len(VOC)))
def test_odd_objects_of_voc_are_skipped(tmp_path: Path, codes: Path, content: str, picture: np.ndarray, found: list) -> None:
    if picture is not None:
        indices(tmp_path / "SegmentationObject/1.png", picture)
    assert convert(tmp_path, codes, "voc", content).codes == found


def test_a_split_of_voc_is_that_of_segmentation(tmp_path: Path, codes: Path) -> None:
    indices(tmp_path / "SegmentationObject/1.png", OBJECTS)
    write_one(tmp_path / "ImageSets/Segmentation/train.txt", "1\n")
    write_one(tmp_path / "ImageSets/Main/train.txt", "2\n")
    assert len(convert(tmp_path, codes, "voc", voc((11, 6, 20, 24)), "--split", "train").rows) == 1


# --- referring expressions

FLAT = [float(value) for point in POLYGON for value in point]
ANNOTATION = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [10, 6, 20, 18], "segmentation": [FLAT]}
IMAGES = [{"id": 1, "file_name": "1.png", "width": WIDTH, "height": HEIGHT}]
SENTENCES = [{"sent": "the cat"}, {"sent": "left"}, {"sent": "the cat"}]


def refer(folder: Path, codes: Path, annotation: dict, *flags: object) -> Conversion:
    write_one(folder / "1.png", PICTURE)
    write_one(folder / "refs.json", [{"ref_id": 3, "ann_id": 7, "split": "train", "sentences": SENTENCES}])
    write_one(folder / "i.json", {"images": IMAGES, "annotations": [annotation], "categories": []})
    flags = ("--annotations", folder / "i.json", "--refs", folder / "refs.json", "--mask-codes", codes, *flags)
    return run_convert(folder / "out.jsonl", "refcoco", *flags)


def test_an_expression_is_asked_for_as_the_transfer_did(tmp_path: Path, codes: Path) -> None:
    """The expression alone; box and mask without a name. Each expression is a row, also one that is there twice."""
    done = refer(tmp_path, codes, ANNOTATION)
    assert sorted(row["prefix"] for row in done.rows) == ["left", "the cat", "the cat"]
    for row in done.rows:
        assert re.fullmatch(r"<loc0205><loc0256><loc0818><loc0767>(<seg\d{3}>){16}", row["suffix"])
        assert (row["masks"][0]["label"], row["round_trip_iou"] > 0.85) == ("", True)
        assert (read_runs(row["masks"][0]) == polygon(POLYGON)).all()


def test_an_expression_may_have_run_lengths_or_no_mask(tmp_path: Path, codes: Path) -> None:
    assert len(refer(tmp_path, codes, ANNOTATION | {"segmentation": write_runs(polygon(POLYGON))}).rows) == 3
    assert refer(tmp_path, codes, ANNOTATION | {"segmentation": []}).codes == ["mask_missing"] * 3
    assert refer(tmp_path, codes, ANNOTATION | {"segmentation": [[1, 2, 3]]}).codes == ["mask_malformed"] * 3


RAW = json.dumps(ANNOTATION)
TABLES = [
    # a row of a Parquet file | codes
    ({"image_path": "1.png", "bbox": [10, 6, 30, 24], "sentences": SENTENCES[:1], "raw_anns": RAW}, []),
    ({"image_path": "1.png", "bbox": [10, 6, 30, 24], "sentences": SENTENCES[:1], "raw_anns": "{"}, ["mask_malformed"]),
    ({"image_path": "1.png", "bbox": [10, 6, 30, 24], "sentences": SENTENCES[:1], "raw_anns": "[1]"}, ["mask_malformed"]),
    ({"image_path": "1.png", "bbox": [10, 6, 30, 24], "sentences": SENTENCES[:1], "raw_anns": None}, ["mask_missing"]),
    ({"image_path": "1.png", "bbox": [10, 6, 30, 24], "sentences": SENTENCES[:1]}, ["mask_missing"]),
    ({"image": "1.png", "bbox": [10.0, 6.0, 20.0, 18.0], "answer": ["the cat"], "segmentation": FLAT}, []),
    ({"image": "1.png", "bbox": [10.0, 6.0, 20.0, 18.0], "answer": ["the cat"], "segmentation": [1.0]}, ["mask_malformed"]),
]


@pytest.mark.parametrize(("row", "found"), TABLES, ids=range(len(TABLES)))
def test_expressions_in_parquet_have_their_masks_too(tmp_path: Path, codes: Path, row: dict, found: list[str]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "val.parquet")
    write_one(tmp_path / "1.png", PICTURE)
    done = run_convert(tmp_path / "out.jsonl", "refcoco", "--annotations", tmp_path / "val.parquet", "--mask-codes", codes)
    assert done.codes == found
    assert [read_runs(one["masks"][0]).tolist() for one in done.rows] == ([] if found else [polygon(POLYGON).tolist()])


# --- anything

ODD_WORDS = ["", "nan", "1e999", "-1", "0", "<", "9" * 40]
WITH_MASKS = [one for one in BOXES if one.command[0] in ("boxes", "refcoco")]


@pytest.mark.parametrize("published", WITH_MASKS, ids=[one.form for one in WITH_MASKS])
@settings(max_examples=40, deadline=None)
@given(data=st.data(), value=VALUES)
def test_any_value_anywhere_never_ends_in_a_traceback(
    published: Published, tmp_path_factory: pytest.TempPathFactory, codes: Path, data: st.DataObject, value: object
) -> None:
    folder = tmp_path_factory.mktemp("form")
    arguments = published.write(folder)
    name = data.draw(st.sampled_from([name for name, content in published.files.items() if content is not PICTURE]))
    content = published.files[name]
    if isinstance(content, str):
        words = re.findall(r"[\w.]+|\W", content)
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(st.sampled_from(ODD_WORDS))
        write_one(folder / name, "".join(words))
    else:
        changed = with_value(content, data.draw(st.sampled_from(places(content))), value)
        write_one(folder / name, json.dumps(changed))
    done = run_convert(folder / "out.jsonl", *arguments, "--mask-codes", codes)
    assert_accounted(done, folder / "out.jsonl", None, one_each=False)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, len(BRUSH) - 1), st.integers(0, 255)), max_size=5), most=st.integers(0, 194))
def test_any_bytes_of_a_brush_are_a_mask_or_a_reason(tmp_path: Path, codes: Path, changes: list, most: int) -> None:
    stream = list(BRUSH)
    for place, value in changes:
        stream[place] = value
    task = studio("brushlabels", {"format": "rle", "rle": stream[: most or None], "brushlabels": ["cat"]})
    (tmp_path / "out.jsonl").unlink(missing_ok=True)
    done = convert(tmp_path, codes, "label-studio", task)
    assert len(done.rows) + len(done.codes) == 1
    assert {*done.codes} <= {"mask_malformed", "mask_size", "mask_empty", "mask_too_large"}
