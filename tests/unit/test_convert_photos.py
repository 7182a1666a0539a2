"""Boxes on photos with an EXIF orientation land on what they are around, as prepare_data shows it to the model."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from converting import Conversion, run_convert
from PIL import Image

from paligemma.data.convert.photos import Photo, read_header
from paligemma.data.images import decode_image
from paligemma.data.records import open_records
from paligemma.data.tfrecord import RowReader

WIDTH, HEIGHT = 96, 64
STORED_BOX = [10, 20, 24, 12]
"""x, y, width, height of what is red in the pixels that are stored."""


def photo(
    orientation: int, kind: str = "JPEG", size: tuple[int, int] = (WIDTH, HEIGHT), box: Sequence[int] = STORED_BOX
) -> bytes:
    """A grey picture with a red box, and an EXIF orientation."""
    x, y, width, height = box
    image = Image.new("RGB", size, (90, 90, 90))
    image.paste((255, 0, 0), (x, y, x + width, y + height))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    exact = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    image.save(file, kind, exif=exif, **exact)
    return file.getvalue()


def displayed_box(orientation: int) -> list[int]:
    """Where the red is once the picture is turned: found in its pixels."""
    ys, xs = np.nonzero(decode_image(photo(orientation, "PNG"))[..., 1] == 0)
    return [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]


def convert(folder: Path, entries: list[tuple[str, bytes | None, dict, list]], *flags: str) -> Conversion:
    """Converts images of (name, contents, other keys of the entry, box)."""
    images, annotations = [], []
    for number, (name, data, keys, box) in enumerate(entries):
        if data is not None:
            (folder / name).write_bytes(data)
        images.append({"id": number, "file_name": name, **keys})
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": box})
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "red"}]}
    (folder / "x.json").write_text(json.dumps(data))
    return run_convert(folder / "out.jsonl", "coco-detection", "--annotations", folder / "x.json", *flags)


def size(width: int, height: int) -> dict[str, int]:
    return {"width": width, "height": height}


STORED, DISPLAYED, SQUARE = size(WIDTH, HEIGHT), size(HEIGHT, WIDTH), (WIDTH, WIDTH)


def red_in(row: dict, folder: Path) -> float:
    """The share of a row's box that is red in the picture that the model sees, and 0 if red is outside of it too."""
    red = decode_image((folder / row["image"]).read_bytes()).astype(int) @ [1, -1, 0] > 100
    height, width = red.shape
    y1, x1, y2, x2 = (int(value) / 1023 for value in re.findall(r"<loc(\d{4})>", row["suffix"]))
    inside = red[round(y1 * height) : round(y2 * height), round(x1 * width) : round(x2 * width)]
    return float(inside.mean()) if inside.sum() == red.sum() else 0.0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_in_stored_and_in_displayed_pixels_land_on_the_same_thing(tmp_path: Path, orientation: int) -> None:
    sideways = orientation >= 5
    entries = [("stored.jpg", photo(orientation), STORED, STORED_BOX)]
    if sideways:  # else nothing tells the two apart
        entries.append(("displayed.jpg", photo(orientation), DISPLAYED, displayed_box(orientation)))
    for entry in entries:
        done = convert(tmp_path, [entry], *(() if sideways else ("--box-pixels", "stored")))
        assert red_in(done.rows[0], tmp_path) == 1.0
        word = "boxes_turned" if entry[0] == "stored.jpg" else "boxes_upright"
        assert (f"1 {word}" in done.words) == (orientation > 1)


def test_where_sizes_do_not_tell_boxes_are_in_displayed_pixels_and_that_is_said(tmp_path: Path) -> None:
    for keys in (size(*SQUARE), {}):
        done = convert(tmp_path, [("a.png", photo(6, "PNG", SQUARE), keys, [WIDTH - 32, 10, 12, 24])])
        assert red_in(done.rows[0], tmp_path) == 1.0
        assert "1 orientation_unclear" in done.words
        assert "displayed pixels; --box-pixels says which" in done.words
    done = convert(tmp_path, [("a.png", photo(3, "PNG"), STORED, displayed_box(3))])
    assert red_in(done.rows[0], tmp_path) == 1.0


def test_where_there_is_no_size_boxes_tell_that_fit_into_one_of_the_two_only(tmp_path: Path) -> None:
    stored = [WIDTH - 30, 4, 24, 12]  # beyond the displayed photo's right edge
    done = convert(tmp_path, [("a.jpg", photo(6, box=stored), {}, stored)])
    assert red_in(done.rows[0], tmp_path) == 1.0
    assert "1 boxes_turned" in done.words
    assert "orientation_unclear" not in done.words


def test_where_sizes_do_not_tell_the_other_photos_of_the_file_do(tmp_path: Path) -> None:
    clear = ("clear.jpg", photo(8), STORED, STORED_BOX)
    unclear = ("unclear.png", photo(3, "PNG"), STORED, STORED_BOX)
    done = convert(tmp_path, [unclear, clear])
    assert [red_in(row, tmp_path) for row in done.rows] == [1.0, 1.0]
    assert "taken to be in stored pixels" in done.words
    other = ("other.jpg", photo(8), DISPLAYED, displayed_box(8))  # now they tell both
    done = convert(tmp_path, [unclear, clear, other])
    assert [red_in(row, tmp_path) == 1.0 for row in done.rows] == [False, True, True]
    assert "taken to be in displayed pixels" in done.words


