"""`paligemma convert coco-panoptic` and `masks`: pictures in which a pixel's value says what it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from converting import Conversion, run_convert
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mask_sets import (
    CATEGORIES,
    HEIGHT,
    IMAGES,
    JSON,
    MISSING,
    WIDTH,
    but,
    counts_are_right,
    photo,
    turned,
)
from PIL import Image

from paligemma.data.run_lengths import read_runs, write_runs

# --- panoptic


def coloured(path: Path, ids: np.ndarray) -> None:
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(path)


def panoptic(folder: Path, codes: Path, annotations: list, *flags: object, images: list = IMAGES) -> Conversion:
    data = {"images": images, "annotations": annotations, "categories": [but(one, isthing=1) for one in CATEGORIES]}
    (folder / "x.json").write_text(json.dumps(data))
    flags = ("--annotations", folder / "x.json", "--masks", folder, "--mask-codes", codes, *flags)
    return run_convert(folder / "out.jsonl", "coco-panoptic", *flags)


SEGMENTS = np.zeros((HEIGHT, WIDTH), np.int64)
SEGMENTS[10:40, 20:60], SEGMENTS[50:80, 5:50], SEGMENTS[:, 90:] = 3, 256 * 7 + 1, 65536 * 200 + 256 * 100 + 9


def segment(id: object, category: object = 3, **others: object) -> dict:
    return {"id": id, "category_id": category, "iscrowd": 0, **others}


def test_segments_are_found_by_the_colour_of_their_id(tmp_path: Path, codes: Path) -> None:
    coloured(tmp_path / "a.png", SEGMENTS)
    ids = sorted(set(SEGMENTS.reshape(-1).tolist()) - {0})
    segments = [segment(ids[0], bbox=[20, 10, 40, 30]), segment(ids[1]), segment(ids[2], 7)]
    done = panoptic(tmp_path, codes, [{"image_id": 1, "file_name": "a.png", "segments_info": segments}])
    assert [(row["prefix"], len(row["masks"])) for row in done.rows] == [("segment cat", 2), ("segment dog", 1)]
    for row, wanted in zip(done.rows, (ids[:2], ids[2:]), strict=True):
        assert [write_runs(id == SEGMENTS)["counts"] for id in wanted] == [kept["counts"] for kept in row["masks"]]
        assert row["round_trip_iou"] > 0.9  # rectangles, of which big_vision's whole pixels cut off a row and a column
    assert done.rows[1]["suffix"] == f"<loc0000><loc0767><loc1023><loc1023>{'<seg080>' * 16} dog"
    assert "3 segments read: 3 used, 0 skipped" in done.words


ODD_SEGMENTS = [
    # changes to the annotation | the segment | why it is skipped | words
    ({}, segment(3, 99), "category_unlisted", "none of id 99"),
    ({}, segment(3, iscrowd=1), "crowd", "left out on purpose"),
    ({}, segment(4), "mask_empty", "the mask has no pixel"),
    ({}, segment(4, bbox=[1, 2, 3, 4]), "mask_empty", "none in 3 x 4 pixels"),
    ({}, segment(3, bbox=[1, 2, "x", 4]), "box_malformed", "four finite numbers"),
    ({}, segment(0), "segment_id_missing", "the segment's id is 0"),
    ({}, segment(-1), "segment_id_missing", "the segment's id is -1"),
    ({}, segment(256**3), "segment_id_missing", "16777216"),
    ({}, segment(10**400), "segment_id_missing", "1000"),
    ({}, segment(None), "segment_id_missing", "nothing"),
    ({}, 7, "not_an_object", "the annotation is 7"),
    ({"file_name": "none.png"}, segment(3), "mask_file_missing", "none.png"),
    ({"file_name": "../a.png"}, segment(3), "mask_file_missing", "../a.png"),
    ({"file_name": None}, segment(3), "mask_file_missing", "the file_name of the masks is nothing"),
    ({"file_name": "x.json"}, segment(3), "mask_file_unreadable", "x.json"),
    ({"file_name": "half.png"}, segment(3), "mask_file_unreadable", "half.png"),
    ({"file_name": "photo.jpg"}, segment(3), "mask_file_unreadable", "JPEG, which does not keep values exactly"),
    ({"file_name": "square.png"}, segment(3), "mask_size", "is 50 x 50, the image 120 x 90"),
    ({"file_name": "huge.png"}, segment(3), "mask_file_unreadable", "100000 x 100000 pixels"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "one", "code", "words"), ODD_SEGMENTS)
def test_every_odd_segment_is_skipped_with_its_reason(
    tmp_path: Path, codes: Path, changes: dict, one: object, code: str, words: str
) -> None:
    coloured(tmp_path / "a.png", SEGMENTS)
    (tmp_path / "half.png").write_bytes((tmp_path / "a.png").read_bytes()[:120])
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "photo.jpg")
    coloured(tmp_path / "square.png", np.zeros((50, 50), np.int64))
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    (tmp_path / "huge.png").write_bytes(data)
    annotation = {"image_id": 1, "file_name": "a.png", "segments_info": [one]} | changes
    done = panoptic(tmp_path, codes, [annotation])
    assert done.codes == [code]
    assert done.skipped[0]["place"] == "annotations[0].segments_info[0]"
    assert words in done.words


@pytest.mark.parametrize("segments", [MISSING, None, {}, [], "x", 3])
def test_an_annotation_without_segments_is_one_entry(tmp_path: Path, codes: Path, segments: object) -> None:
    done = panoptic(tmp_path, codes, [but({"image_id": 1, "file_name": "a.png"}, segments_info=segments)])
    assert done.codes == ["segments_missing"]
    assert "1 of 1 segments cannot be used" in done.words


# --- pictures of masks beside photos


def folders(root: Path, masks: dict[str, Image.Image], photos: tuple[str, ...] = ("a.jpg",)) -> None:
    for path in (*(root / "photos" / name for name in photos), *(root / "masks" / name for name in masks)):
        path.parent.mkdir(parents=True, exist_ok=True)
    for name in photos:
        photo(root / "photos" / name, 1)
    for name, mask in masks.items():
        mask.save(root / "masks" / name)


def convert_masks(root: Path, codes: Path, *flags: object) -> Conversion:
    flags = ("--images", root / "photos", "--masks", root / "masks", "--mask-codes", codes, *flags)
    return run_convert(root / "out.jsonl", "masks", *flags)


def indexed(values: np.ndarray, colours: int = 256) -> Image.Image:
    """A picture with a palette, as VOC's: colours are drawn at random, and say nothing."""
    picture = Image.fromarray(values.astype(np.uint8), "P")
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 3 * colours, np.uint8).tobytes())
    return picture


