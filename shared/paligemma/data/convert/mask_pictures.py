"""Converts folders of photos and of PNG pictures in which a pixel's value is its class, such as Pascal VOC's, to rows with
`<seg>` symbols.

Classes of VOC are palette indices, 0 is the background, and 255 is of no class
(http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html, section 3.2).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from paligemma.choices import BoxPixels
from paligemma.data.convert.files import read_json
from paligemma.data.convert.folder import list_files
from paligemma.data.convert.label_pictures import LabelPictures
from paligemma.data.convert.masks import MaskCodes, MaskedObject, segment_rows
from paligemma.data.convert.outcomes import Entry, EntryError, Outcome, Tally, shown
from paligemma.data.convert.photos import Pictured, find_frames, read_photo
from paligemma.data.image_suffixes import is_image_name
from paligemma.errors import InputError

BACKGROUND, VOID = 0, 255
_MOST_VALUES = 256
"""Most values without a name in a picture of classes; more are a photo's."""

Classes = Mapping[int, str]
PicturePair = tuple[Entry, tuple[str, str, Classes | str] | EntryError]
"""An entry, and the names of its photo and of its picture of masks, and their classes; or what is wrong with it."""


def read_classes(path: Path) -> Classes:
    """Names of classes by value, from a JSON file: a list of names, or an object of names by number or by colour (`#ff0000`).

    Raises:
        InputError: the file is neither.
    """
    given = read_json(path, "classes")
    expected = 'a list of names, or an object such as {"1": "cat", "#ff0000": "dog"}; names without ; and <'
    pairs = list(enumerate(given)) if isinstance(given, list) else list(given.items()) if isinstance(given, dict) else []
    classes = {}
    for key, name in pairs:
        value = _value(key)
        if value is None or value in classes or not is_name(name):
            raise InputError(f"The class {shown(key)}: {shown(name)} cannot be used.", where=path, expected=expected)
        classes[value] = name.strip()
    if not classes:
        raise InputError("The classes are none.", where=path, expected=expected)
    return classes


