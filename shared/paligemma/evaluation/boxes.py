"""Boxes written as `<loc>` symbols, as PaliGemma answers `detect`, and their mean average precision by pycocotools."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

BINS = 1024
_RECALLS = np.linspace(0, 1, 101)
_OBJECT = re.compile(r"((?:<loc\d{4}>){4})\s*([^<;]*)")


class Box(NamedTuple):
    """A labelled box; coordinates in bins of 1/1024 of the image, as the symbols have them."""

    y0: int
    x0: int
    y1: int
    x1: int
    label: str

    @property
    def area(self) -> int:
        """In square bins; 0 when turned inside out."""
        return max(0, self.y1 - self.y0) * max(0, self.x1 - self.x0)


def parse_boxes(text: str) -> list[Box]:
    """The boxes in an answer such as `<loc0100><loc0200><loc0300><loc0400> cat ; ...`. What is not one is passed over."""
    boxes = []
    for symbols, label in _OBJECT.findall(text):
        values = [int(value) for value in re.findall(r"\d{4}", symbols)]
        if max(values) < BINS:
            boxes.append(Box(*values, label.strip()))
    return boxes


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 where neither has an area."""
    overlap = Box(max(a.y0, b.y0), max(a.x0, b.x0), min(a.y1, b.y1), min(a.x1, b.x1), "").area
    union = a.area + b.area - overlap
    return overlap / union if union else 0.0


def box_f1(answer: str, reference: str, threshold: float = 0.5) -> float:
    """F1 of an answer's boxes: each takes, in order, the free box of its label that it overlaps most, `threshold` at least.

    An equal box is overlapped most of all, even if it is so thin that it has no area.
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
    """COCO's AP over IoU 0.50 to 0.95 of answers with boxes: pycocotools matches them, once for all resamples.

    Attributes:
        value: of all images; -1 when the references hold no box.
    """

    def __init__(self, answers: Sequence[str], references: Sequence[str], scores: Sequence[float]) -> None:
        """Matches boxes.

        Args:
            answers: with boxes, of each image.
            references: with boxes.
            scores: of each answer, how sure the model is of it; of its boxes, an earlier one is surer.
        """
        self._images = len(answers)
        self._labels = _matched([parse_boxes(text) for text in answers], [parse_boxes(text) for text in references], scores)
        self.value = self(np.arange(self._images))

    def __call__(self, chosen: Int[np.ndarray, " rows"]) -> float:
        """Of the images with these numbers, each as often as it is there."""
        times = np.bincount(chosen, minlength=self._images)
        found = [label.precision(times) for label in self._labels]
        return float(np.mean([value for value in found if value is not None] or [-1.0]))


def mean_average_precision(answers: Sequence[str], references: Sequence[str], scores: Sequence[float]) -> float:
    """COCO's AP over IoU 0.50 to 0.95; -1 when the references hold no box. See `AveragePrecision`."""
    return AveragePrecision(answers, references, scores).value


class _Label(NamedTuple):
    """What was found of one label: of every box, the surest first, its image and whether it is right at each IoU."""

    wanted: Int[np.ndarray, " images"]
    image: Int[np.ndarray, " boxes"]
    right: Bool[np.ndarray, "iou boxes"]

    def precision(self, times: Int[np.ndarray, " images"]) -> float | None:
        """Mean over IoUs and recalls, as `COCOeval.accumulate` has it; None where no such box is wanted.

        An image that is there twice has its boxes twice: they count twice where they stand.
        """
        wanted = int((self.wanted * times).sum())
        if not wanted:
            return None
        weight = times[self.image]
        hits = np.cumsum(self.right * weight, axis=1)
        precision = hits / np.maximum(np.cumsum(weight), 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # of this recall or a higher one
        best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
        places = [np.searchsorted(row / wanted, _RECALLS) for row in hits]
        return float(np.mean([row[place] for row, place in zip(best, places, strict=True)]))


def _matched(found: list[list[Box]], wanted: list[list[Box]], scores: Sequence[float]) -> list[_Label]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels = {label: number for number, label in enumerate(sorted({box.label for boxes in wanted for box in boxes}), start=1)}
    truth = [_annotation(image, box, labels) for image, boxes in enumerate(wanted, start=1) for box in boxes]
    for number, annotation in enumerate(truth, start=1):
        annotation |= {"id": number, "iscrowd": 0}
    results = [
        _annotation(image, box, labels) | {"score": float(score) - place * 1e-6}
        for image, (boxes, score) in enumerate(zip(found, scores, strict=True), start=1)
        for place, box in enumerate(boxes)
        if box.label in labels
    ]
    matched = []
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image, "width": BINS, "height": BINS} for image in range(1, len(wanted) + 1)],
            "annotations": truth,
            "categories": [{"id": number, "name": label} for label, number in labels.items()],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results) if results else COCO(), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.params.maxDets = evaluation.params.maxDets[-1:]
        evaluation.evaluate()
    for start in range(0, len(labels) * len(wanted), len(wanted)):
        images = [(number, one) for number, one in enumerate(evaluation.evalImgs[start : start + len(wanted)]) if one]
        counts, image, sure, right = np.zeros(len(wanted), int), [], [], [np.zeros((len(evaluation.params.iouThrs), 0), bool)]
        for number, one in images:
            counts[number] = len(one["gtIds"])
            image += [number] * len(one["dtIds"])
            sure += one["dtScores"]
            right.append(one["dtMatches"] > 0)
        order = np.argsort(-np.array(sure), kind="stable")
        matched.append(_Label(counts, np.array(image, int)[order], np.concatenate(right, axis=1)[:, order]))
    return matched


def _annotation(image: int, box: Box, labels: dict[str, int]) -> dict:
    size = [max(0, box.x1 - box.x0), max(0, box.y1 - box.y0)]  # pycocotools lets boxes of negative area go free
    return {"image_id": image, "category_id": labels[box.label], "bbox": [box.x0, box.y0, *size], "area": box.area}
