"""`paligemma convert coco-instances` on polygons and run lengths: rows with `<seg>`, and odd entries with their reasons."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import numpy as np
import pytest
from converting import run_convert
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mask_sets import (
    CATEGORIES,
    HEIGHT,
    IMAGES,
    JSON,
    MISSING,
    POLYGON,
    THING,
    WIDTH,
    but,
    convert,
    counts_are_right,
    listed,
    mask_of,
    photo,
    turned,
)
from PIL import Image
from pycocotools.coco import COCO

from paligemma.data.convert.masks import turn_mask
from paligemma.data.mask_codes import read_decoder
from paligemma.data.run_lengths import read_runs, write_runs
from paligemma.data.seg_masks import count_overlaps, mean_iou, true_masks

FORMS = {
    "polygon": [POLYGON],
    "numbers as texts": [[str(value) for value in POLYGON]],
    "run lengths": listed(mask_of([POLYGON])),
    "packed run lengths": write_runs(mask_of([POLYGON])),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_in_any_form_makes_the_same_row(tmp_path: Path, codes: Path, form: str) -> None:
    """The suffix is computed by hand: with weights that take the means of squares, a code is four squares of a third each."""
    done = convert(tmp_path, codes, [but(THING, segmentation=FORMS[form])])
    mask = mask_of([POLYGON])
    crop = Image.fromarray(mask[10:76, 18:80].astype(np.float32))  # 75.5 is rounded to the even 76
    squares = np.asarray(crop.resize((64, 64), Image.Resampling.BILINEAR)).reshape(8, 8, 8, 8).mean((1, 3))
    thirds = np.rint(2 * squares).astype(int).reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(16, 4) @ [27, 9, 3, 1]
    location = "".join(f"<loc{round(edge * 1023):04d}>" for edge in (10 / 90, 18 / 120, 75.5 / 90, 80 / 120))
    (row,) = done.rows
    assert row["suffix"] == location + "".join(f"<seg{code:03d}>" for code in thirds) + " cat"
    assert (row["image"], row["prefix"]) == ("a.jpg", "segment cat")
    (kept,) = row["masks"]
    assert kept["label"] == "cat"
    assert (read_runs(kept) == mask).all()
    assert row["round_trip_iou"] > 0.8
    assert f"IoU of a row's masks with those that its codes give back: mean {row['round_trip_iou']:.3f}" in done.words
    assert "1 annotations read: 1 used, 0 skipped" in done.words


def test_masks_are_those_of_pycocotools(tmp_path: Path, codes: Path) -> None:
    """Many objects of two classes, of one polygon and several, beyond the image and inside."""
    draw = np.random.default_rng(0)
    annotations = []
    for number in range(60):
        polygons = [
            (draw.uniform(-0.2, 1.2, (draw.integers(3, 8), 2)) * (WIDTH, HEIGHT)).reshape(-1).round(2).tolist()
            for _ in range(draw.integers(1, 4))
        ]
        mask = mask_of(polygons)
        thing = but(THING, id=number, category_id=(3, 7)[number % 2], segmentation=polygons, bbox=MISSING)
        if number % 3:
            thing |= {"segmentation": (listed if number % 3 == 1 else write_runs)(mask)}
        annotations.append(thing | {"image_id": 1, "area": 1.0})
    done = convert(tmp_path, codes, annotations)
    assert [row["prefix"] for row in done.rows] == ["segment cat", "segment dog"]
    theirs = COCO(tmp_path / "x.json")
    for row, category in zip(done.rows, (3, 7), strict=True):
        wanted = sorted(
            write_runs(theirs.annToMask(one).astype(bool))["counts"] for one in annotations if one["category_id"] == category
        )
        assert sorted(kept["counts"] for kept in row["masks"]) == wanted
        labels = re.findall(r"(?:<loc\d{4}>){4}(?:<seg\d{3}>){16} (\w+)(?: ; |$)", row["suffix"])
        assert labels == [row["prefix"].split()[1]] * 30
        assert row["suffix"] == " ; ".join(sorted(row["suffix"].split(" ; ")))
        assert row["round_trip_iou"] == round(
            mean_iou(count_overlaps(row["suffix"], true_masks(row["masks"]), read_decoder(codes))), 4
        )


ODD = [
    # the annotation | why it is skipped; None if it is used | words
    (but(THING, bbox=MISSING), None, "1 box_from_polygon"),
    (but(THING, bbox=[], segmentation=write_runs(mask_of([POLYGON]))), None, "1 used"),
    (but(THING, segmentation=[POLYGON, [1, 2], [1, 2, 3, 4]]), None, "2 polygon_dropped"),
    (but(THING, bbox=[-5, 10, 100, 70]), None, "1 box_clipped"),
    (but(THING, iscrowd=1), "crowd", "left out on purpose"),
    (but(THING, category_id=99), "category_unlisted", "none of id 99"),
    (but(THING, image_id=2), "image_unlisted", "none of id 2"),
    (but(THING, bbox=[1, 2, 3]), "box_malformed", "[1, 2, 3]"),
    (but(THING, bbox=[200, 20, 50, 80]), "box_outside", "outside of the image"),
    (but(THING, bbox=[0.1, 0.2, 0.5, 0.7]), "box_fraction", "fractions of the image"),
    (but(THING, bbox=[18, 10, 0.3, 60]), "mask_too_small", "half a pixel"),
    (but(THING, bbox=[18.2, 10, 0.01, 60]), "box_too_small", "a step is 1/1023"),
    (but(THING, bbox=[100, 70, 20, 20]), "mask_empty", "none in 20 x 20 pixels at 100, 70"),
    (but(THING, segmentation=MISSING), "mask_missing", "the segmentation is nothing"),
    (but(THING, segmentation=[]), "mask_missing", "the segmentation is a list of 0"),
    (but(THING, segmentation="all"), "mask_malformed", "'all', not a list of lists"),
    (but(THING, segmentation=POLYGON), "mask_malformed", "not a list of lists"),
    (but(THING, segmentation=[POLYGON[:-1]]), "mask_malformed", "a polygon of 9 values"),
    (but(THING, segmentation=[[1, 2, 3, 4]]), "mask_malformed", "no polygon has three points"),
    (but(THING, segmentation=[[*POLYGON[:-1], None]]), "mask_malformed", "a polygon of 10 values"),
    (but(THING, segmentation=[[*POLYGON[:-1], float("nan")]]), "mask_malformed", "a polygon of 10 values"),
    (but(THING, segmentation=[[*POLYGON[:-1], float("inf")]]), "mask_malformed", "a polygon of 10 values"),
    (but(THING, segmentation=[[*POLYGON[:-1], 1e9]]), "mask_too_large", "farther than 10,000,000 pixels"),
    (but(THING, segmentation=[[0, 0, 5e6, 0, 0, 5e6]]), "mask_too_large", "pixels long"),
    (but(THING, segmentation=[[0, 0, 100, 90, 0, 90] * 100_000]), "mask_too_large", "pixels long"),
    (but(THING, segmentation={"size": [HEIGHT, WIDTH]}), "mask_malformed", "neither a text nor a list"),
    (but(THING, segmentation={"size": [HEIGHT, WIDTH], "counts": [10**12]}), "mask_malformed", "larger than the 10800 pixels"),
    (but(THING, segmentation={"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}), "mask_empty", "0 in the image"),
    (but(THING, segmentation={"size": [10**9, 10**9], "counts": [10**18]}), "mask_malformed", "more than 67108864 pixels"),
    (but(THING, segmentation=listed(mask_of([POLYGON]).T)), "mask_size", "it is 90 x 120, the image 120 x 90"),
    (but(THING, segmentation=listed(np.ones((4, 4), bool))), "mask_size", "it is 4 x 4, the image 120 x 90"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "code", "words"), ODD)
def test_every_odd_mask_is_used_or_skipped_with_its_reason(
    tmp_path: Path, codes: Path, annotation: dict, code: str | None, words: str
) -> None:
    done = convert(tmp_path, codes, [annotation])
    assert done.codes == ([code] if code else [])
    assert len(done.rows) == (code is None)
    assert words in done.words
    assert done.exit_code == (2 if code else 0)


def test_images_of_a_billion_pixels_a_side_are_skipped(tmp_path: Path, codes: Path) -> None:
    for size in ((10**9, 10**9), (1e308, 1e308), (10**9, 1)):
        image = but(IMAGES[0], width=size[0], height=size[1])
        done = convert(tmp_path, codes, [but(THING, bbox=[0, 0, size[0], size[1]])], images=[image])
        assert done.codes == ["mask_too_large"]


def test_outlines_of_a_million_points_take_bounded_memory(tmp_path: Path, codes: Path) -> None:
    """Short edges, so that the outline is just not too long; long ones, and points far away, are refused."""
    angles = np.linspace(0, 2 * np.pi, 1_000_000, endpoint=False)
    circle = np.stack([60 + 40 * np.cos(angles), 45 + 40 * np.sin(angles)], axis=1).reshape(-1).tolist()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = convert(tmp_path, codes, [but(THING, segmentation=[circle], bbox=MISSING)])
    assert len(done.rows) == 1
    assert mask_of([circle]).sum() == read_runs(done.rows[0]["masks"][0]).sum()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800_000  # KiB, of which half is the JSON


def test_run_lengths_of_noise_are_skipped(tmp_path: Path, codes: Path) -> None:
    noise = np.random.default_rng(0).random((600, 1000)) < 0.5
    image = but(IMAGES[0], width=1000, height=600)
    done = convert(tmp_path, codes, [but(THING, segmentation=write_runs(noise)), THING], images=[image])
    assert done.codes == ["mask_too_detailed"]
    assert len(done.rows) == 1


def test_a_row_that_no_line_can_hold_costs_its_own_objects_only(tmp_path: Path, codes: Path) -> None:
    noise = write_runs(np.random.default_rng(0).random((400, 1000)) < 0.5)
    image = but(IMAGES[0], width=1000, height=400)
    many = [but(THING, id=number, segmentation=noise) for number in range(6)]
    done = convert(tmp_path, codes, [*many, but(THING, category_id=7)], images=[image])
    assert done.codes == ["line_too_long"] * 6
    assert [row["prefix"] for row in done.rows] == ["segment dog"]
    assert len(convert(tmp_path, codes, many[:5], images=[image]).rows[0]["masks"]) == 5


# --- orientations and sizes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_in_stored_pixels_are_turned_with_the_photo(tmp_path: Path, codes: Path, orientation: int) -> None:
    stored = mask_of([POLYGON])
    displayed = turned(stored, orientation)
    assert (turn_mask(stored, orientation) == displayed).all()
    photo(tmp_path / "a.jpg", orientation)
    done = convert(tmp_path, codes, [THING], "--box-pixels", "stored")
    (row,) = done.rows
    assert (read_runs(row["masks"][0]) == displayed).all()
    assert row["round_trip_iou"] > 0.8  # boxes and codes are turned too, or they would not give the mask back
    height, width = displayed.shape
    image = but(IMAGES[0], width=width, height=height)
    upright = but(THING, bbox=MISSING, segmentation=write_runs(displayed))
    done = convert(tmp_path, codes, [upright], "--box-pixels", "displayed", images=[image])
    assert done.rows[0]["masks"] == row["masks"]


def test_the_size_says_in_which_pixels_masks_are(tmp_path: Path, codes: Path) -> None:
    photo(tmp_path / "a.jpg", 6)
    assert "1 boxes_turned" in convert(tmp_path, codes, [THING]).words
    sideways = but(THING, bbox=MISSING, segmentation=write_runs(mask_of([POLYGON]).T))
    for size in ({"width": HEIGHT, "height": WIDTH}, {"width": MISSING, "height": MISSING}):  # that of the run lengths
        done = convert(tmp_path, codes, [sideways], images=[but(IMAGES[0], **size)])
        assert "1 boxes_upright" in done.words
        assert done.rows[0]["masks"][0]["size"] == [WIDTH, HEIGHT]


def test_masks_of_a_scaled_photo_keep_their_own_resolution(tmp_path: Path, codes: Path) -> None:
    plain = convert(tmp_path, codes, [THING]).rows
    photo(tmp_path / "a.jpg", 1, (4 * WIDTH, 4 * HEIGHT))
    done = convert(tmp_path, codes, [THING])
    assert "1 size_scaled" in done.words
    assert done.rows == plain


def test_masks_of_a_photo_of_other_proportions_are_skipped(tmp_path: Path, codes: Path) -> None:
    photo(tmp_path / "a.jpg", 1, (WIDTH, WIDTH))
    assert convert(tmp_path, codes, [THING]).codes == ["size_disagrees"]


def test_without_the_weights_it_says_where_they_are(tmp_path: Path) -> None:
    done = convert(tmp_path, tmp_path / "none.npz", [THING])
    assert done.exit_code == 2
    assert "There is no mask encoder." in done.words
    assert "gs://big_vision/paligemma" in done.words


# --- anything

INSTANCE_PLACES = ["annotations", "images", "categories", *THING, "width", "height", "file_name", "name"]


@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(INSTANCE_PLACES), value=JSON, form=st.sampled_from([*FORMS]), other=st.booleans())
def test_any_value_in_any_place_of_instances_is_used_skipped_or_refused(
    tmp_path: Path, codes: Path, place: str, value: object, form: str, other: bool
) -> None:
    thing = but(THING, segmentation=FORMS[form])
    data: dict = {"images": [dict(IMAGES[0])], "categories": CATEGORIES, "annotations": [dict(thing), thing][: 1 + other]}
    if place in data:
        data[place] = value if other or not isinstance(value, list) else [*data[place], *value]
    else:
        holder = {"width": data["images"], "height": data["images"], "file_name": data["images"], "name": CATEGORIES}
        if place == "name":
            data["categories"] = [but(CATEGORIES[0], name=value)]
        else:
            holder.get(place, data["annotations"])[0][place] = value
    (tmp_path / "x.json").write_text(json.dumps(data))
    done = run_convert(tmp_path / "out.jsonl", "coco-instances", "--annotations", tmp_path / "x.json", "--mask-codes", codes)
    counts_are_right(tmp_path, done, len(data["annotations"]) if isinstance(data["annotations"], list) else 0)