def _value(key: object) -> int | None:
    if isinstance(key, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", key):
        red, green, blue = (int(key[start : start + 2], 16) for start in (1, 3, 5))
        return red + 256 * green + 65536 * blue
    return int(str(key)) if re.fullmatch(r"[0-9]{1,8}", str(key), re.ASCII) else None


def is_name(name: object) -> bool:
    """Whether a text can name a class in an answer."""
    return isinstance(name, str) and bool(name.strip()) and not set(";<\0") & set(name)


def mask_pictures(
    folder: Path,
    masks: Path,
    mask_name: str,
    classes: Classes | str,
    codes: MaskCodes,
    tally: Tally,
    box_pixels: BoxPixels = "auto",
    output: Path | None = None,
) -> Iterator[Outcome]:
    """A row for every photo and class that its picture of masks shows; see `segment_rows`.

    Args:
        folder: the photos.
        masks: the pictures of masks.
        mask_name: a mask's path in `masks`; `{name}` stands for its photo's path in `folder`, up to the ending.
        classes: names by value; or one name, of all that is not 0.
        codes: encodes and decodes masks.
        tally: counts oddities.
        box_pixels: whether masks are in pixels as displayed or as stored, for images with an EXIF orientation.
        output: the file being written. It may be among the masks, and is then left out.

    Raises:
        InputError: a folder is missing, or both are the same.
    """
    for path in (folder, masks):
        if not path.is_dir():
            raise InputError(f"There is no folder {path}.")
    if folder.samefile(masks):
        raise InputError("Photos and masks are in one folder.", where=folder, expected="a folder for each")
    photos = _photos(folder, masks, tally)
    before, _, after = mask_name.partition("{name}")

    def pairs() -> Iterator[PicturePair]:
        for path in list_files(masks, output, tally):
            mask = path.relative_to(masks).as_posix()
            try:
                yield Entry(mask), (_photo_of(mask, before, after, photos), mask, classes)
            except EntryError as problem:
                yield Entry(mask), problem

    yield from picture_rows(pairs(), folder, masks, codes, tally, box_pixels)


def picture_rows(
    pairs: Iterable[PicturePair],
    folder: Path,
    masks: Path,
    codes: MaskCodes,
    tally: Tally,
    box_pixels: BoxPixels = "auto",
) -> Iterator[Outcome]:
    """A row for every photo and class that a picture of masks shows, whatever says which picture belongs to which photo.

    Args:
        pairs: for each entry, the names of photo and picture, and the classes; or what is wrong with it.
        folder, masks: what the names are relative to.
        codes, tally, box_pixels: see `mask_pictures`.
    """
    pictures = LabelPictures(masks)
    objects: dict[str, Sequence[MaskedObject]] = {}
    pictured: dict[str, Pictured] = {}
    empty = 0
    for number, (entry, pair) in enumerate(pairs):
        try:
            if isinstance(pair, EntryError):
                raise pair
            image, mask, classes = pair
            values = pictures.values(mask)
            found = list(_objects(pictures, entry, mask, np.unique(values).tolist(), classes))
        except EntryError as problem:
            yield Outcome((entry,), problem)
            continue
        yield from (one for one in found if isinstance(one, Outcome))
        empty += not found
        if shown_objects := [one for one in found if isinstance(one, MaskedObject)]:
            size = values.shape[1], values.shape[0]
            objects[str(number)], pictured[str(number)] = shown_objects, Pictured(image, size, read_photo(folder, image), size)
    frames = find_frames(pictured, box_pixels, tally)
    yield from segment_rows([(pictured[key].name, objects[key], frame) for key, frame in frames.items()], codes, tally)
    tally.facts["pictures of masks with nothing but background"] = empty


def _photos(folder: Path, masks: Path, tally: Tally) -> dict[str, list[str]]:
    """Names of photos by their paths up to the ending."""
    photos: dict[str, list[str]] = defaultdict(list)
    for path in list_files(folder, None, tally):
        if is_image_name(path.name) and masks.absolute() not in path.absolute().parents:
            name = path.relative_to(folder)
            photos[name.with_suffix("").as_posix()].append(name.as_posix())
    return photos


def _photo_of(mask: str, before: str, after: str, photos: Mapping[str, list[str]]) -> str:
    matches = mask.startswith(before) and mask.endswith(after) and len(mask) > len(before) + len(after)
    found = photos.get(mask[len(before) : len(mask) - len(after)], []) if matches else []
    if not found:
        raise EntryError("mask_without_image", f"no photo belongs to {shown(mask)}")
    if len(found) > 1:
        raise EntryError("image_ambiguous", f"{shown(found[0])} and {shown(found[1])} differ in their endings only")
    return found[0]


def _objects(
    pictures: LabelPictures, entry: Entry, mask: str, values: list[int], classes: Classes | str
) -> Iterator[MaskedObject | Outcome]:
    """What a picture shows, and the values that are skipped."""
    if isinstance(classes, str):
        if values != [BACKGROUND]:
            yield MaskedObject(entry, classes, None, partial(pictures.mask, mask, BACKGROUND, other=True))
        return
    unnamed = [value for value in values if value not in classes and value != BACKGROUND]
    if len(unnamed) > _MOST_VALUES:
        raise EntryError("mask_file_unreadable", f"{shown(mask)} has {len(unnamed)} values without a name: is it a photo?")
    for value in sorted({*values} - {*unnamed} - ({BACKGROUND} - classes.keys())):
        yield MaskedObject(replace(entry, id=value), classes[value], None, partial(pictures.mask, mask, value))
    for value in unnamed:
        code = "label_void" if value == VOID else "label_unnamed"
        yield Outcome((replace(entry, id=value),), EntryError(code, f"the value is {value}, of {len(classes)} classes"))
