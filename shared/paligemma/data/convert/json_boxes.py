"""Reads boxes from JSON: LabelMe, and Label Studio.

- LabelMe: wkentaro/labelme at commit 00385ce, labelme/_label_file.py:41-77 and 145-160; which pixels a shape covers:
  labelme/_utils/_shape.py:33-88 and 122-146 at commit c3e2a21.
- Label Studio: HumanSignal/label-studio at commit 0f38ca1, docs/source/includes/result_format.md:1-133. Numbers are in percent.
"""

from __future__ import annotations

import base64
import math
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from paligemma.data.convert.box_shapes import (
    Export,
    Shape,
    around,
    image_of,
    labelled,
    pairs_of,
    polygon_of,
    size_of,
    sized,
    turned,
)
from paligemma.data.convert.boxes import Corners
from paligemma.data.convert.brush_runs import read_brush
from paligemma.data.convert.detection import BoxedImage, FoundBox, LabelledBox
from paligemma.data.convert.files import read_list
from paligemma.data.convert.label_pictures import read_values
from paligemma.data.convert.look_up import is_there
from paligemma.data.convert.names import number_of, text_of
from paligemma.data.convert.outcomes import Entry, EntryError, Tally, is_read_from, object_of, shown
from paligemma.data.convert.outlines import ReadMask, Work, ellipse_mask, frame_pixels, part_mask, rectangle_mask
from paligemma.data.convert.photos import Frame, Size
from paligemma.data.convert.vqa_entries import json_files, read_small
from paligemma.data.image_suffixes import is_image_name
from paligemma.data.run_lengths import Runs

_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")
"""Label Studio puts eight digits before the names of files that are uploaded."""

Image = BoxedImage | EntryError
"""An image, or why there is none."""

_SHAPES = {"rectanglelabels": "rectangle", "polygonlabels": "polygon", "ellipselabels": "ellipse", "brushlabels": "brush"}
_KEYS = {"width": "rectangle", "points": "polygon", "radiusX": "ellipse", "rle": "brush"}
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
            yield entry, labelled(image, partial(_labelme_shape, shape, entry, export.masks, tally))
        if not shapes:
            tally.note("image_without_box", path.name)


def _labelme_shape(value: object, entry: Entry, masks: bool, tally: Tally) -> Shape:
    shape = object_of(value)
    kind, points, label = shape.get("shape_type") or "polygon", shape.get("points"), shape.get("label")
    if kind not in ("rectangle", "polygon", "circle", "mask", "oriented_rectangle"):
        raise EntryError("shape_other", f"the shape is {shown(kind)}")
    pairs = pairs_of(points)
    if kind == "circle":
        (x, y), (far, off) = pairs if len(pairs) == 2 else ((None, None), (None, None))
        if x is None or y is None or far is None or off is None:
            raise EntryError("box_malformed", f"points is {shown(points)}")
        tally.note("box_from_polygon", entry.place)
        radius = math.hypot(far - x, off - y)
        return sized(x - radius, y - radius, 2 * radius, 2 * radius), label, ellipse_mask((x, y), (radius, radius))
    box = around(pairs)
    if kind == "mask":
        if len(pairs) != 2:
            raise EntryError("box_malformed", f"points is {shown(points)}")
        # The points are the first and the last pixel.
        box = Corners(box.x1, box.y1, box.x2 + 1, box.y2 + 1)
        return box, label, _labelme_picture(shape.get("mask"), box) if masks else None
    if kind == "rectangle":
        return box, label, rectangle_mask(box)
    tally.note("box_from_polygon", entry.place)
    return box, label, polygon_of(pairs)


def _labelme_picture(mask: object, box: Corners) -> ReadMask:
    """A mask that is a PNG picture of its box, in base64."""

    def read(frame: Frame, work: Work) -> Runs:
        try:
            data = base64.b64decode(mask if isinstance(mask, str) else "", validate=True)
        except ValueError:
            data = b""
        if not data:
            raise EntryError("mask_missing", f"the mask is {shown(mask)}")
        pixels = read_values(data, "the mask", work) != 0
        return Runs.of_pixels(pixels).placed(round(box.x1), round(box.y1), *frame_pixels(frame))

    return read


