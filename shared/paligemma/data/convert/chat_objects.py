"""Boxes that a conversation has apart from its texts, as ms-swift keeps them: put where `<bbox>` and `<ref-object>` stand.

The form: modelscope/ms-swift at commit 025fc6b, docs/source_en/Customization/Custom-dataset.md, "Grounding", method 2:
`objects` has `ref`, a text for each `<ref-object>`; `bbox`, a box of x, y, x, y for each `<bbox>`; `bbox_type`, `real` for
pixels or `norm1` for fractions; and `image_id`. Marks are filled in the order of the turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paligemma.data.convert.box_shapes import corners_of
from paligemma.data.convert.boxes import place
from paligemma.data.convert.detection import label_of
from paligemma.data.convert.names import number_of, text_of
from paligemma.data.convert.outcomes import Entry, EntryError, Tally, object_of, shown
from paligemma.data.convert.photos import Frame, read_photo

_MARKS = re.compile(r"<ref-object>|(?:<bbox>\s*)*<bbox>")
_BOX = "<bbox>"


def has_marks(text: str) -> bool:
    """Whether a text has a place for a box or a name."""
    return _MARKS.search(text) is not None


def fill_marks(
    texts: Sequence[str], objects: object, image: str, folder: Path, more: bool, entry: Entry, tally: Tally
) -> list[str]:
    """Texts with names and boxes in place of marks; boxes are four `<loc>`, and several in a row are joined by ` ; `.

    Args:
        texts: the texts, in the order of the turns.
        objects: what the conversation has under `objects`.
        image: its only image, as the row names it; opened for its size if the boxes are in pixels.
        folder: the folder that names are relative to.
        more: whether turns follow, to which further objects may belong.
        entry: the conversation, for messages.
        tally: counts oddities.

    Raises:
        EntryError: the objects are none, or not as many as the marks; or a box cannot be placed.
    """
    if not any(map(has_marks, texts)):
        return list(texts)
    said = object_of(objects) if objects is not None else {}
    boxes, names = (_listed(said.get(key), key) for key in ("bbox", "ref"))
    wanted = (sum(text.count(mark) for text in texts) for mark in (_BOX, "<ref-object>"))
    for what, listed, marks in zip(("boxes", "names"), (boxes, names), wanted, strict=True):
        if marks > len(listed) or (marks < len(listed) and not more):
            raise EntryError("boxes_apart", f"the texts have places for {marks} {what}, and objects has {len(listed)}")
    kind, images = said.get("bbox_type") or "real", said.get("image_id")
    if kind not in ("real", "norm1"):
        raise EntryError("box_malformed", f"bbox_type is {shown(kind)}, neither 'real' nor 'norm1'")
    if any(number_of(one) != 0 for one in (images if isinstance(images, list) else [images or 0])):
        raise EntryError("box_malformed", f"image_id is {shown(images)}, and there is one image")
    frame = Frame(1000, 1000) if kind == "norm1" else _frame(image, folder, tally)
    placed = _placed(boxes, frame, 1000 if kind == "norm1" else 1, entry, tally)
    named = (label_of(text_of(name)) for name in names)

    def fill(mark: re.Match[str]) -> str:
        if mark[0].startswith(_BOX):
            return " ; ".join(next(placed) for _ in range(mark[0].count(_BOX)))
        return next(named)

    return [_MARKS.sub(fill, text) for text in texts]


def _listed(value: object, key: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise EntryError("boxes_apart", f"{key} is {shown(value)}, not a list")
    return value or []


def _frame(image: str, folder: Path, tally: Tally) -> Frame:
    photo = read_photo(folder, image)
    if photo is None:
        raise EntryError("size_unknown", f"{shown(image)} cannot be opened, and its boxes are in pixels")
    if photo.orientation > 1:
        tally.note("orientation_unclear", f"{image!r}, taken to be in displayed pixels")
    return Frame(*photo.displayed)


def _placed(boxes: Sequence[object], frame: Frame, scale: float, entry: Entry, tally: Tally) -> Iterator[str]:
    for box in boxes:
        if isinstance(box, list) and len(box) == 2:
            raise EntryError("shape_other", "a box of two numbers is a point")
        edges = [number_of(edge) for edge in box] if isinstance(box, list) and len(box) == 4 else []
        corners = corners_of([edge * scale for edge in edges if edge is not None], "the box")
        text, beyond = place(corners, frame.width, frame.height, frame.orientation)
        if beyond:
            tally.note("box_clipped", entry.place)
        yield text
