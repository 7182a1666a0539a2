"""Masks that are made to take time: what is looked at for an image is bounded, whatever a file of a few kilobytes says.

Tests count the pixels that are made, not seconds.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from converting import Conversion, run_convert
from PIL import Image

from paligemma.data import seg_masks
from paligemma.data.convert import label_pictures, outlines
from paligemma.data.convert.photos import Frame
from paligemma.data.run_lengths import Runs

SIDE = 8000
WHOLE = [0, 0, SIDE, 0, SIDE, SIDE, 0, SIDE]
MOST = 1 << 24
"""In place of `MOST_WORK`, so that the tests take a moment: 128 times as little."""


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Pixels that were made, by how; with a small bound on them."""
    counts: Counter[str] = Counter()
    part, pixels, polygons = Runs.part, Runs.pixels, outlines.coco.frPyObjects

    def count_part(self: Runs, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        counts["pixels"] += (right - left) * (bottom - top)
        return part(self, left, top, right, bottom)

    def count_pixels(self: Runs) -> np.ndarray:
        counts["pixels"] += self.height * self.width
        return pixels(self)

    def count_polygons(objects: list, height: int, width: int) -> object:
        counts["polygons"] += len(objects) if isinstance(objects, list) else 0
        return polygons(objects, height, width)

    monkeypatch.setattr(Runs, "part", count_part)
    monkeypatch.setattr(Runs, "pixels", count_pixels)
    monkeypatch.setattr(outlines.coco, "frPyObjects", count_polygons)
    monkeypatch.setattr(outlines, "MOST_WORK", MOST)
    monkeypatch.setattr(outlines, "_LOOKS", 1)
    return counts


def instances(folder: Path, codes: Path, annotations: list, side: int = SIDE, names: int = 1) -> Conversion:
    images = [{"id": 1, "file_name": "a.jpg", "width": side, "height": side}]
    categories = [{"id": number, "name": f"class {number}"} for number in range(names)]
    (folder / "x.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    flags = ("--annotations", folder / "x.json", "--mask-codes", codes)
    return run_convert(folder / "out.jsonl", "coco-instances", *flags)


def thing(number: int, segmentation: object, category: int = 0) -> dict:
    return {"id": number, "image_id": 1, "category_id": category, "segmentation": segmentation}


def test_thousands_of_objects_as_large_as_the_picture_are_skipped(tmp_path: Path, codes: Path, looked_at: Counter) -> None:
    side = 2000
    whole = [value * side // SIDE for value in WHOLE]
    done = instances(tmp_path, codes, [thing(number, [whole]) for number in range(3000)], side)
    assert len(done.rows) == 1
    assert {*done.codes} == {"mask_too_costly"}
    assert len(done.rows[0]["masks"]) == 3  # of which each takes its own pixels, and the first those of the row
    assert looked_at["pixels"] < 3 * MOST  # each is made once, and once more where codes are compared with masks


def test_hundreds_of_classes_whose_objects_are_far_apart_are_skipped(tmp_path: Path, codes: Path, looked_at: Counter) -> None:
    side = 2000
    corners = [[0, 0, 9, 0, 9, 9, 0, 9], [side - 9, side - 9, side, side - 9, side, side]]
    both = [(number, corner) for number in range(100) for corner in corners]
    annotations = [thing(place, [corner], number) for place, (number, corner) in enumerate(both)]
    done = instances(tmp_path, codes, annotations, side, 100)
    assert [len(row["masks"]) for row in done.rows] == [2] * 4 + [1] * 96
    assert done.codes == ["mask_too_costly"] * 96
    assert looked_at["pixels"] < 3 * MOST


def test_small_objects_of_a_large_picture_take_what_small_ones_take(tmp_path: Path, codes: Path, looked_at: Counter) -> None:
    """An aerial picture: 400 objects in rows, each of 20 x 20 pixels."""
    small = [thing(n, [[x, 7000, x + 20, 7000, x + 20, 7020, x, 7020]]) for n, x in enumerate(range(0, SIDE, 20))]
    done = instances(tmp_path, codes, small)
    assert (len(done.rows[0]["masks"]), done.codes) == (400, [])
    assert looked_at["pixels"] < 2 * 400 * 20 * 20 + SIDE * 30  # and the strip that holds them all


def test_long_outlines_are_counted_before_they_are_drawn(tmp_path: Path, codes: Path, looked_at: Counter) -> None:
    """Twenty points, of which half of the edges are a thousand pictures long: pycocotools sorts five points for each pixel."""
    far = [0, 0, 100_000, 0, 100_000, 50, 0, 50] * 5
    done = instances(tmp_path, codes, [thing(number, [far]) for number in range(3000)], 100)
    assert {*done.codes} == {"mask_too_costly"}
    assert looked_at["polygons"] == MOST // (8 * 10 * 100_000)


def test_every_point_of_an_outline_counts(
    tmp_path: Path, codes: Path, looked_at: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edges shorter than a pixel, of which a circle has 200,000."""
    monkeypatch.setattr(outlines, "MOST_WORK", 8 * 200_000 * 2 + 50_000)
    angles = np.linspace(0, 2 * np.pi, 200_000, endpoint=False)
    circle = (50 + 40 * np.stack([np.cos(angles), np.sin(angles)], axis=1)).reshape(-1).round(3).tolist()
    done = instances(tmp_path, codes, [thing(number, [circle]) for number in range(4)], 100)
    assert (looked_at["polygons"], done.codes) == (2, ["mask_too_costly"] * 2)


def test_a_row_that_no_line_can_hold_is_read_no_further(tmp_path: Path, codes: Path, looked_at: Counter) -> None:
    """Six thousand objects of 200 bytes are more than the 1 MiB of a line."""
    small = [thing(number, [[1, 1, 9, 1, 9, 9, 1, 9]]) for number in range(20_000)]
    done = instances(tmp_path, codes, small, 100)
    assert {*done.codes} == {"line_too_long"}
    assert looked_at["polygons"] < 6000


def test_a_picture_of_masks_is_not_read_for_every_annotation(
    tmp_path: Path, codes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Annotations that name two pictures in turn."""
    reads: Counter[str] = Counter()
    read = label_pictures.read_values
    monkeypatch.setattr(label_pictures, "read_values", lambda data, name: (reads.update([name]), read(data, name))[1])
    ids = np.zeros((50, 50, 3), np.uint8)
    ids[10:40, 10:40, 0] = 1
    for name in ("a.png", "b.png"):
        Image.fromarray(ids).save(tmp_path / name)
    images = [{"id": 1, "file_name": "a.jpg", "width": 50, "height": 50}]
    segments = [{"id": 1, "category_id": 0}]
    annotations = [{"image_id": 1, "file_name": name, "segments_info": segments} for name in ("a.png", "b.png") * 500]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "cat"}]}
    (tmp_path / "x.json").write_text(json.dumps(data))
    flags = ("--annotations", tmp_path / "x.json", "--masks", tmp_path, "--mask-codes", codes)
    done = run_convert(tmp_path / "out.jsonl", "coco-panoptic", *flags)
    assert (len(done.rows), {*done.codes}) == (32, {"mask_too_costly"})
    assert reads == {"a.png": 16, "b.png": 16}


def test_packed_pictures_in_a_label_file_are_counted_before_they_are_unpacked(
    tmp_path: Path, codes: Path, looked_at: Counter
) -> None:
    """LabelMe's masks are PNG files in base64: one of 2,000 x 2,000 pixels takes a kilobyte."""
    packed = io.BytesIO()
    Image.new("1", (2000, 2000), 1).save(packed, "PNG")
    mask = base64.b64encode(packed.getvalue()).decode()
    shape = {"label": "cat", "shape_type": "mask", "points": [[0, 0], [1999, 1999]], "mask": mask}
    labels = {"imagePath": "a.jpg", "imageWidth": 100, "imageHeight": 100, "shapes": [shape] * 500}
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.json").write_text(json.dumps(labels))
    flags = ("--form", "labelme", "--annotations", tmp_path / "labels", "--mask-codes", codes)
    done = run_convert(tmp_path / "out.jsonl", "boxes", *flags)
    assert (len(done.rows[0]["masks"]), {*done.codes}) == (4, {"mask_too_costly"})


def test_masks_of_a_class_are_compared_with_their_codes_once(looked_at: Counter) -> None:
    """Evaluation compares an answer with a row's masks: a thousand masks of one label make the picture once."""
    mask = Runs(SIDE, SIDE, np.array([0, SIDE * SIDE]))
    masks = [seg_masks.TrueMask("cat", SIDE, SIDE, mask.text)] * 1000
    assert seg_masks.count_overlaps("", masks, lambda known: np.zeros((0, 64, 64))) == {"cat": (0, SIDE * SIDE)}
    assert looked_at["pixels"] == SIDE * SIDE


def test_many_segments_of_a_large_picture_take_a_part_of_it_each(tmp_path: Path) -> None:
    """A street scene of nine million pixels: of 100 segments, each is found in the picture, and only its box becomes runs."""
    ids = np.zeros((3000, 3000), np.uint8)
    for number in range(100):
        ids[30 * number : 30 * number + 20, 100:200] = number + 1
    Image.fromarray(ids).save(tmp_path / "a.png")
    pictures, work = label_pictures.LabelPictures(tmp_path), outlines.Work(Frame(3000, 3000))
    areas = {pictures.mask("a.png", number, Frame(3000, 3000), work).area for number in range(1, 101)}
    assert areas == {20 * 100}
    assert work.done == 100 * (3000 * 3000 // 4 + 20 * 100)