def label_studio(export: Export, tally: Tally) -> Iterator[FoundBox]:
    """Label Studio's JSON: of each task, the annotation that is the ground truth, or the first that was not cancelled."""
    others = 0
    for rank, value in enumerate(read_list(export.annotations, "annotations")):
        place = f"[{rank}]"
        try:
            task = object_of(value)
            image_names = _studio_names(task.get("data"), export.folder, tally)
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
        known, images = task.get("id"), {}
        if not isinstance(results, list) or not results:
            tally.note("image_without_box", place)
            continue
        for number, result in enumerate(results):
            entry = Entry(f"{place}, result {number + 1}", known)
            yield entry, _studio_result(partial(_studio_image, export, image_names, rank, tally, images), result, entry, tally)
    tally.facts["annotations of tasks that have another one"] = others


def _studio_image(
    export: Export, names: Sequence[str], rank: int, tally: Tally, known: dict[Size | None, Image], size: Size | None
) -> Image:
    """The image of a task, as large as a result says; each is looked for once."""
    if size not in known:
        known[size] = image_of(export, names, size, rank, tally, fractions=size is None)
    return known[size]


def _studio_result(
    image: Callable[[Size | None], Image], result: object, entry: Entry, tally: Tally
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
    except EntryError as problem:
        return problem
    return labelled(image(size), lambda: _studio_shape(shape, value, label, size, entry, tally))


def _studio_shape(kind: str, value: Mapping[str, Any], label: object, size: Size | None, entry: Entry, tally: Tally) -> Shape:
    """The box and the mask of a shape in percent; in pixels if the size is known, else in fractions."""
    right, down = (side / 100 for side in size or (1.0, 1.0))
    fractions = size is None
    if kind == "brush":
        return _studio_brush(value, label, size, entry, tally)
    if kind == "polygon":
        tally.note("box_from_polygon", entry.place)
        points = [
            (x * right, y * down) if x is not None and y is not None else (None, None) for x, y in pairs_of(value.get("points"))
        ]
        return around(points), label, polygon_of(points, fractions)
    x, y, rotation = (number_of(value.get(key, 0)) for key in ("x", "y", "rotation"))
    if x is None or y is None:
        raise EntryError("box_malformed", f"x is {shown(value.get('x'))}, y is {shown(value.get('y'))}")
    about = x * right, y * down
    if kind == "ellipse":
        wide, high = number_of(value.get("radiusX")), number_of(value.get("radiusY"))
        if wide is None or high is None:
            raise EntryError("box_malformed", "the ellipse has no radii")
        tally.note("box_from_polygon", entry.place)
        box = sized((x - wide) * right, (y - high) * down, 2 * wide * right, 2 * high * down)
        mask = ellipse_mask(about, (wide * right, high * down), rotation or 0, fractions)
        return turned(box, rotation, *about, entry, tally), label, mask
    wide, high = number_of(value.get("width")), number_of(value.get("height"))
    if wide is None or high is None:
        raise EntryError("box_malformed", f"width is {shown(value.get('width'))}, height is {shown(value.get('height'))}")
    box = sized(x * right, y * down, wide * right, high * down)
    return turned(box, rotation, *about, entry, tally), label, rectangle_mask(box, rotation or 0, about, fractions)


def _studio_brush(value: Mapping[str, Any], label: object, size: Size | None, entry: Entry, tally: Tally) -> Shape:
    if size is None or size != (round(size[0]), round(size[1])):
        raise EntryError("mask_size", "the result has no original_width and original_height in whole pixels")
    runs = read_brush(value.get("rle"), round(size[0]), round(size[1]))
    tally.note("box_from_polygon", entry.place)
    if (box := runs.box) is None:
        raise EntryError("mask_empty", "the mask has no pixel")
    return Corners(box[1], box[0], box[3], box[2]), label, part_mask(runs, 0, 0)


def _studio_names(data: object, folder: Path, tally: Tally) -> list[str]:
    """Names that a task's image may have in the image folder, from its address; or the address, if none of them is there.

    What Label Studio itself serves (`/data/upload/...`, `/data/local-files/?d=...`) needs an account, and keeps a name.
    """
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
    shorter = _UPLOAD.fullmatch(last)
    names = [name for name in (local.lstrip("/"), last, shorter[1] if shorter else "") if name]
    if is_read_from(address) and not parts.path.startswith("/data/") and not any(is_there(folder, name) for name in names):
        return [address]
    tally.note("name_from_address", shown(address))
    return names


def _path_of(address: str) -> str:
    """The path of an address, or the file that it names to Label Studio; empty if it is no address."""
    try:
        parts = urlsplit(address)
        return parse_qs(parts.query).get("d", [parts.path])[0]
    except ValueError:
        return ""
