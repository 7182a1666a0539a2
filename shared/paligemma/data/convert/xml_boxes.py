"""Reads boxes from XML: Pascal VOC, and CVAT for images.

- Pascal VOC: facebookresearch/detectron2 at commit 0a07b6b, detectron2/data/datasets/pascal_voc.py:27-71.
  Masks: programs around the devkit take the value n in `SegmentationObject/NAME.png` for the n-th object of `NAME.xml`.
- CVAT for images 1.1: cvat-ai/cvat at commit 2eaa89c, site/content/en/docs/dataset_management/formats/format-xml.md:82-149; the
  runs of a mask in line 272.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from xml.etree.ElementTree import Element

from paligemma.data.convert.box_shapes import (
    MAX_LABEL_BYTES,
    Export,
    Shape,
    around,
    corners_of,
    image_of,
    labelled,
    polygon_of,
    size_of,
    sized,
    turned,
)
from paligemma.data.convert.detection import FoundBox, LabelledBox
from paligemma.data.convert.files import read_bytes
from paligemma.data.convert.label_pictures import LabelPictures
from paligemma.data.convert.names import number_of
from paligemma.data.convert.outcomes import Entry, EntryError, Tally, shown
from paligemma.data.convert.outlines import ReadMask, Work, ellipse_mask, part_mask, rectangle_mask, row_runs
from paligemma.data.convert.photos import Frame, Size
from paligemma.data.convert.xml_elements import read_elements
from paligemma.data.image_suffixes import decoded_suffixes
from paligemma.data.images import MAX_PIXELS
from paligemma.data.run_lengths import Runs
from paligemma.errors import InputError


def voc(export: Export, tally: Tally) -> Iterator[FoundBox]:
    """Pascal VOC's folder `Annotations`: an XML file for each image. Pixels are counted from 1 if no box says otherwise."""
    wanted = _voc_split(export)
    boxes: list[tuple[Entry, LabelledBox]] = []
    pictures = LabelPictures(export.annotations.parent / "SegmentationObject")
    try:
        names = sorted(entry.name for entry in os.scandir(export.annotations) if entry.name.lower().endswith(".xml"))
    except OSError as error:
        raise InputError(f"The folder cannot be read: {error.strerror}.", where=export.annotations) from None
    if not names:
        raise InputError("The folder has no file that ends in .xml.", where=export.annotations)
    for rank, name in enumerate(names):
        if wanted is not None and name[:-4] not in wanted:
            continue
        for entry, item in _voc_file(export, name, rank, pictures, tally):
            if isinstance(item, EntryError):
                yield entry, item
            else:
                boxes.append((entry, item))
    edges = [edge for _, item in boxes for edge in (item.box.x1, item.box.y1)]
    from_one = bool(edges) and min(edges) >= 1 and all(edge == int(edge) for edge in edges)
    if from_one:
        tally.facts["boxes in pixels that are counted from 1"] = len(boxes)
    for entry, item in boxes:
        box = item.box._replace(x1=item.box.x1 - 1, y1=item.box.y1 - 1) if from_one else item.box
        yield entry, replace(item, box=box)


def _voc_split(export: Export) -> frozenset[str] | None:
    if not export.split:
        return None
    lists = export.annotations.parent / "ImageSets" / ("Segmentation" if export.masks else "Main")
    path = lists / f"{posixpath.basename(export.split)}.txt"
    lines = read_bytes(path, "names of images", 64 << 20, "").decode("utf-8", "replace").splitlines()
    return frozenset(line.split()[0] for line in lines if line.strip())


def _voc_file(export: Export, name: str, rank: int, pictures: LabelPictures, tally: Tally) -> Iterator[FoundBox]:
    try:
        parts = list(read_elements(export.annotations / name, "annotations", "annotation", MAX_LABEL_BYTES))
    except InputError as error:
        yield Entry(name), EntryError("file_unreadable", f"{name}: {error.what}")
        return
    said = {part.tag: part for part in parts if part.tag != "object"}
    file = (said["filename"].text or "").strip() if "filename" in said else ""
    size = said.get("size")
    image = image_of(export, [file, f"JPEGImages/{file}"] if file else _of_stem(name[:-4]), _voc_size(size), rank, tally)
    mask = partial(pictures.mask, f"{name[:-4]}.png") if export.masks and _segmented(said.get("segmented")) else None
    objects = [part for part in parts if part.tag == "object"]
    for number, part in enumerate(objects, start=1):
        yield Entry(f"{name}, object {number}"), labelled(image, partial(_voc_object, part, number, mask, export.masks))
    if not objects:
        tally.note("image_without_box", name)


