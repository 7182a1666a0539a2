"""Converts COCO's captions and boxes, and files in its format (LVIS, exports of annotation tools), to rows.

The form: https://cocodataset.org/#format-data. LVIS has `coco_url` instead of `file_name`; its last two parts name the file
(facebookresearch/detectron2, detectron2/data/datasets/lvis.py). An image that is not in the folder keeps its `coco_url` or
`flickr_url`, if prepare_data reads that; COCO's own are plain http, which it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paligemma.choices import BoxPixels
from paligemma.data.convert.boxes import box_of
from paligemma.data.convert.detection import BoxedImage, FoundBox, LabelledBox, detection_rows
from paligemma.data.convert.files import read_lists
from paligemma.data.convert.image_templates import name_or_address
from paligemma.data.convert.look_up import is_there
from paligemma.data.convert.names import Index, image_name, number_of, text_of
from paligemma.data.convert.outcomes import Entry, EntryError, Outcome, Tally, is_read_from, object_of, shown
from paligemma.data.convert.photos import Size

ListedImage = tuple[str, Size | None]
"""File name, and width and height if given."""


def coco_captions(annotations: Path, prefix: str, folder: Path, tally: Tally) -> Iterator[Outcome]:
    """A row for every caption of COCO's `captions_*.json`.

    Args:
        annotations: the JSON file.
        prefix: prefix of every row.
        folder: the folder that image names are relative to.
        tally: counts oddities.

    Raises:
        InputError: the file is not in COCO's format.
    """
    listed, entries = read_lists(annotations, "annotations", ("images", "annotations"))
    images, with_any = index_images(listed, folder, tally), set()
    for entry, annotation in numbered(entries):
        try:
            annotation = object_of(annotation)
            key, (name, _) = images.find(annotation.get("image_id"), "image_id_missing")
            with_any.add(key)
            caption = text_of(annotation.get("caption"))
            if caption is None:
                raise EntryError("caption_missing", f"the caption is {shown(annotation.get('caption'))}")
            yield Outcome((entry,), {"image": name, "prefix": prefix, "suffix": caption.strip()})
        except EntryError as problem:
            yield Outcome((entry,), problem)
    count_images(listed, with_any, tally)


def coco_detection(annotations: Path, folder: Path, tally: Tally, box_pixels: BoxPixels = "auto") -> Iterator[Outcome]:
    """A row for every image with boxes in COCO's `instances_*.json`: `detect cat ; dog`, and their boxes.

    The suffix has every box as four <loc> tokens (y1 x1 y2 x2, as fractions of the image) and its category, ordered from the
    top, then from the left. Crowds are left out, since they are not single objects.

    Args:
        annotations: the JSON file.
        folder: the folder that image names are relative to; images there are opened for their sizes and orientations.
        tally: counts oddities.
        box_pixels: whether boxes are in pixels as displayed or as stored, for images with an EXIF orientation.

    Raises:
        InputError: the file is not in COCO's format.
    """
    listed, entries, named = read_lists(annotations, "annotations", ("images", "annotations", "categories"))
    images, with_any = index_images(listed, folder, tally), set()
    categories = index_categories(named, tally)
    yield from detection_rows(_boxes(entries, images, categories, with_any, tally), folder, box_pixels, tally)
    count_images(listed, with_any, tally)


def _boxes(
    entries: list, images: Index[ListedImage], categories: Index[str], with_any: set[str], tally: Tally
) -> Iterator[FoundBox]:
    ranks = images.ranks()
    for entry, annotation in numbered(entries):
        try:
            annotation = object_of(annotation)
            key, (name, size) = images.find(annotation.get("image_id"), "image_id_missing")
            with_any.add(key)
            if is_crowd(annotation.get("iscrowd")):
                raise EntryError("crowd", f"iscrowd is {shown(annotation['iscrowd'])}")
            _, category = categories.find(annotation.get("category_id"), "category_missing")
            box, from_polygons = box_of(annotation)
            if from_polygons:
                tally.note("box_from_polygon", entry.place)
            yield entry, LabelledBox(BoxedImage(name, size, rank=ranks[key]), box, category)
        except EntryError as problem:
            yield entry, problem


def numbered(annotations: list) -> Iterator[tuple[Entry, object]]:
    """Annotations, each with its place and id."""
    for number, annotation in enumerate(annotations):
        yield Entry(f"annotations[{number}]", annotation.get("id") if isinstance(annotation, dict) else None), annotation


def index_images(listed: list, folder: Path, tally: Tally) -> Index[ListedImage]:
    """Images by id."""
    images: Index[ListedImage] = Index("image")
    for number, image in enumerate(listed):
        where = f"images[{number}]"
        if not isinstance(image, dict):
            tally.note("image_entry_unusable", f"{where} is {shown(image)}")
            continue
        try:
            found: ListedImage | EntryError = (_file_name(image, folder, tally), _size(image))
        except EntryError as problem:
            found = problem
        images.add(image.get("id"), found, tally, where)
    return images


def _file_name(image: dict, folder: Path, tally: Tally) -> str:
    name, url = image.get("file_name"), image.get("coco_url")
    if name is None and isinstance(url, str) and "://" in url:
        name = "/".join(url.split("/")[-2:])
        if is_there(folder, name) or not is_read_from(url):
            tally.note("name_from_url", shown(url))
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise EntryError("image_unnamed", f"the image's file_name is {shown(name)}")
    addresses = [url for url in (url, image.get("flickr_url")) if isinstance(url, str) and is_read_from(url)]
    if is_there(folder, name) or not addresses:
        return image_name(name, folder, tally)
    return name_or_address(addresses, folder, tally)


def _size(image: dict) -> Size | None:
    width, height = number_of(image.get("width")), number_of(image.get("height"))
    return (width, height) if width and height and width > 0 and height > 0 else None


def index_categories(listed: list, tally: Tally) -> Index[str]:
    """Names of categories by id."""
    categories: Index[str] = Index("category")
    for number, category in enumerate(listed):
        where = f"categories[{number}]"
        if not isinstance(category, dict):
            tally.note("entry_unusable", f"{where} is {shown(category)}")
            continue
        name = (text_of(category.get("name")) or "").strip()
        usable = name and ";" not in name and "<" not in name
        problem = EntryError("category_unnamed", f"category {shown(category.get('id'))} is named {shown(category.get('name'))}")
        categories.add(category.get("id"), name if usable else problem, tally, where)
    return categories


def is_crowd(value: object) -> bool:
    """Whether `iscrowd` means a crowd: 1, true and "1" do; 0, false, "0", "false", empty and missing do not."""
    return bool(value) if not isinstance(value, str) else value.strip().lower() not in ("", "0", "0.0", "false", "no")


def count_images(listed: list, with_any: set[str], tally: Tally) -> None:
    """Counts images and annotations that nothing belongs to."""
    tally.facts["images listed"] = len(listed)
    tally.facts["images without any annotation"] = max(len(listed) - len(with_any), 0)
    tally.facts["annotations of unlisted images"] = tally.skipped["image_unlisted"]
