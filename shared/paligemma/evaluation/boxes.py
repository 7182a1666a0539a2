"""Scores boxes against reference boxes: F1, and mean average precision by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from paligemma.data.loc_boxes import BINS, Box, parse_boxes

_RECALLS = np.linspace(0, 1, 101)


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 if neither box has an area."""
    overlap = Box(max(a.y0, b.y0), max(a.x0, b.x0), min(a.y1, b.y1), min(a.x1, b.x1), "").area
    union = a.area + b.area - overlap
    return overlap / union if union else 0.0


def box_f1(answer: str, reference: str, threshold: float = 0.5) -> float:
    """F1 of an answer's boxes. In order, each takes the free box of its label with the highest IoU, at least `threshold`.

    An equal box always counts as the best match, even if it is so thin that it has no area.
    """
    found, free = parse_boxes(answer), parse_boxes(reference)
    wanted, hits = len(free), 0
    for box in found:
        same = [other for other in free if other.label == box.label]
        best = max(same, key=lambda other: (other == box, iou(box, other)), default=None)
        if best is not None and (best == box or iou(box, best) >= threshold):
            free.remove(best)
            hits += 1
    return 2 * hits / (len(found) + wanted) if found or wanted else 1.0


class AveragePrecision:
    """COCO's AP over IoU 0.50 to 0.95 of answers with boxes. pycocotools matches boxes once for all resamples.

    Time and memory grow with the number of boxes, not with labels times images: an open vocabulary has thousands of labels.

    Attributes:
        value: AP of all images; -1 if the references hold no box.
    """

    def __init__(self, answers: Sequence[str], references: Sequence[str], scores: Sequence[float]) -> None:
        """Matches boxes.

        Args:
            answers: each image's answer with boxes.
            references: each image's reference with boxes.
            scores: the model's confidence in each answer; within an answer, earlier boxes are more confident.
        """
        self._images = len(answers)
        self._wanted, self._found = _matched(
            [parse_boxes(text) for text in answers], [parse_boxes(text) for text in references], scores
        )
        self.value = self(np.arange(self._images))

    def __call__(self, chosen: Int[np.ndarray, " rows"]) -> float:
        """AP of the images with these numbers; repeated numbers count repeatedly.

        For each label, the mean over IoUs and recalls, as in `COCOeval.accumulate`; then the mean over the labels in the
        references. The boxes of an image that is drawn twice count twice, at their ranks.
        """
        times = np.bincount(chosen, minlength=self._images).astype(np.int32)
        wanted = np.bincount(self._wanted.label, self._wanted.boxes * times[self._wanted.image])
        if not wanted.any():
            return -1.0
        hits, so_far = self._found.count(times)
        precision = self._found.best_from(hits / np.maximum(so_far, 1))
        # How many of COCO's recalls this box reaches first, in order of confidence; the first box also has recall 0.
        reached = np.searchsorted(_RECALLS, hits / np.maximum(wanted, 1)[self._found.label], side="right")
        reached[:, 1:] -= np.where(self._found.label[1:] == self._found.label[:-1], reached[:, :-1], 0)
        total = (precision * reached).sum()
        return float(total / (len(reached) * len(_RECALLS) * np.count_nonzero(wanted)))


class _Wanted(NamedTuple):
    """Number of reference boxes for every pair of label and image that has any."""

    label: Int[np.ndarray, " pairs"]
    image: Int[np.ndarray, " pairs"]
    boxes: Int[np.ndarray, " pairs"]


