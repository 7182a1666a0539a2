"""Exports of annotation tools that have boxes, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from paligemma.data.convert.box_shapes import Export
from paligemma.data.convert.detection import FoundBox
from paligemma.data.convert.json_boxes import label_studio, labelme
from paligemma.data.convert.outcomes import Tally
from paligemma.data.convert.xml_boxes import cvat, voc
from paligemma.data.convert.yolo_boxes import yolo

FORMS: dict[str, Callable[[Export, Tally], Iterator[FoundBox]]] = {
    "yolo": yolo,
    "voc": voc,
    "cvat": cvat,
    "labelme": labelme,
    "label-studio": label_studio,
}
"""Readers by the form's name. COCO's own form is in `coco.py`."""