@pytest.mark.parametrize("which", ["stored", "displayed"])
def test_it_may_be_told_which_pixels_boxes_are_in(tmp_path: Path, which: str) -> None:
    box = STORED_BOX if which == "stored" else displayed_box(6)
    for keys in (STORED, DISPLAYED, {}):
        done = convert(tmp_path, [("a.jpg", photo(6), keys, box)], "--box-pixels", which)
        assert red_in(done.rows[0], tmp_path) == 1.0
        assert "orientation_unclear" not in done.words


@pytest.mark.parametrize(
    ("keys", "scale", "words"),
    [
        (STORED, 1, "1 used"),
        ({}, 1, "1 size_from_file"),
        ({"width": "?", "height": None}, 1, "1 size_from_file"),
        (size(4 * WIDTH, 4 * HEIGHT), 4, "1 size_scaled: images have another size than the annotations say"),
        (size(WIDTH // 2, HEIGHT // 2), 0.5, "1 size_scaled"),
        (size(WIDTH + 1, HEIGHT), 1, "1 size_scaled"),
    ],
)
def test_sizes_that_are_missing_or_of_the_same_proportions_are_made_good(
    tmp_path: Path, keys: dict, scale: float, words: str
) -> None:
    done = convert(tmp_path, [("a.png", photo(1, "PNG"), keys, [value * scale for value in STORED_BOX])])
    assert red_in(done.rows[0], tmp_path) == 1.0
    assert words in done.words


@pytest.mark.parametrize("keys", [DISPLAYED, size(WIDTH, WIDTH), size(2 * WIDTH, HEIGHT)])
def test_sizes_of_other_proportions_cost_the_boxes(tmp_path: Path, keys: dict) -> None:
    done = convert(tmp_path, [("a.jpg", photo(1), keys, STORED_BOX)])
    assert (done.rows, done.codes) == ([], ["size_disagrees"])
    assert f"'a.jpg' is {WIDTH} x {HEIGHT}, its annotations are of" in done.words


@pytest.mark.parametrize("data", [None, b"", b"no image", photo(1)[:20]])
def test_images_that_cannot_be_opened_keep_their_boxes_and_that_is_said(tmp_path: Path, data: bytes | None) -> None:
    done = convert(tmp_path, [("a.jpg", data, STORED, STORED_BOX), ("b.jpg", data, {}, STORED_BOX)])
    assert [row["image"] for row in done.rows] == ["a.jpg"]
    assert done.codes == ["size_unknown"]
    assert "1 size_unchecked: images could not be opened" in done.words


def test_images_are_found_in_another_folder_and_in_tar_files_but_not_outside(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(photo(6))
    with tarfile.open(tmp_path / "photos/b.tar", "w") as tar:
        tar.add(tmp_path / "photos/a.jpg", "c.jpg")
    (tmp_path / "photos/out.jpg").symlink_to(tmp_path / "x.json")
    names = ["a.jpg", "b.tar/c.jpg", "b.tar/d.jpg", "out.jpg", "photos", "a\u0301" * 200 + ".jpg"]
    done = convert(tmp_path, [(name, None, STORED, STORED_BOX) for name in names], "--images", str(tmp_path / "photos"))
    assert "2 boxes_turned" in done.words
    assert "4 size_unchecked" in done.words


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8, 0, 9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_headers_give_the_size_that_prepare_data_sees(kind: str, orientation: int) -> None:
    data = photo(orientation, kind)
    height, width, _ = decode_image(data).shape
    found = read_header(io.BytesIO(data))
    assert found == Photo(width, height, orientation if 1 < orientation < 9 else 1)
    assert found.stored == (WIDTH, HEIGHT)


def test_an_orientation_after_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    data = photo(6, "PNG")
    start = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[start : start + 4], "big")
    end = data.index(b"IEND") - 4
    late = data[:start] + data[start + length : end] + data[start : start + length] + data[end:]
    assert decode_image(late).shape == (WIDTH, HEIGHT, 3)
    assert read_header(io.BytesIO(late)) == Photo(HEIGHT, WIDTH, 6)


def test_no_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [photo(6, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("the picture was decoded"))
    for data in files:
        assert read_header(io.BytesIO(data)) == Photo(HEIGHT, WIDTH, 6)


def test_images_that_are_too_large_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paligemma.data.convert.photos.MAX_PIXELS", WIDTH * HEIGHT - 1)
    assert read_header(io.BytesIO(photo(1))) is None


def test_prepare_data_takes_the_rows_and_its_pictures_have_the_boxes_where_they_belong(tmp_path: Path) -> None:
    from components.prepare_data.__main__ import run as prepare

    convert(tmp_path, [(f"{number}.jpg", photo(number), STORED, STORED_BOX) for number in (5, 6, 7, 8)])
    prepare(data=str(tmp_path / "out.jsonl"), checkpoint="embedded:tiny", output=str(tmp_path / "records"), workers=1)
    records = open_records(tmp_path / "records")
    assert (records.dataset.rows, records.dataset.rejected) == (4, {})
    for number in range(4):
        row = RowReader(records).read(number)
        ys, xs = np.nonzero(row.image.astype(int) @ [1, -1, 0] > 60)
        found = [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]
        box = [int(value) / 1023 * len(row.image) for value in re.findall(r"<loc(\d{4})>", row.suffix)]
        np.testing.assert_allclose(found, box, atol=1.0)
