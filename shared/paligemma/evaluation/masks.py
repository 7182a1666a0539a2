"""Overlap of masks in answers with a row's true masks or, for rows that keep none, with its reference's `<seg>` symbols."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from paligemma.data.seg_masks import Decode, paint_masks

SIDE = 512
"""Side in pixels of the picture in which answers and references without true masks are compared: a pixel is two box bins."""


def mask_ious(answers: Sequence[str], references: Sequence[str], decode: Decode) -> Float[np.ndarray, " rows"]:
    """IoU of each answer's masks with its reference's: the mean over the labels of either; 1 if there are no labels."""
    scores = []
    for answer, reference in zip(answers, references, strict=True):
        found, wanted = (paint_masks(text, SIDE, SIDE, decode, to_pixel=round) for text in (answer, reference))
        ious = [_iou(found.get(label), wanted.get(label)) for label in found.keys() | wanted.keys()]
        scores.append(float(np.mean(ious)) if ious else 1.0)
    return np.array(scores, np.float64)


def _iou(left: np.ndarray | None, right: np.ndarray | None) -> float:
    if left is None or right is None:
        return 0.0
    union = (left | right).sum()
    return float((left & right).sum() / union) if union else 1.0  # both masks are empty for this label
