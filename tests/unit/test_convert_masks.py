"""`paligemma convert` on polygons, run lengths and pictures of masks: rows with `<seg>`, and odd entries with their reasons."""

from __future__ import annotations

import itertools
import json
import re
import resource
from pathlib import Path

import numpy as np
import pytest
from converting import Conversion, run_convert
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mask_weights import square_weights, write_weights
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from paligemma.data.convert.masks import turn_mask
from paligemma.data.mask_codes import read_decoder
from paligemma.data.rows import Row, read_rows
from paligemma.data.run_lengths import read_runs, write_runs
from paligemma.data.seg_masks import count_overlaps, mean_iou, true_masks

MISSING = object()
WIDTH, HEIGHT = 120, 90
IMAGES = [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}]
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
POLYGON = [20.5, 10, 70.2, 12.5, 80, 60, 40, 75.5, 18, 50]
BOX = [18, 10, 62, 65.5]
THING = {"id": 5, "image_id": 1, "category_id": 3, "bbox": BOX, "segmentation": [POLYGON], "iscrowd": 0}
WHOLE = "<loc0000><loc0000><loc1023><loc1023>"


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("codes") / "vae-oid.npz", square_weights())


def but(entry: dict, **changes: object) -> dict:
    return {key: value for key, value in (entry | changes).items() if value is not MISSING}


def convert(folder: Path, codes: Path, annotations: list, *flags: object, images: list = IMAGES) -> Conversion:
    data = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "x.json").write_text(json.dumps(data))
    flags = ("--annotations", folder / "x.json", "--mask-codes", codes, *flags)
    return run_convert(folder / "out.jsonl", "coco-instances", *flags)


def mask_of(polygons: list, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """As pycocotools makes it."""
    return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)


def listed(mask: np.ndarray) -> dict:
    """Run lengths that are not packed, counted here."""
    flat = mask.T.reshape(-1)
    ends = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size]
    counts = [stop - start for start, stop in itertools.pairwise(ends)]
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


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


def photo(path: Path, orientation: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, (90, 90, 90)).save(path, exif=exif)


def turned(mask: np.ndarray, orientation: int) -> np.ndarray:
    """As Pillow turns a picture with this orientation."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    image.getexif()[0x0112] = orientation
    from PIL import ImageOps

    return np.asarray(ImageOps.exif_transpose(image)) > 0


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


def test_without_the_weights_it_says_where_they_are(tmp_path: Path) -> None:
    done = convert(tmp_path, tmp_path / "none.npz", [THING])
    assert done.exit_code == 2
    assert "There is no mask encoder." in done.words
    assert "gs://big_vision/paligemma" in done.words


# --- anything


NUMBERS = st.integers() | st.floats() | st.sampled_from([1, 3, 10**12, -1e308])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda value: st.lists(value, max_size=8) | st.dictionaries(st.sampled_from(["id", "size", "counts"]), value, max_size=3),
    max_leaves=10,
)
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
    _counts_are_right(tmp_path, done, len(data["annotations"]) if isinstance(data["annotations"], list) else 0)


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
    _counts_are_right(tmp_path, done, sum(len(one) if isinstance(one, list) and one else 1 for one in lists))


def _counts_are_right(folder: Path, done: Conversion, entries: int) -> None:
    """Entries used and skipped are the entries read; what is written is a row for prepare_data."""
    assert done.exit_code in (0, 2)
    if done.exit_code == 0:
        used = sum(len(row["masks"]) for row in done.rows)
        assert f"{entries} " in done.words
        assert used + len(done.skipped) == entries
        assert all(isinstance(row, Row) for _, row in read_rows(folder / "out.jsonl"))
    for name in ("out.jsonl", "out.jsonl.skipped.jsonl"):
        (folder / name).unlink(missing_ok=True)
