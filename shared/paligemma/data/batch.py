"""A batch: the arrays that a training step or an evaluation reads."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int, UInt8

AnyArray: TypeAlias = Any
"""NumPy's on the host, JAX's on devices and inside a step, and shapes alone in preflight."""


class TrainBatch(NamedTuple):
    """What a jitted training step reads. Text is padded on the right; loss positions are padded to the row with the most.

    Attributes:
        images: uint8, or floats in [-1, 1], `[b, height, width, 3]`; with n images in every example `[b, n, height, width, 3]`,
            as in big_vision; or their embeddings `[b, s, d]`; `[b, 0]` if the step gets the rows' embeddings from elsewhere.
        tokens: the input tokens: the whole text without its last token.
        mask_ar: 1 on the input tokens of the suffix, 0 elsewhere.
        loss_positions: input positions whose next token counts in the loss, in order; 0 on padding.
        targets: the token after each loss position.
        mask_loss: 1 where `loss_positions` has a real entry, 0 on padding.
    """

    images: UInt8[AnyArray, "b *n height width 3"] | Float[AnyArray, "b *n height width 3"] | UInt8[AnyArray, "b 0"]
    tokens: Int[AnyArray, "b t"]
    mask_ar: Int[AnyArray, "b t"]
    loss_positions: Int[AnyArray, "b s"]
    targets: Int[AnyArray, "b s"]
    mask_loss: Int[AnyArray, "b s"]


def train_batch(
    images: np.ndarray,
    tokens: Int[np.ndarray, "b t+1"],
    mask_ar: Int[np.ndarray, "b t+1"],
    mask_loss: Int[np.ndarray, "b t+1"],
    loss_width: int | None = None,
) -> TrainBatch:
    """Makes a batch from arrays over whole texts, as in big_vision: inputs are `[:, :-1]`, targets `[:, 1:]`.

    Args:
        images: see `TrainBatch`.
        tokens: whole texts, padded on the right.
        mask_ar: 1 on the suffix, 0 elsewhere.
        mask_loss: 1 on the tokens to predict, 0 elsewhere; any pattern.
        loss_width: width of `loss_positions`; None for the number of losses in the row with the most.

    Raises:
        ValueError: a row has more losses than `loss_width`.
    """
    wanted = np.asarray(mask_loss)[:, 1:] != 0
    counts = wanted.sum(axis=1)
    largest = int(counts.max(initial=0))
    width = largest if loss_width is None else loss_width
    if largest > width:
        raise ValueError(f"a row has {largest} tokens with a loss, loss_width is {width}")
    row, position = np.nonzero(wanted)
    entry = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    loss_positions, targets, mask = np.zeros((3, len(wanted), width), np.int32)
    loss_positions[row, entry] = position
    targets[row, entry] = np.asarray(tokens)[row, position + 1]
    mask[row, entry] = 1
    return TrainBatch(
        images=images,
        tokens=np.asarray(tokens)[:, :-1].astype(np.int32),
        mask_ar=np.asarray(mask_ar)[:, :-1].astype(np.int32),
        loss_positions=loss_positions,
        targets=targets,
        mask_loss=mask,
    )
