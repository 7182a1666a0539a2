"""Boxes written as `<loc>` symbols, as PaliGemma answers `detect`, and their mean average precision by pycocotools."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

BINS = 1024
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
    """F1 of an answer's boxes: each takes, in order, the free box of its label that it overlaps most, `threshold` at least."""
    found, free = parse_boxes(answer), parse_boxes(reference)
    wanted, hits = len(free), 0
    for box in found:
        best = max((other for other in free if other.label == box.label), key=lambda other: iou(box, other), default=None)
        if best is not None and iou(box, best) >= threshold:
            free.remove(best)
            hits += 1
    return 2 * hits / (len(found) + wanted) if found or wanted else 1.0


def mean_average_precision(answers: Sequence[str], references: Sequence[str], scores: Sequence[float]) -> float:
    """COCO's AP over IoU 0.50 to 0.95; -1 when the references hold no box.

    Args:
        answers: with boxes.
        references: with boxes.
        scores: of each answer, how sure the model is of it; of its boxes, an earlier one is surer.
    """
    import numpy as np
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    wanted, found = [parse_boxes(text) for text in references], [parse_boxes(text) for text in answers]
    labels = {label: number for number, label in enumerate(sorted({box.label for boxes in wanted for box in boxes}), start=1)}
    if not labels:
        return -1.0
    truth = [_annotation(image, box, labels) for image, boxes in enumerate(wanted, start=1) for box in boxes]
    for number, annotation in enumerate(truth, start=1):
        annotation |= {"id": number, "iscrowd": 0}
    results = [
        _annotation(image, box, labels) | {"score": float(score) - place * 1e-6}
        for image, (boxes, score) in enumerate(zip(found, scores, strict=True), start=1)
        for place, box in enumerate(boxes)
        if box.label in labels
    ]
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image, "width": BINS, "height": BINS} for image in range(1, len(wanted) + 1)],
            "annotations": truth,
            "categories": [{"id": number, "name": label} for label, number in labels.items()],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # [IoU, recall, category, area, most detections]: all areas, the most detections; -1 where a category has no box.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return float(np.mean(precision[precision > -1]))


def _annotation(image: int, box: Box, labels: dict[str, int]) -> dict:
    size = [box.x1 - box.x0, box.y1 - box.y0]
    return {"image_id": image, "category_id": labels[box.label], "bbox": [box.x0, box.y0, *size], "area": box.area}
