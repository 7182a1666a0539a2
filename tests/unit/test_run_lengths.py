"""Run lengths against pycocotools, and what strangers may write in their place."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from paligemma.data.run_lengths import MaskError, Runs, check_runs, read_runs, write_runs

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
)


@given(st.integers(1, 90), st.integers(1, 90), st.floats(0, 1), st.integers(0, 1000))
def test_runs_are_those_of_pycocotools(height: int, width: int, density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    packed = coco.encode(np.asfortranarray(mask, np.uint8))
    assert write_runs(mask) == {"size": [height, width], "counts": packed["counts"].decode()}
    assert (read_runs(write_runs(mask)) == mask).all()
    listed = {"size": [height, width], "counts": check_runs(write_runs(mask)).tolist()}
    assert coco.frPyObjects(listed, height, width) == packed
    assert (read_runs(listed) == mask).all()


def test_long_runs_are_those_of_pycocotools() -> None:
    mask = np.zeros((7000, 9000), bool)
    mask[1:6000, 2:8999] = True
    assert (read_runs(write_runs(mask)) == mask).all()


ODD = [
    # the value | what is wrong with it
    (None, "not an object"),
    ([1, 2], "not an object"),
    ({"counts": "1"}, "its size is not"),
    ({"size": [2], "counts": [4]}, "its size is not"),
    ({"size": [2, 0], "counts": [0]}, "its size is not"),
    ({"size": [2, True], "counts": [2]}, "its size is not"),
    ({"size": [2, float("nan")], "counts": [2]}, "its size is not"),
    ({"size": [2, 1e300], "counts": [2]}, "its size is not"),
    ({"size": [10**9, 10**9], "counts": [10**18]}, "more than 67108864 pixels"),
    ({"size": [2, 2]}, "neither a text nor a list"),
    ({"size": [2, 2], "counts": [1, None]}, "neither a text nor a list"),
    ({"size": [2, 2], "counts": [1.5, 2.5]}, "neither a text nor a list"),
    ({"size": [2, 2], "counts": [10**12]}, "larger than the 4 pixels"),
    ({"size": [2, 2], "counts": [10**30]}, "neither a text nor a list"),
    ({"size": [2, 2], "counts": [-1, 5]}, "negative"),
    ({"size": [2, 2], "counts": [1, 2]}, "its counts are of 3 pixels, its size of 4"),
    ({"size": [2, 2], "counts": []}, "its counts are of 0 pixels"),
    ({"size": [2, 2], "counts": ""}, "its counts are of 0 pixels"),
    ({"size": [2, 2], "counts": "é"}, "not ASCII"),
    ({"size": [2, 2], "counts": "1 1"}, "pack no number"),
    ({"size": [2, 2], "counts": "11z"}, "pack no number"),
    ({"size": [2, 2], "counts": "1o"}, "end within a number"),
    ({"size": [2, 2], "counts": "ooooooooo1"}, "more than 6 characters"),
    ({"size": [2, 2], "counts": "oooooO"}, "negative"),
]


@pytest.mark.parametrize(("value", "words"), ODD)
def test_what_is_no_mask_is_said_to_be_so(value: object, words: str) -> None:
    with pytest.raises(MaskError, match=words):
        read_runs(value)


@given(JSON | st.fixed_dictionaries({"size": JSON | st.lists(st.integers(1, 9), min_size=2, max_size=2), "counts": JSON}))
def test_any_value_is_a_mask_or_an_error(value: object) -> None:
    try:
        mask = read_runs(value)
    except MaskError:
        return
    assert isinstance(value, dict)
    assert list(mask.shape) == value["size"]


def test_a_million_empty_runs_take_little_memory() -> None:
    tracemalloc.start()
    with pytest.raises(MaskError):
        read_runs({"size": [1000, 1000], "counts": "0" * 1_000_000})
    with pytest.raises(MaskError):
        read_runs({"size": [8192, 8192], "counts": [10**12] * 1000})
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


SIDES = st.integers(1, 30)


@given(SIDES, SIDES, st.sampled_from([0, 0.02, 0.5, 0.98, 1]), st.integers(0, 1000), st.data())
def test_parts_of_a_mask_are_those_of_its_pixels(
    height: int, width: int, density: float, seed: int, data: st.DataObject
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    runs = Runs.of_pixels(mask)
    assert (runs.pixels() == mask).all()
    assert (runs.text, runs.area) == (write_runs(mask)["counts"], mask.sum())
    theirs = coco.toBbox({"size": [height, width], "counts": runs.text})
    assert runs.box == ((theirs[0], theirs[1], theirs[0] + theirs[2], theirs[1] + theirs[3]) if mask.any() else None)
    left, right = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    top, bottom = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    assert (runs.part(left, top, right, bottom) == mask[top:bottom, left:right]).all()
    across, down = data.draw(st.tuples(st.integers(-30, 30), st.integers(-30, 30)))
    around = np.zeros((height + 120, width + 120), bool)
    around[60 + down : 60 + down + height, 60 + across : 60 + across + width] = mask
    high, wide = data.draw(st.tuples(SIDES, SIDES))
    assert (runs.placed(across, down, high, wide).pixels() == around[60 : 60 + high, 60 : 60 + wide]).all()


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(0, 1000))
def test_a_mask_is_sampled_as_pillow_does(height: int, width: int, side: int, seed: int) -> None:
    """But for pixels whose middle is between two of the mask's, of which either is as near."""
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    theirs = np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))
    places = (2 * np.arange(side) + 1)[:, None] * (height, width) % (2 * side)
    between = (places[:, :1] == 0) | (places[:, 1] == 0)
    assert not ((Runs.of_pixels(mask).sampled(side) != theirs) & ~between).any()


def test_runs_of_no_pixels_are_joined() -> None:
    runs = Runs.of_json({"size": [2, 3], "counts": [1, 0, 1, 2, 0, 1, 1]})
    assert runs.counts.tolist() == [2, 3, 1]
    assert runs.text == write_runs(runs.pixels())["counts"]


def test_a_small_part_of_a_large_mask_takes_little_memory() -> None:
    runs = Runs(8192, 8192, np.array([4_000_000, 20_000, 8192 * 8192 - 4_020_000]))
    tracemalloc.start()
    assert runs.part(488, 0, 500, 8192).sum() == 20_000
    assert runs.placed(10, 10, 8192, 8192).area == 20_000 - 2 * 10  # two columns lose what is below
    assert runs.sampled(64).shape == (64, 64)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
