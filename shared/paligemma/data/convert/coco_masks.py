"""Converts COCO's instances and panoptic segments, and files in these formats, to rows with `<seg>` symbols.

The forms: https://cocodataset.org/#format-data, sections 1 and 4. A segment's id is the colour of its pixels,
R + 256 G + 65536 B (cocodataset/panopticapi, `panopticapi/utils.py`, lines 73-78).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from paligemma.choices import BoxPixels
from paligemma.data.convert.boxes import Corners, all_fractions, box_of, reach
from paligemma.data.convert.coco import count_images, index_categories, index_images, is_crowd, numbered
from paligemma.data.convert.files import read_lists
from paligemma.data.convert.label_pictures import LabelPictures
from paligemma.data.convert.masks import MaskCodes, MaskedObject, given_box, segment_rows
from paligemma.data.convert.names import Index, id_of
from paligemma.data.convert.outcomes import Entry, EntryError, Outcome, Tally, object_of, shown
from paligemma.data.convert.outlines import coco_mask, stated_size
from paligemma.data.convert.photos import Pictured, Size, find_frames, read_photo

_MOST_COLOUR = 256**3 - 1


@dataclass
class _Image:
    """An image and what is known of its objects.

    Attributes:
        name: its name.
        size: width and height in the annotations.
        objects: its objects.
        sizes: sizes that run lengths state.
    """

    name: str
    size: Size | None
    objects: list[MaskedObject] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)

    def pictured(self, folder: Path) -> Pictured:
        """The image as `find_frames` takes it. Without a size in the annotations, it is what run lengths state."""
        size = self.size or next(iter(self.sizes), None)
        boxes = [thing.box for thing in self.objects if thing.box is not None]
        return Pictured(self.name, size, read_photo(folder, self.name), reach(boxes) if boxes else size or (0, 0))


def coco_instances(
    annotations: Path, folder: Path, codes: MaskCodes, tally: Tally, box_pixels: BoxPixels = "auto"
) -> Iterator[Outcome]:
    """A row for every image and class in COCO's `instances_*.json`; see `segment_rows`. Crowds are left out.

    The box is the annotation's `bbox`, which big_vision takes too. Without one, it is the box around the polygons, or around
    the mask.

    Args:
        annotations: the JSON file.
        folder: the folder that image names are relative to; images there are opened for their sizes and orientations.
        codes: encodes and decodes masks.
        tally: counts oddities.
        box_pixels: whether masks are in pixels as displayed or as stored, for images with an EXIF orientation.

    Raises:
        InputError: the file is not in COCO's format.
    """
    listed, entries, named = read_lists(annotations, "annotations", ("images", "annotations", "categories"))
    images, with_any = index_images(listed, folder, tally), set()
    categories = index_categories(named, tally)
    found: dict[str, _Image] = {}
    for entry, annotation in numbered(entries):
        try:
            annotation = object_of(annotation)
            key, listed_image = images.find(annotation.get("image_id"), "image_id_missing")
            with_any.add(key)
            label = _label(annotation, categories)
            segmentation = annotation.get("segmentation")
            read = coco_mask(segmentation, entry, tally)
            thing = MaskedObject(entry, label, given_box(annotation, entry, tally), read)
            image = found.setdefault(key, _Image(*listed_image))
            image.objects.append(thing)
            image.sizes += [size] if (size := stated_size(segmentation)) else []
        except EntryError as problem:
            yield Outcome((entry,), problem)
    frames = find_frames({key: found[key].pictured(folder) for key in images.keys_in(found)}, box_pixels, tally)
    fractions = _fractions(list(found.values()))
    described = [(found[key].name, found[key].objects, fractions or frame) for key, frame in frames.items()]
    yield from segment_rows(described, codes, tally)
    count_images(listed, with_any, tally)


def coco_panoptic(
    annotations: Path, folder: Path, masks: Path, codes: MaskCodes, tally: Tally, box_pixels: BoxPixels = "auto"
) -> Iterator[Outcome]:
    """A row for every image and class in COCO's `panoptic_*.json`, things and stuff; see `segment_rows`. Crowds are left out.

    Args:
        annotations: the JSON file.
        folder, codes, tally, box_pixels: see `coco_instances`.
        masks: the folder of the PNG pictures in which each segment has a colour.

    Raises:
        InputError: the file is not in COCO's format.
    """
    listed, entries, named = read_lists(annotations, "annotations", ("images", "annotations", "categories"))
    images, with_any = index_images(listed, folder, tally), set()
    categories = index_categories(named, tally)
    pictures, found = LabelPictures(masks), []
    for entry, annotation in numbered(entries):
        try:
            annotation = object_of(annotation)
            key, listed_image = images.find(annotation.get("image_id"), "image_id_missing")
            with_any.add(key)
            segments, name = annotation.get("segments_info"), annotation.get("file_name")
            if not isinstance(segments, list) or not segments:
                raise EntryError("segments_missing", f"segments_info is {shown(segments)}")
        except EntryError as problem:
            yield Outcome((entry,), problem)
            continue
        image = _Image(*listed_image)
        for number, segment in enumerate(segments):
            one = Entry(f"{entry.place}.segments_info[{number}]", segment.get("id") if isinstance(segment, dict) else None)
            try:
                segment = object_of(segment)
                label, read = _label(segment, categories), partial(pictures.mask, name, _colour(segment.get("id")))
                image.objects.append(MaskedObject(one, label, _box_of_segment(segment), read))
            except EntryError as problem:
                yield Outcome((one,), problem)
        if image.objects:
            found.append(image)
    frames = find_frames({str(number): image.pictured(folder) for number, image in enumerate(found)}, box_pixels, tally)
    fractions = _fractions(found)
    described = [(image.name, image.objects, fractions or frame) for image, frame in zip(found, frames.values(), strict=True)]
    yield from segment_rows(described, codes, tally)
    count_images(listed, with_any, tally)


def _label(annotation: dict, categories: Index[str]) -> str:
    if is_crowd(annotation.get("iscrowd")):
        raise EntryError("crowd", f"iscrowd is {shown(annotation['iscrowd'])}")
    return categories.find(annotation.get("category_id"), "category_missing")[1]


def _box_of_segment(segment: dict) -> Corners | None:
    return None if segment.get("bbox") in (None, []) else box_of(segment)[0]


def _colour(id: object) -> int:
    """The number of a segment's colour."""
    key = id_of(id)
    if key is None or not re.fullmatch(r"[0-9]{1,8}", key, re.ASCII) or not 0 < int(key) <= _MOST_COLOUR:
        raise EntryError("segment_id_missing", f"the segment's id is {shown(id)}")
    return int(key)


def _fractions(images: Sequence[_Image]) -> EntryError | None:
    """The error of every object, if all boxes of the file seem to be fractions of their image."""
    boxes = [thing.box for image in images for thing in image.objects if thing.box is not None]
    return EntryError("box_fraction", "all boxes end within the first pixel") if all_fractions(boxes) else None
