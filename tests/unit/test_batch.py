"""Training batches from whole texts: the loss is gathered to where it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.data.batch import train_batch

IMAGES = np.zeros((2, 4, 4, 3), np.uint8)


def test_inputs_and_targets_are_one_token_apart() -> None:
    tokens = np.array([[2, 5, 6, 7, 1, 0], [2, 5, 9, 8, 8, 1]])
    suffix = np.array([[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1]])
    batch = train_batch(IMAGES, tokens, suffix, suffix)
    np.testing.assert_array_equal(batch.tokens, [[2, 5, 6, 7, 1], [2, 5, 9, 8, 8]])
    np.testing.assert_array_equal(batch.mask_ar, [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]])
    np.testing.assert_array_equal(batch.loss_positions, [[1, 2, 3], [3, 4, 0]])
    np.testing.assert_array_equal(batch.targets, [[6, 7, 1], [8, 1, 0]])
    np.testing.assert_array_equal(batch.mask_loss, [[1, 1, 1], [1, 1, 0]])
    assert {values.dtype for values in batch[1:]} == {np.dtype("int32")}


@given(rows=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=5), spare=st.integers(0, 3))
def test_any_pattern_of_losses_is_kept(rows: list[list[bool]], spare: int) -> None:
    mask_loss = np.array(rows).astype(np.int32)
    tokens = np.arange(mask_loss.size).reshape(mask_loss.shape)
    width = int(mask_loss[:, 1:].sum(axis=1).max()) + spare
    batch = train_batch(IMAGES, tokens, mask_loss, mask_loss, width)
    assert batch.targets.shape == (len(rows), width)
    for row, wanted in enumerate(mask_loss[:, 1:] == 1):
        real = batch.mask_loss[row] == 1
        np.testing.assert_array_equal(batch.targets[row][real], tokens[row, 1:][wanted])
        np.testing.assert_array_equal(batch.tokens[row][batch.loss_positions[row][real]], tokens[row, :-1][wanted])


def test_losses_are_never_left_out() -> None:
    ones = np.ones((2, 6), np.int32)
    with pytest.raises(ValueError, match="5 tokens with a loss, loss_width is 4"):
        train_batch(IMAGES, ones, ones, ones, 4)
