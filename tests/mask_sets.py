"""Masks in COCO's form, and conversions of them, for tests."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
from converting import Conversion, run_convert
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pycocotools import mask as coco

from paligemma.data.rows import Row, read_rows

MISSING = object()
WIDTH, HEIGHT = 120, 90
IMAGES = [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}]
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
POLYGON = [20.5, 10, 70.2, 12.5, 80, 60, 40, 75.5, 18, 50]
BOX = [18, 10, 62, 65.5]
THING = {"id": 5, "image_id": 1, "category_id": 3, "bbox": BOX, "segmentation": [POLYGON], "iscrowd": 0}
WHOLE = "<loc0000><loc0000><loc1023><loc1023>"


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


def photo(path: Path, orientation: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, (90, 90, 90)).save(path, exif=exif)


def turned(mask: np.ndarray, orientation: int) -> np.ndarray:
    """As Pillow turns a picture with this orientation."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    image.getexif()[0x0112] = orientation

    return np.asarray(ImageOps.exif_transpose(image)) > 0


NUMBERS = st.integers() | st.floats() | st.sampled_from([1, 3, 10**12, -1e308])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda value: st.lists(value, max_size=8) | st.dictionaries(st.sampled_from(["id", "size", "counts"]), value, max_size=3),
    max_leaves=10,
)


def counts_are_right(folder: Path, done: Conversion, entries: int) -> None:
    """Entries used and skipped are the entries read; what is written is a row for prepare_data."""
    assert done.exit_code in (0, 2)
    if done.exit_code == 0:
        used = sum(len(row["masks"]) for row in done.rows)
        assert f"{entries} " in done.words
        assert used + len(done.skipped) == entries
        assert all(isinstance(row, Row) for _, row in read_rows(folder / "out.jsonl"))
    for name in ("out.jsonl", "out.jsonl.skipped.jsonl"):
        (folder / name).unlink(missing_ok=True)