def _of_stem(stem: str) -> list[str]:
    return [stem + ending for ending in (".jpg", *sorted(decoded_suffixes()))]


def _voc_size(size: Element | None) -> Size | None:
    return size_of(size.findtext("width"), size.findtext("height")) if size is not None else None


def _segmented(said: Element | None) -> bool:
    return said is None or number_of(said.text) != 0


def _voc_object(part: Element, number: int, mask: Callable[[int, Frame, Work], Runs] | None, wanted: bool) -> Shape:
    """An object's box; its mask is where the picture of objects has its number in the file."""
    if wanted and mask is None:
        raise EntryError("left_out", "the file says that the image is not segmented")
    box = part.find("bndbox")
    if box is None:
        raise EntryError("box_missing", "the object has no bndbox")
    edges = [number_of(box.findtext(edge)) for edge in ("xmin", "ymin", "xmax", "ymax")]
    return corners_of(edges, "bndbox"), part.findtext("name"), partial(mask, number) if mask is not None else None


def cvat(export: Export, tally: Tally) -> Iterator[FoundBox]:
    """CVAT's XML for images: boxes, polygons, masks and ellipses by label."""
    rank = 0
    for part in read_elements(export.annotations, "annotations", "annotations"):
        if part.tag == "track":
            what = "The annotations are tracks of a video."
            raise InputError(what, where=export.annotations, fix="export the task as CVAT for images, with its images")
        if part.tag != "image":
            continue
        name = part.get("name") or ""
        image = image_of(export, [name, f"images/{name}"], size_of(part.get("width"), part.get("height")), rank, tally)
        rank += 1
        for number, shape in enumerate(part):
            entry = Entry(f"{name[:80]}, shape {number + 1}", part.get("id"))
            yield entry, labelled(image, lambda shape=shape, entry=entry: _cvat_shape(shape, entry, export.masks, tally))
        if not len(part):
            tally.note("image_without_box", shown(name))


def _cvat_shape(shape: Element, entry: Entry, masks: bool, tally: Tally) -> Shape:
    label = shape.get("label")
    degrees = number_of(shape.get("rotation", "0")) or 0
    if shape.tag == "box":
        box = corners_of([number_of(shape.get(edge)) for edge in ("xtl", "ytl", "xbr", "ybr")], "the box")
        about = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
        return turned(box, degrees, *about, entry, tally), label, rectangle_mask(box, degrees, about)
    if shape.tag == "polygon":
        tally.note("box_from_polygon", entry.place)
        pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";")]
        points = [(number_of(pair[0]), number_of(pair[1])) if len(pair) == 2 else (None, None) for pair in pairs]
        return around(points), label, polygon_of(points)
    if shape.tag == "mask":
        tally.note("box_from_polygon", entry.place)
        left, top, width, height = (number_of(shape.get(key)) for key in ("left", "top", "width", "height"))
        return sized(left, top, width, height), label, _cvat_mask(shape.get("rle"), left, top, width, height) if masks else None
    if shape.tag == "ellipse":
        x, y, width, height = (number_of(shape.get(key)) for key in ("cx", "cy", "rx", "ry"))
        if x is None or y is None or width is None or height is None:
            raise EntryError("box_malformed", "the ellipse has no center and radii")
        tally.note("box_from_polygon", entry.place)
        box = turned(sized(x - width, y - height, 2 * width, 2 * height), degrees, x, y, entry, tally)
        return box, label, ellipse_mask((x, y), (width, height), degrees)
    raise EntryError("shape_other", f"the shape is a {shape.tag[:20]}")


def _cvat_mask(rle: str | None, *numbers: float | None) -> ReadMask:
    """A mask of a part of the image: lengths of runs outside and inside the object, in turn, row by row."""
    if any(number is None or number != int(number) or abs(number) > MAX_PIXELS for number in numbers):
        raise EntryError("mask_malformed", "left, top, width and height are not whole numbers")
    left, top, width, height = (int(number or 0) for number in numbers)
    counts = [int(count) if count.strip().isdecimal() and len(count) < 12 else -1 for count in (rle or "").split(",")]
    return part_mask(row_runs(counts, width, height), left, top)
