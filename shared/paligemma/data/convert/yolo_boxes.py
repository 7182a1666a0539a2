"""Reads YOLO's boxes (v5 to v11): `data.yaml`, and a text for each image, of boxes, polygons or oriented boxes.

The form: ultralytics/ultralytics at commit 02121a5, docs/en/datasets/detect/index.md:17-37; of polygons,
docs/en/datasets/segment/index.md:13-40 at commit 0005af5. Labels of `images/a.jpg` are in
`labels/a.txt`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from paligemma.data.convert.box_shapes import MAX_LABEL_BYTES, Export, Shape, around, labelled, polygon_of, sized
from paligemma.data.convert.detection import BoxedImage, FoundBox
from paligemma.data.convert.files import read_bytes
from paligemma.data.convert.names import image_name, number_of
from paligemma.data.convert.outcomes import Entry, EntryError, Tally, shown
from paligemma.data.image_suffixes import is_image_name
from paligemma.errors import InputError, did_you_mean
from paligemma.yaml_text import read_yaml


def yolo(export: Export, tally: Tally) -> Iterator[FoundBox]:
    """YOLO's `data.yaml`, and a text for each image: class and box, or class and polygon, in fractions."""
    names, pictures = _yolo_data(export)
    without = 0
    for rank, picture in enumerate(pictures):
        name = os.path.relpath(picture, export.folder)
        if name.startswith(".."):
            yield Entry(name), EntryError("image_path_unsafe", f"{shown(name)} leads out of the image folder")
            continue
        image = BoxedImage(image_name(name, export.folder, tally), None, True, rank)
        labels = _yolo_labels(picture)
        if not labels.is_file():
            without += 1
            continue
        try:
            text = read_bytes(labels, "labels", MAX_LABEL_BYTES, "").decode("utf-8-sig")
        except (InputError, UnicodeDecodeError) as error:
            message = error.what if isinstance(error, InputError) else "it is not UTF-8"
            yield Entry(name), EntryError("file_unreadable", f"{labels.name}: {message}")
            continue
        for number, line in enumerate(text.splitlines()):
            if line.strip():
                entry = Entry(f"{os.path.relpath(labels, export.folder)}, line {number + 1}")
                yield entry, labelled(image, lambda line=line, entry=entry: _yolo_box(line, names, entry, tally))
    tally.facts["images without boxes"] = without


def _yolo_data(export: Export) -> tuple[Mapping[int, str], list[Path]]:
    """The classes' names by number, and the pictures of the split."""
    path = export.annotations
    data = read_yaml(path, "The data set")
    if not isinstance(data, dict):
        raise InputError("The data set is no mapping.", where=path, expected="YOLO's data.yaml, with names and train")
    given = data.get("names")
    listed = enumerate(given) if isinstance(given, list) else given.items() if isinstance(given, dict) else ()
    names = {int(key): str(name) for key, name in listed if str(key).isascii() and str(key).isdigit() and len(str(key)) < 9}
    if not names:
        raise InputError("The data set has no names of classes.", where=path, expected="names: a list, or a mapping by number")
    split = export.split or "train"
    if data.get(split) is None:
        there = [key for key in ("train", "val", "test") if data.get(key) is not None]
        raise InputError(f"The data set has no split {split!r}.", where=path, expected=did_you_mean(split, there))
    base = data.get("path") if isinstance(data.get("path"), str) else ""
    places = data[split] if isinstance(data[split], list) else [data[split]]
    pictures = [picture for place in places for picture in _yolo_pictures(export, str(base), str(place))]
    return names, pictures


def _yolo_pictures(export: Export, base: str, place: str) -> list[Path]:
    """The pictures of a folder, or of a text that lists them; wherever the data set lay when it was written, it is here now."""
    root, beside = os.path.realpath(export.folder), export.annotations.parent
    # Roboflow writes ../train/images for the folder train/images beside the file.
    tries = [beside / base / place, beside / place, beside / place.removeprefix("../"), export.folder / place]
    for found in tries if "\0" not in base + place else ():
        real = os.path.realpath(found)
        if real != root and not real.startswith(root + os.sep):
            continue
        here = export.folder / os.path.relpath(real, root)
        if here.is_dir():
            return sorted(Path(parent) / name for parent, _, files in os.walk(here) for name in files if is_image_name(name))
        if here.is_file() and here.suffix == ".txt":
            lines = read_bytes(here, "names of images", 64 << 20, "").decode("utf-8", "replace").splitlines()
            listed = (line.strip().removeprefix("./") for line in lines if line.strip() and "\0" not in line)
            return [here.parent / line for line in listed]
    raise InputError(
        f"There is no folder {place!r} of images.",
        where=export.annotations,
        expected=f"a folder below {export.folder}",
        fix="pass --images, the folder that has the data set's images and labels",
    )


def _yolo_labels(picture: Path) -> Path:
    """The file of a picture's labels: the last folder `images` of its path is `labels` there."""
    parts = list(picture.with_suffix(".txt").parts)
    folders = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    return Path(*parts[: folders[-1]], "labels", *parts[folders[-1] + 1 :]) if folders else picture.with_suffix(".txt")


def _yolo_box(line: str, names: Mapping[int, str], entry: Entry, tally: Tally) -> Shape:
    cells = line.split(maxsplit=20_000)
    numbers = [number for cell in cells if (number := number_of(cell)) is not None]
    if len(numbers) != len(cells) or len(cells) < 5 or len(cells) % 2 == 0:
        raise EntryError("box_malformed", f"the line is {shown(line)}")
    label = names.get(int(numbers[0])) if numbers[0] == int(numbers[0]) else None
    if label is None:
        raise EntryError("category_unlisted", f"the class is {cells[0][:20]}, of {len(names)}")
    if len(cells) == 5:
        _, x, y, width, height = numbers
        return sized(x - width / 2, y - height / 2, width, height), label, None
    tally.note("box_from_polygon", entry.place)
    points = list(zip(numbers[1::2], numbers[2::2], strict=True))
    return around(points), label, polygon_of(points, fractions=True)
