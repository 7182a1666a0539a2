"""Random changes to training images, and the texts that forbid them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from pydantic import ValidationError

from conftest import SmallData
from paligemma.data.augment import Augmentation, augment, check_augmentation, colour_matrix, crop_box
from paligemma.data.records import Records, open_records
from paligemma.errors import InputError

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
UNIT = st.floats(0, 1, exclude_max=True)


def test_nothing_is_changed_by_default() -> None:
    np.testing.assert_array_equal(augment(IMAGE, Augmentation(), (0, 0, 0)), IMAGE)


def test_about_half_of_the_images_are_mirrored_and_nothing_else() -> None:
    flipped = [augment(IMAGE, Augmentation(flip=True), (0, step, 0)) for step in range(400)]
    mirrored = sum((image == IMAGE[:, ::-1]).all() for image in flipped)
    assert mirrored + sum((image == IMAGE).all() for image in flipped) == 400
    assert 150 < mirrored < 250


@pytest.mark.parametrize("one", [{"flip": True, "crop": 0.3}, {"crop": 0.3}, {"colour": 0.4}])
def test_changes_are_determined_by_seed_step_and_place(one: dict) -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 3, 5)]
    images = [augment(IMAGE, Augmentation(**one), key) for key in keys]
    assert len({image.tobytes() for image in images}) == len(keys)
    for key, image in zip(keys, images, strict=True):
        assert image.dtype == np.uint8
        assert image.shape == (32, 32, 3)
        np.testing.assert_array_equal(augment(IMAGE, Augmentation(**one), key), image)


def test_turning_one_change_on_leaves_the_others() -> None:
    for step in range(20):
        cropped = augment(IMAGE, Augmentation(crop=0.3), (0, step, 0))
        both = augment(IMAGE, Augmentation(crop=0.3, colour=1e-9), (0, step, 0))
        np.testing.assert_array_equal(cropped, both)


@given(smallest=st.floats(0.01, 1), area=UNIT, aspect=UNIT, left=UNIT, top=UNIT)
def test_a_crop_lies_in_the_image_and_keeps_its_share(smallest: float, area: float, aspect: float, left: float, top: float):
    x, y, right, bottom = crop_box(smallest, area, aspect, left, top)
    assert 0 <= x < right <= 1
    assert 0 <= y < bottom <= 1
    width, height = right - x, bottom - y
    assert width * height == pytest.approx(smallest + (1 - smallest) * area)
    assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9


def test_crops_reach_every_corner() -> None:
    boxes = np.array([crop_box(0.25, 0, 0.5, *corner) for corner in ((0, 0), (1, 0), (0, 1), (1, 1))])
    np.testing.assert_allclose(boxes[:, :2], [(0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5)])


def test_a_crop_is_the_resized_part() -> None:
    left_black = np.zeros((32, 32, 3), np.uint8)
    left_black[:, 16:] = 255
    crops = [augment(left_black, Augmentation(crop=0.2), (0, step, 0)) for step in range(50)]
    assert all((crop == crop[:1]).all() for crop in crops)  # columns stay of one level
    assert len({int((crop[0, :, 0] > 127).sum()) for crop in crops}) > 10  # the edge is somewhere else


@pytest.mark.parametrize(
    ("factors", "enhancer"),
    [
        ((1.3, 1, 1), ImageEnhance.Brightness),
        ((0.6, 1, 1), ImageEnhance.Brightness),
        ((1, 1.4, 1), ImageEnhance.Contrast),
        ((1, 0.5, 1), ImageEnhance.Contrast),
        ((1, 1, 1.5), ImageEnhance.Color),
        ((1, 1, 0.2), ImageEnhance.Color),
    ],
)
def test_colours_change_as_pillow_changes_them(factors: tuple[float, float, float], enhancer: type) -> None:
    picture = Image.fromarray(IMAGE)
    ours = np.asarray(picture.convert("RGB", colour_matrix(picture, *factors)), int)
    theirs = np.asarray(enhancer(picture).enhance(max(factors, key=lambda factor: abs(factor - 1))), int)
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("wrong", [{"crop": 0}, {"crop": 1.1}, {"colour": 1}, {"colour": -0.1}, {"rotate": 3}])
def test_wrong_values_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        Augmentation(**wrong)


@pytest.fixture
def prepared(small_data: SmallData, tmp_path: Path):
    """Prepares records with one text among harmless ones: in row 1, line 3."""
    from components.prepare_data.__main__ import run

    def prepare(text: str, key: str = "prefix") -> Records:
        harmless = {"image": small_data.add_image("a.png"), "prefix": "answer en how bright?", "suffix": "leftover, upright"}
        run(data=small_data.write([harmless, b"", {**harmless, key: text}, harmless]), checkpoint="embedded:tiny",
            output=tmp_path / "records", max_text_tokens=200)  # fmt: skip
        return open_records(tmp_path / "records")

    return prepare


FLIP, CROP = Augmentation(flip=True), Augmentation(crop=0.8)


@pytest.mark.parametrize(
    "text",
    [
        *("turn LEFT", "the right-hand side", "left_arm", "Clockwise.", "nach links", "à gauche", "a la izquierda", "слева"),
        *("在左边", "detect <loc0001>", "<seg001>"),
    ],
)
@pytest.mark.parametrize("key", ["prefix", "suffix"])
def test_a_text_that_names_a_side_or_place_forbids_flips(prepared, text: str, key: str) -> None:
    with pytest.raises(InputError, match=r"flip would make a text wrong(?s:.)*row 1 of .*, line 3 of its source"):
        check_augmentation(FLIP, prepared(text, key))


@pytest.mark.parametrize("text", ["<loc0001><loc0002><loc0003><loc0004> cat", "segment <seg127>"])
def test_a_text_that_names_a_place_forbids_crops(prepared, text: str) -> None:
    with pytest.raises(InputError, match=r"crop would make a text wrong(?s:.)*row 1 of .*, line 3 of its source"):
        check_augmentation(CROP, prepared(text, "suffix"))


def test_harmless_texts_allow_everything(prepared) -> None:
    check_augmentation(Augmentation(flip=True, crop=0.5, colour=0.5), prepared("bright lefty copyright"))


def test_what_does_not_contradict_is_allowed(prepared) -> None:
    records = prepared("turn left at <loc0001>")
    check_augmentation(Augmentation(colour=0.5), records)
    with pytest.raises(InputError, match="crop"):
        check_augmentation(CROP, records)


def test_sides_allow_crops(prepared) -> None:
    check_augmentation(CROP, prepared("turn left"))