def classes(root: Path, names: object) -> Path:
    (root / "classes.json").write_text(json.dumps(names))
    return root / "classes.json"


VALUES = np.zeros((HEIGHT, WIDTH), np.uint8)
VALUES[10:40, 20:60], VALUES[50:80, 5:50], VALUES[:, 118:] = 1, 2, 255


@pytest.mark.parametrize("kind", ["palette", "grey", "colour", "16 bit"])
def test_a_pixels_value_is_its_class(tmp_path: Path, codes: Path, kind: str) -> None:
    names: object = ["background", "cat", "dog"]
    mask = {
        "palette": indexed(VALUES),
        "grey": Image.fromarray(VALUES),
        "16 bit": Image.fromarray(VALUES.astype(np.uint16)),
        "colour": Image.fromarray(np.stack([VALUES == 1, VALUES == 255, VALUES == 2], axis=-1).astype(np.uint8) * 255),
    }[kind]
    if kind == "colour":
        names = {"#ff0000": "cat", "#0000fF": "dog", "0": "background"}
    folders(tmp_path, {"a.png": mask})
    done = convert_masks(tmp_path, codes, "--classes", classes(tmp_path, names))
    labels = ["background", "cat", "dog"]
    assert [row["prefix"] for row in done.rows] == [f"segment {label}" for label in labels]
    for row, value in zip(done.rows, (0, 1, 2), strict=True):
        assert row["image"] == "a.jpg"
        assert (read_runs(row["masks"][0]) == (value == VALUES)).all()
    assert min(row["round_trip_iou"] for row in done.rows[1:]) > 0.9
    assert done.codes == ["label_unnamed" if kind == "colour" else "label_void"]


def test_all_that_is_not_zero_is_one_object(tmp_path: Path, codes: Path) -> None:
    masks = {"sub/a_mask.png": Image.fromarray(VALUES > 0), "b_mask.png": Image.new("L", (WIDTH, HEIGHT))}
    folders(tmp_path, masks, ("sub/a.jpg", "b.webp", "c.jpg"))
    done = convert_masks(tmp_path, codes, "--label", "thing", "--mask-name", "{name}_mask.png")
    (row,) = done.rows
    assert (row["image"], row["prefix"]) == ("sub/a.jpg", "segment thing")
    assert (read_runs(row["masks"][0]) == (VALUES > 0)).all()
    assert "1 pictures of masks with nothing but background" in done.words
    assert "1 masks read: 1 used, 0 skipped" in done.words
    assert convert_masks(tmp_path, codes, "--label", "thing", "--mask-name", "{name}_mask.png").rows == done.rows


