"""Reads boxes from JSON: LabelMe, and Label Studio.

- LabelMe: wkentaro/labelme at commit 00385ce, labelme/_label_file.py:41-77 and 145-160.
- Label Studio: HumanSignal/label-studio at commit 0f38ca1, docs/source/includes/result_format.md:1-133. Numbers are in percent.
"""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from paligemma.data.convert.box_shapes import Export, around, image_of, labelled, pairs_of, size_of, sized, turned
from paligemma.data.convert.boxes import Corners
from paligemma.data.convert.detection import FoundBox, LabelledBox, label_of
from paligemma.data.convert.files import read_list
from paligemma.data.convert.names import number_of, text_of
from paligemma.data.convert.outcomes import Entry, EntryError, Tally, object_of, shown
from paligemma.data.convert.vqa_entries import json_files, read_small
from paligemma.data.image_suffixes import is_image_name

_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")
"""Label Studio puts eight digits before the names of files that are uploaded."""

_SHAPES = {"rectanglelabels": "rectangle", "polygonlabels": "polygon", "ellipselabels": "ellipse"}
_KEYS = {"width": "rectangle", "points": "polygon", "radiusX": "ellipse"}
"""What a result of the type `labels` is, by a key that it has: labels apart from the shape have the shape's numbers again."""


def labelme(export: Export, tally: Tally) -> Iterator[FoundBox]:
    """LabelMe's folder: a JSON file for each image, with rectangles, polygons and circles."""
    for rank, path in enumerate(json_files(export.annotations)):
        try:
            value = object_of(read_small(path))
            shapes = value.get("shapes")
            if not isinstance(shapes, list):
                raise EntryError("box_missing", f"shapes is {shown(shapes)}")
            named = text_of(value.get("imagePath"))
            if not named:
                raise EntryError("image_unnamed", f"imagePath is {shown(named)}")
        except EntryError as problem:
            yield Entry(path.name), problem
            continue
        named = named.replace("\\", "/")
        beside = posixpath.normpath(posixpath.join(os.path.relpath(path.parent, export.folder), named))
        size = size_of(value.get("imageWidth"), value.get("imageHeight"))
        image = image_of(export, [beside, named, posixpath.basename(named)], size, rank, tally)
        for number, shape in enumerate(shapes):
            entry = Entry(f"{path.name}, shape {number + 1}")
            yield entry, labelled(image, lambda shape=shape, entry=entry: _labelme_box(object_of(shape), entry, tally))
        if not shapes:
            tally.note("image_without_box", path.name)


def _labelme_box(shape: Mapping[str, Any], entry: Entry, tally: Tally) -> tuple[Corners, object]:
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind not in ("rectangle", "polygon", "circle", "mask", "oriented_rectangle"):
        raise EntryError("shape_other", f"the shape is {shown(kind)}")
    pairs = pairs_of(points)
    if kind == "circle":
        (x, y), (far, off) = pairs if len(pairs) == 2 else ((None, None), (None, None))
        if x is None or y is None or far is None or off is None:
            raise EntryError("box_malformed", f"points is {shown(points)}")
        tally.note("box_from_polygon", entry.place)
        radius = math.hypot(far - x, off - y)
        return sized(x - radius, y - radius, 2 * radius, 2 * radius), shape.get("label")
    if kind not in ("rectangle", "mask"):
        tally.note("box_from_polygon", entry.place)
    return around(pairs), shape.get("label")


def label_studio(export: Export, tally: Tally) -> Iterator[FoundBox]:
    """Label Studio's JSON: of each task, the annotation that is the ground truth, or the first that was not cancelled."""
    others = 0
    for rank, value in enumerate(read_list(export.annotations, "annotations")):
        place = f"[{rank}]"
        try:
            task = object_of(value)
            image_names = _studio_names(task.get("data"), tally)
            given = task.get("annotations")
            if not isinstance(given, list):
                raise EntryError("box_missing", f"annotations is {shown(given)}")
            annotations = [one for one in map(object_of, given) if not one.get("was_cancelled")]
        except EntryError as problem:
            yield Entry(place), problem
            continue
        others += max(len(annotations) - 1, 0)
        chosen = next((one for one in annotations if one.get("ground_truth")), annotations[0] if annotations else {})
        results = chosen.get("result")
        known = task.get("id")
        if not isinstance(results, list) or not results:
            tally.note("image_without_box", place)
            continue
        for number, result in enumerate(results):
            entry = Entry(f"{place}, result {number + 1}", known)
            yield entry, _studio_result(export, image_names, result, rank, entry, tally)
    tally.facts["annotations of tasks that have another one"] = others


