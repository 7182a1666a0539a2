"""What a batch holds: the arrays that a training step or an evaluation reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Int, UInt8


class TrainBatch(NamedTuple):
    """What a training step reads. Text is padded on the right; images are uint8, or already in [-1, 1].

    `mask_ar` and `mask_loss` are 1 on the suffix and its eos, 0 elsewhere.
    """

    images: UInt8[ArrayLike, "b height width 3"] | Float[ArrayLike, "b height width 3"]
    tokens: Int[ArrayLike, "b t"]
    mask_ar: Int[ArrayLike, "b t"]
    mask_loss: Int[ArrayLike, "b t"]


@dataclass(frozen=True)
class EvaluationBatch:
    """Prompts and what is known of them. Rows that only pad the batch have `row_mask` False and no entry in the lists."""

    images: UInt8[np.ndarray, "b height width 3"]
    tokens: Int[np.ndarray, "b t"]
    mask_input: Bool[np.ndarray, "b t"]
    row_mask: Bool[np.ndarray, " b"]
    row_ids: list[str]
    prefixes: list[str]
    suffixes: list[str]
