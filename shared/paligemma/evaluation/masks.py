"""Overlap of masks in answers with a row's true masks or, for rows that keep none, with its reference's `<seg>` symbols."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from paligemma.data.seg_masks import (
    Decode,
    Overlaps,
    count_overlaps,
    count_pixels,
    masks_by_label,
    mean_iou,
    paint_masks,
    parse_masks_text,
)
from paligemma.evaluation.predict import Prediction

SIDE = 512
"""Side in pixels of the picture in which answers and references without true masks are compared: a pixel is two box bins."""


def row_overlaps(predictions: Sequence[Prediction], decode: Decode) -> list[Overlaps]:
    """Each answer's overlaps by label: with the row's true masks, else with the reference that it is nearest to."""
    found = []
    for p in predictions:
        if masks := parse_masks_text(p.masks):
            found.append(count_overlaps(p.prediction, masks, decode))
        else:
            found.append(max((reference_overlaps(p.prediction, one, decode) for one in p.references), key=mean_iou))
    return found


def reference_overlaps(answer: str, reference: str, decode: Decode) -> Overlaps:
    """Overlaps of an answer's masks with those of a reference, both decoded, in a picture of `SIDE`."""
    objects = [masks_by_label(text) for text in (answer, reference)]
    counted = {}
    for label in sorted(set().union(*objects)):
        found, wanted = (paint_masks(one.get(label, ()), SIDE, SIDE, decode, to_pixel=round) for one in objects)
        if found is not None or wanted is not None:
            counted[label] = count_pixels(found, wanted)
    return counted


def pixel_counts(overlaps: Sequence[Overlaps]) -> Int[np.ndarray, "rows 2"]:
    """For each row, the pixels that answer and truth share, and those that either has, over all labels."""
    return np.array([np.sum([*one.values(), (0, 0)], axis=0) for one in overlaps], np.int64).reshape(-1, 2)


def cumulative_iou(counts: Int[np.ndarray, "*any rows 2"]) -> Float[np.ndarray, "*any"]:
    """cIoU: all shared pixels over all pixels of either (dvlab-research/LISA, `train_ds.py`, lines 563-572); 1 without any."""
    shared, either = np.moveaxis(counts.sum(axis=-2), -1, 0)
    return np.where(either > 0, shared / np.maximum(either, 1), 1.0)