def _studio_result(
    export: Export, names: Sequence[str], result: object, rank: int, entry: Entry, tally: Tally
) -> LabelledBox | EntryError:
    try:
        said = object_of(result)
        kind, value = text_of(said.get("type")) or "", object_of(said.get("value"))
        shape = _SHAPES.get(kind) or next((shape for key, shape in _KEYS.items() if kind == "labels" and key in value), None)
        if shape is None:
            raise EntryError("shape_other", f"the result is {shown(kind)}")
        labels = value.get(kind, value.get("labels"))
        label = labels[0] if isinstance(labels, list) and labels else None
        size = size_of(said.get("original_width"), said.get("original_height"))
        image = image_of(export, names, size, rank, tally, fractions=size is None)
        if isinstance(image, EntryError):
            raise image
        width, height = size or (1.0, 1.0)
        box = _studio_box(shape, value, width / 100, height / 100, entry, tally)
        return LabelledBox(image, box, label_of(text_of(label)))
    except EntryError as problem:
        return problem


def _studio_box(shape: str, value: Mapping[str, Any], right: float, down: float, entry: Entry, tally: Tally) -> Corners:
    """The box of a shape in percent; `right` and `down` are the pixels of a percent."""
    if shape == "polygon":
        tally.note("box_from_polygon", entry.place)
        return around(
            [
                (x * right, y * down) if x is not None and y is not None else (None, None)
                for x, y in pairs_of(value.get("points"))
            ]
        )
    x, y, rotation = (number_of(value.get(key, 0)) for key in ("x", "y", "rotation"))
    if x is None or y is None:
        raise EntryError("box_malformed", f"x is {shown(value.get('x'))}, y is {shown(value.get('y'))}")
    if shape == "ellipse":
        wide, high = number_of(value.get("radiusX")), number_of(value.get("radiusY"))
        if wide is None or high is None:
            raise EntryError("box_malformed", "the ellipse has no radii")
        tally.note("box_from_polygon", entry.place)
        box = sized((x - wide) * right, (y - high) * down, 2 * wide * right, 2 * high * down)
        return turned(box, rotation, x * right, y * down, entry, tally)
    wide, high = number_of(value.get("width")), number_of(value.get("height"))
    if wide is None or high is None:
        raise EntryError("box_malformed", f"width is {shown(value.get('width'))}, height is {shown(value.get('height'))}")
    box = sized(x * right, y * down, wide * right, high * down)
    return turned(box, rotation, x * right, y * down, entry, tally)


def _studio_names(data: object, tally: Tally) -> list[str]:
    """Names that a task's image may have in the image folder, from its address."""
    values = [value for value in object_of(data).values() if isinstance(value, str)]
    address = next((value for value in values if is_image_name(_path_of(value))), values[0] if len(values) == 1 else None)
    if not address:
        raise EntryError("image_unnamed", "the task's data has no address of an image")
    try:
        parts = urlsplit(address)
        local = parse_qs(parts.query).get("d", [""])[0]
    except ValueError:
        raise EntryError("image_unnamed", f"the image's address is {shown(address)}") from None
    path = local or unquote(parts.path)
    last = posixpath.basename(path)
    tally.note("name_from_address", shown(address))
    shorter = _UPLOAD.fullmatch(last)
    return [name for name in (local.lstrip("/"), last, shorter[1] if shorter else "") if name]


def _path_of(address: str) -> str:
    """The path of an address, or the file that it names to Label Studio; empty if it is no address."""
    try:
        parts = urlsplit(address)
        return parse_qs(parts.query).get("d", [parts.path])[0]
    except ValueError:
        return ""