def test_odd_pictures_of_masks_are_skipped_with_their_reasons(tmp_path: Path, codes: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    masks = {
        "a.png": indexed(VALUES),
        "b.png": indexed(VALUES),
        "c.png": Image.fromarray(noise),
        "d.png": indexed(VALUES),
        "e.png": indexed(VALUES[:, :50]),
    }
    folders(tmp_path, masks, ("a.jpg", "b.jpg", "b.png", "c.jpg", "e.jpg", "f.jpg"))
    (tmp_path / "masks" / "f.png").write_bytes(b"no picture")
    (tmp_path / "masks" / "read me.txt").write_text("x")
    done = convert_masks(tmp_path, codes, "--classes", classes(tmp_path, {"1": "cat"}))
    assert {(one["place"], one["id"], one["code"]) for one in done.skipped} == {
        ("a.png", 2, "label_unnamed"),
        ("a.png", 255, "label_void"),
        ("b.png", None, "image_ambiguous"),
        ("c.png", None, "mask_file_unreadable"),
        ("d.png", None, "mask_without_image"),
        ("e.png", 1, "size_disagrees"),
        ("e.png", 2, "label_unnamed"),
        ("f.png", None, "mask_file_unreadable"),
        ("read me.txt", None, "mask_without_image"),
    }
    assert [row["image"] for row in done.rows] == ["a.jpg"]


@pytest.mark.parametrize("orientation", [3, 6])
def test_pictures_of_masks_are_turned_with_their_photo(tmp_path: Path, codes: Path, orientation: int) -> None:
    folders(tmp_path, {"a.png": indexed(VALUES)})
    photo(tmp_path / "photos" / "a.jpg", orientation)
    done = convert_masks(
        tmp_path, codes, "--classes", classes(tmp_path, {"1": "cat", "2": "dog", "255": "edge"}), "--box-pixels", "stored"
    )
    assert (read_runs(done.rows[0]["masks"][0]) == turned(VALUES == 1, orientation)).all()


@pytest.mark.parametrize(
    "names", [3, [], {}, ["a;b"], ["<x"], [" "], [None], {"x": "cat"}, {"1": 3}, {"1": "a", "01": "b"}, {"-1": "a"}]
)
def test_classes_that_cannot_be_used_are_refused(tmp_path: Path, codes: Path, names: object) -> None:
    folders(tmp_path, {"a.png": indexed(VALUES)})
    done = convert_masks(tmp_path, codes, "--classes", classes(tmp_path, names))
    assert done.exit_code == 2
    assert "classes.json" in done.words


def test_flags_that_contradict_each_other_are_refused(tmp_path: Path, codes: Path) -> None:
    folders(tmp_path, {"a.png": indexed(VALUES)})
    for flags in ((), ("--label", "x", "--classes", "y"), ("--label", "a;b"), ("--label", "x", "--mask-name", "a.png")):
        assert convert_masks(tmp_path, codes, *flags).exit_code == 2
    assert run_convert(tmp_path / "o.jsonl", "masks", "--images", tmp_path / "masks", "--masks", tmp_path / "masks",
                       "--mask-codes", codes, "--label", "x").exit_code == 2  # fmt: skip


# --- anything

SEGMENT_PLACES = ["annotations", "segments_info", "file_name", "image_id", "id", "category_id", "bbox", "iscrowd", "segment"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(SEGMENT_PLACES), value=JSON)
def test_any_value_in_any_place_of_panoptic_segments_is_used_skipped_or_refused(
    tmp_path: Path, codes: Path, place: str, value: object
) -> None:
    coloured(tmp_path / "a.png", SEGMENTS)
    one: dict = segment(3, bbox=[20, 10, 40, 30])
    annotation: dict = {"image_id": 1, "file_name": "a.png", "segments_info": [one, segment(256 * 7 + 1)]}
    annotations: object = [annotation]
    if place == "annotations":
        annotations = value
    elif place == "segment":
        annotation["segments_info"][0] = value
    else:
        (annotation if place in annotation else one)[place] = value
    data = {"images": IMAGES, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "x.json").write_text(json.dumps(data))
    flags = ("--annotations", tmp_path / "x.json", "--masks", tmp_path, "--mask-codes", codes)
    done = run_convert(tmp_path / "out.jsonl", "coco-panoptic", *flags)
    found = annotations if isinstance(annotations, list) else []
    lists = [
        one["segments_info"] if isinstance(one, dict) and one.get("image_id") in (1, "1") and "segments_info" in one else []
        for one in found
    ]
    counts_are_right(tmp_path, done, sum(len(one) if isinstance(one, list) and one else 1 for one in lists))