class _Found:
    """Predicted boxes by label, most confident first.

    Only boxes that are right at some IoU are evaluated: at the others, precision falls and recall does not rise.
    """

    def __init__(
        self, label: Int[np.ndarray, " all"], image: Int[np.ndarray, " all"], right: Bool[np.ndarray, "iou all"]
    ) -> None:
        self._image = image
        self._looked_at = np.flatnonzero(right.any(axis=0))
        self.label = label[self._looked_at]
        self._right = right[:, self._looked_at].astype(np.int32)
        self._first = np.searchsorted(label, self.label)  # among all boxes of the label
        self._first_looked_at = np.searchsorted(self.label, self.label)
        # No maximum crosses labels: precision is at most 1, and the label before is shifted up by 2.
        self._lift = 2.0 * (label.max(initial=0) - self.label)

    def count(self, times: Int[np.ndarray, " images"]) -> tuple[Int[np.ndarray, "iou boxes"], Int[np.ndarray, " boxes"]]:
        """For each evaluated box: how many of its label's boxes down to it are right, and how many there are."""
        weight = times[self._image]
        boxes, hits = np.cumsum(weight), self._right * weight[self._looked_at]
        sums = np.cumsum(hits, axis=1)
        before = (sums - hits)[:, self._first_looked_at]
        return sums - before, boxes[self._looked_at] - (boxes - weight)[self._first]

    def best_from(self, precision: Float[np.ndarray, "iou boxes"]) -> Float[np.ndarray, "iou boxes"]:
        """The best precision among each box and the less confident boxes of its label."""
        return np.maximum.accumulate((precision + self._lift)[:, ::-1], axis=1)[:, ::-1] - self._lift


def _matched(found: list[list[Box]], wanted: list[list[Box]], scores: Sequence[float]) -> tuple[_Wanted, _Found]:
    """Matches boxes with pycocotools. Matching is within an image and a label, so each such pair is passed as an image."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels = {label: number for number, label in enumerate(sorted({box.label for boxes in wanted for box in boxes}))}
    truth = [(labels[box.label], image, box, 0.0) for image, boxes in enumerate(wanted) for box in boxes]
    results = [
        (labels[box.label], image, box, float(score) - place * 1e-6)
        for image, (boxes, score) in enumerate(zip(found, scores, strict=True))
        for place, box in enumerate(boxes)
        if box.label in labels
    ]
    if not truth:
        none = np.zeros(0, int)
        return _Wanted(none, none, none), _Found(none, none, np.zeros((1, 0), bool))
    pairs = sorted({one[:2] for one in (*truth, *results)})
    number_of = {pair: number for number, pair in enumerate(pairs, start=1)}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        dataset: Any = {
            "info": {},
            "images": [{"id": number, "width": BINS, "height": BINS} for number in number_of.values()],
            "annotations": [
                _annotation(number_of[label, image], box) | {"id": number, "iscrowd": 0}
                for number, (label, image, box, _) in enumerate(truth, start=1)
            ],
            "categories": [{"id": 1, "name": "box"}],
        }
        coco.dataset = dataset  # its types ask for more fields than it reads
        coco.createIndex()
        listed: Any = [_annotation(number_of[label, image], box) | {"score": score} for label, image, box, score in results]
        evaluation = COCOeval(coco, coco.loadRes(listed) if listed else COCO(), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.params.maxDets = evaluation.params.maxDets[-1:]
        evaluation.evaluate()
    numbers, counts, sure = [], np.zeros(len(pairs), int), []
    right = [np.zeros((len(evaluation.params.iouThrs), 0), bool)]
    for number, one in enumerate(evaluation.evalImgs):
        counts[number] = len(one["gtIds"])
        numbers += [number] * len(one["dtIds"])
        sure += one["dtScores"]
        right.append(one["dtMatches"] > 0)
    label, image = np.array(pairs).T
    found_in = np.array(numbers, int)
    order = np.lexsort((-np.array(sure), label[found_in]))  # stable: equal scores keep the order of images
    found_in = found_in[order]
    return _Wanted(label, image, counts), _Found(label[found_in], image[found_in], np.concatenate(right, axis=1)[:, order])


def _annotation(pair: int, box: Box) -> dict:
    size = [max(0, box.x1 - box.x0), max(0, box.y1 - box.y0)]  # pycocotools does not penalize boxes of negative area
    return {"image_id": pair, "category_id": 1, "bbox": [box.x0, box.y0, *size], "area": box.area}
