"""Run lengths against pycocotools, and what strangers may write in their place."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from paligemma.data.run_lengths import MaskError, check_runs, read_runs, write_runs

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
