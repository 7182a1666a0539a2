"""Data sets as they are published, to rows `{"image", "prefix", "suffix"}`. Images stay where they are."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paligemma.data.images import FORMATS
from paligemma.data.tokenizer import NUM_LOC
from paligemma.errors import InputError, did_you_mean
from paligemma.storage.atomic import write_file

Converted = dict[str, str | list[str]]
"""A row: its image, prefix and suffix."""

_ENDINGS = frozenset((".avif", ".bmp", ".gif", ".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"))


def write_rows(output: Path, rows: Iterable[Converted]) -> int:
    """Writes rows as JSONL, whole or not at all; how many there are.

    Raises:
        InputError: there are none.
    """
    partial = output.with_name(f".{output.name}.partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        if not count:
            raise InputError("There is nothing to convert.", expected="at least one row")
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return count


def coco_captions(annotations: Path, prefix: str) -> Iterator[Converted]:
    """A row for every caption of COCO's `captions_*.json`."""
    data = _read_json(annotations, ("images", "annotations"))
    names = {image["id"]: image["file_name"] for image in data["images"]}
    for annotation in data["annotations"]:
        yield {"image": names[annotation["image_id"]], "prefix": prefix, "suffix": annotation["caption"].strip()}


def coco_detection(annotations: Path) -> Iterator[Converted]:
    """A row for every image with boxes of COCO's `instances_*.json`: `detect cat ; dog`, and what is where.

    The suffix has every box as four <loc> tokens (y1 x1 y2 x2, as fractions of the image) and its category, boxes from the
    top, then from the left. Crowds, which are no single object, are left out.
    """
    data = _read_json(annotations, ("images", "annotations", "categories"))
    categories = {category["id"]: category["name"] for category in data["categories"]}
    boxes: dict[int, list[dict]] = defaultdict(list)
    for annotation in data["annotations"]:
        if not annotation.get("iscrowd"):
            boxes[annotation["image_id"]].append(annotation)
    for image in data["images"]:
        found = []
        for annotation in boxes.get(image["id"], ()):
            x, y, width, height = annotation["bbox"]
            corners = (y / image["height"], x / image["width"], (y + height) / image["height"], (x + width) / image["width"])
            found.append((box_text(*corners), categories[annotation["category_id"]]))
        if found:
            names = sorted({name for _, name in found})
            suffix = " ; ".join(f"{box} {name}" for box, name in sorted(found))
            yield {"image": image["file_name"], "prefix": "detect " + " ; ".join(names), "suffix": suffix}


def box_text(y1: float, x1: float, y2: float, x2: float) -> str:
    """A box, in fractions of the image, as four <loc> tokens: rounded to steps of 1/1023, as in big_vision."""
    steps = (min(max(round(value * (NUM_LOC - 1)), 0), NUM_LOC - 1) for value in (y1, x1, y2, x2))
    return "".join(f"<loc{step:04d}>" for step in steps)


def vqav2(questions: Path, annotations: Path, images: str) -> Iterator[Converted]:
    """A row for every question of VQAv2, `answer en QUESTION`, with the most frequent of its ten answers, and all of them.

    Args:
        images: an image's name, with a place for its number, as `COCO_train2014_{:012d}.jpg`.
    """
    texts = {question["question_id"]: question["question"] for question in _read_json(questions, ("questions",))["questions"]}
    for annotation in _read_json(annotations, ("annotations",))["annotations"]:
        answers = [answer["answer"] for answer in annotation["answers"]]
        yield {
            "image": images.format(annotation["image_id"]),
            "prefix": f"answer en {texts[annotation['question_id']]}",
            "suffix": Counter(answers).most_common(1)[0][0],
            "answers": answers,
        }


def table_rows(table: Path, output_folder: Path, image: str, prefix: str, suffix: str) -> Iterator[Converted]:
    """A row for every row of a CSV, JSONL or Parquet file; Parquet needs pyarrow.

    Args:
        table: the file.
        output_folder: where images go that the table holds as bytes, in `images/`, by their hash.
        image: column of the image: a path, or bytes as Hugging Face stores them (`{"bytes": ..., "path": ...}`).
        prefix, suffix: texts in which `{name}` stands for a column.

    Raises:
        InputError: there is no such column.
    """
    for values in _read_table(table):
        if image not in values:
            raise InputError(f"The table has no column {image!r}.", where=table, fix=did_you_mean(image, values))
        yield {
            "image": _image_name(values[image], output_folder, table),
            "prefix": _fill(prefix, values, table),
            "suffix": _fill(suffix, values, table),
        }


def labelled_folder(folder: Path, prefix: str) -> Iterator[Converted]:
    """A row for every image in a folder of folders; the suffix is the name of the folder that it is in."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _ENDINGS and path.parent != folder:
            yield {"image": path.relative_to(folder).as_posix(), "prefix": prefix, "suffix": path.parent.name}


def _fill(text: str, values: Mapping[str, Any], table: Path) -> str:
    try:
        return text.format_map(values)
    except (KeyError, IndexError, ValueError) as error:
        name = str(error).strip("'")
        raise InputError(f"{text!r} cannot be filled in: {error}.", where=table, fix=did_you_mean(name, values)) from None


def _image_name(value: object, output_folder: Path, table: Path) -> str:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        name = f"images/{hashlib.sha256(value).hexdigest()}"
        if not (output_folder / name).exists():
            write_file(output_folder / name, value)
        return name
    if isinstance(value, str):
        return value
    raise InputError(
        f"The image is {type(value).__name__}.", where=table, expected=f"a path, or the bytes of one of {', '.join(FORMATS)}"
    )


def _read_table(table: Path) -> Iterator[dict[str, Any]]:
    try:
        if table.suffix == ".parquet":
            try:
                from pyarrow.parquet import ParquetFile
            except ImportError:
                raise InputError("Reading Parquet needs pyarrow.", where=table, fix="pip install pyarrow") from None
            for batch in ParquetFile(table).iter_batches(256):
                yield from batch.to_pylist()
        elif table.suffix in (".jsonl", ".json"):
            with table.open(encoding="utf-8-sig") as file:
                yield from (json.loads(line) for line in file if line.strip())
        else:
            with table.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file)
    except OSError as error:
        raise InputError(f"The table cannot be read: {error.strerror}.", where=table) from None
    except ValueError as error:
        raise InputError(f"The table cannot be read: {error}.", where=table) from None


def _read_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"The annotations cannot be read: {error.strerror}.", where=path) from None
    except ValueError as error:
        raise InputError(f"The annotations are not JSON: {error}.", where=path) from None
    missing = [key for key in keys if not isinstance(data, dict) or key not in data]
    if missing:
        raise InputError(f"The annotations have no {missing[0]!r}.", where=path, expected=f"JSON with {', '.join(keys)}")
    return data
