"""Converts referring expressions (RefCOCO, RefCOCO+, RefCOCOg) to rows: an expression, and the box or mask of what it means.

- The published form: lichengunc/refer at commit 2fe1dfe, refer.py:64-75 and 100-131: `instances.json` in COCO's form, and refs,
  each with an annotation's id and sentences. The refs are a pickle, which can run any program when it is opened. So they are
  read as JSON only.
- MDETR's form, which has no pickle: open-mmlab/mmdetection, tools/dataset_converters/refcoco2odvg.py:33-92. It is COCO's form,
  with an image for each expression, which is its `caption`.
- Parquet as Hugging Face has it: `sentences`, `image_path` and `bbox` as x1, y1, x2, y2 (jxu124/refcoco: Hugging Face's
  cookbook, fine_tuning_vlm_object_detection_grounding, section 2), or `answer`, `image` and `bbox` as x, y, width, height
  (lmms-lab/RefCOCO: lmms-eval 0.7.3, lmms_eval/tasks/refcoco/utils_rec.py:11-33). The mask is the `segmentation` of the
  annotation, which is a text of JSON in `raw_anns`, or one polygon in `segmentation` (the cards of both data sets).

What PaliGemma segments by: the expression alone is the prefix, and box and mask without a name are the suffix
(google-research/big_vision at commit 5f95305, big_vision/pp/proj/paligemma/segmentation.py:69-75).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paligemma.choices import BoxPixels
from paligemma.data.convert.arrow_tables import parquet_columns, parquet_rows
from paligemma.data.convert.boxes import Corners, box_of
from paligemma.data.convert.coco import ListedImage, index_images
from paligemma.data.convert.detection import BoxedImage, FoundBox, LabelledBox, collect_boxes, label_of, place_boxes
from paligemma.data.convert.files import open_binary, read_list, read_lists
from paligemma.data.convert.image_templates import first_there
from paligemma.data.convert.names import Index, image_name, text_of
from paligemma.data.convert.outcomes import Converted, Entry, EntryError, Outcome, Tally, object_of, shown
from paligemma.data.convert.outlines import ReadMask, coco_mask
from paligemma.data.convert.table import stored_image
from paligemma.errors import InputError, PaliGemmaError
from paligemma.foreign_json import parse_json

Annotation = tuple[str, ListedImage, Corners, bool, object]
"""Key of an annotation's image, the image, the box, whether it was taken from polygons, and the `segmentation`."""


def expression_rows(
    annotations: Path, refs: Path | None, split: str, folder: Path, tally: Tally, box_pixels: BoxPixels = "auto"
) -> Iterator[Outcome]:
    """A row for every expression: `detect EXPRESSION`, and its box as four <loc> tokens before it.

    Args:
        annotations: `instances.json`; without refs, MDETR's file, or a Parquet file or a folder of them.
        refs: the refs as JSON.
        split: train, val, test, testA or testB; empty for all.
        folder: the folder that image names are relative to.
        tally: counts oddities.
        box_pixels: whether boxes are in pixels as displayed or as stored, for images with an EXIF orientation.

    Raises:
        InputError: a file is not in its form.
    """
    boxes: dict[BoxedImage, list[tuple[Entry, LabelledBox]]] = {}
    yield from collect_boxes(read_expressions(annotations, refs, split, folder, False, tally), boxes)
    for image, placed in place_boxes(boxes, folder, box_pixels, tally):
        for entry, item, text in placed:
            row: Converted = {"image": image.name, "prefix": f"detect {item.label}", "suffix": f"{text} {item.label}"}
            yield Outcome((entry,), text if isinstance(text, EntryError) else row)


def expression_wording(label: str) -> tuple[str, str]:
    """What PaliGemma segments by an expression: see the module's beginning."""
    return label, ""


def read_expressions(
    annotations: Path, refs: Path | None, split: str, folder: Path, masks: bool, tally: Tally
) -> Iterator[FoundBox]:
    """Every expression as the label of a box; see `expression_rows`. `masks` says whether masks are wanted too."""
    if refs is not None:
        return _of_refs(annotations, refs, split, folder, tally)
    if _is_parquet(annotations):
        return _of_tables(annotations, split, folder, masks, tally)
    return _of_captions(annotations, split, folder, tally)


def _of_refs(annotations: Path, refs: Path, split: str, folder: Path, tally: Tally) -> Iterator[FoundBox]:
    _refuse_pickle(refs)
    referred = read_list(refs, "refs")
    listed, entries = read_lists(annotations, "annotations", ("images", "annotations"))
    images = index_images(listed, folder, tally)
    ranks = images.ranks()
    known = _index_boxes(entries, images, tally)
    for number, value in enumerate(referred):
        place = f"refs[{number}]"
        try:
            ref = object_of(value)
            if split and ref.get("split") != split:
                raise EntryError("left_out", f"split is {shown(ref.get('split'))}")
            sentences = ref.get("sentences")
            if not isinstance(sentences, list) or not sentences:
                raise EntryError("expression_missing", f"sentences is {shown(sentences)}")
        except EntryError as problem:
            yield Entry(place, value.get("ref_id") if isinstance(value, dict) else None), problem
            continue
        for index, sentence in enumerate(sentences):
            entry = Entry(f"{place}, sentence {index + 1}", ref.get("ref_id"))
            try:
                key, (name, size), box, from_polygons, outline = known.find(ref.get("ann_id"), "annotation_missing")[1]
                label = _expression(object_of(sentence).get("sent"))
                if from_polygons:
                    tally.note("box_from_polygon", entry.place)
                yield entry, LabelledBox(BoxedImage(name, size, rank=ranks[key]), box, label, _mask(outline, entry, tally))
            except EntryError as problem:
                yield entry, problem


def _index_boxes(entries: list, images: Index[ListedImage], tally: Tally) -> Index[Annotation]:
    index: Index[Annotation] = Index("annotation")
    for number, value in enumerate(entries):
        where = f"annotations[{number}]"
        if not isinstance(value, dict):
            tally.note("entry_unusable", f"{where} is {shown(value)}")
            continue
        try:
            image = images.find(value.get("image_id"), "image_id_missing")
            found: Annotation | EntryError = (*image, *box_of(value), value.get("segmentation"))
        except EntryError as problem:
            found = problem
        index.add(value.get("id"), found, tally, where)
    return index


def _of_captions(annotations: Path, split: str, folder: Path, tally: Tally) -> Iterator[FoundBox]:
    if split:
        raise InputError("Without --refs, a file has one split.", where="--split", expected="no --split, or --refs")
    listed, entries = read_lists(annotations, "annotations", ("images", "annotations"))
    images = index_images(listed, folder, tally)
    ranks = images.ranks()
    captions: Index[tuple[object]] = Index("image")
    for number, image in enumerate(listed):
        if isinstance(image, dict):  # what else is wrong with an image is noted by `index_images`
            captions.add(image.get("id"), (image.get("caption"),), Tally("images"), f"images[{number}]")
    for number, value in enumerate(entries):
        entry = Entry(f"annotations[{number}]", value.get("id") if isinstance(value, dict) else None)
        try:
            annotation = object_of(value)
            key, (name, size) = images.find(annotation.get("image_id"), "image_id_missing")
            (caption,) = captions.find(annotation.get("image_id"), "image_id_missing")[1]
            box, from_polygons = box_of(annotation)
            if from_polygons:
                tally.note("box_from_polygon", entry.place)
            mask = _mask(annotation.get("segmentation"), entry, tally)
            yield entry, LabelledBox(BoxedImage(name, size, rank=ranks[key]), box, _expression(caption), mask)
        except EntryError as problem:
            yield entry, problem


def _is_parquet(annotations: Path) -> bool:
    if annotations.is_dir():
        return True
    with open_binary(annotations) as file:
        return file.read(4) == b"PAR1"


def _mask(segmentation: object, entry: Entry, tally: Tally) -> ReadMask:
    """What makes the mask of a `segmentation`, which is looked at when the mask is made."""
    return lambda frame, work: coco_mask(segmentation, entry, tally)(frame, work)


def _of_tables(annotations: Path, split: str, folder: Path, masks: bool, tally: Tally) -> Iterator[FoundBox]:
    files = sorted(annotations.glob("*.parquet")) if annotations.is_dir() else [annotations]
    if not files:
        raise InputError("The folder has no file that ends in .parquet.", where=annotations)
    rank = 0
    for path in files:
        there = parquet_columns(path)
        columns = ["sentences", "image_path", "bbox"] if "sentences" in there else ["answer", "image", "bbox"]
        outlines = [name for name in ("raw_anns", "segmentation") if masks and name in there][:1]
        if split and "split" not in there:
            raise InputError("The table has no column 'split'.", where=path, expected="no --split, or the file of the split")
        for entry, values in parquet_rows(path, [*columns, *outlines, *(["split"] if split else [])]):
            rank += 1
            try:
                if isinstance(values, EntryError):
                    raise values
                if split and values["split"] != split:
                    raise EntryError("left_out", f"split is {shown(values['split'])}")
                image, box, texts = _of_row(values, columns, rank, folder, tally)
                outline = _outline_of(values[outlines[0]]) if outlines else None
            except EntryError as problem:
                yield entry, problem
                continue
            for number, text in enumerate(texts):
                place = Entry(f"{entry.place}, expression {number + 1}")
                try:
                    label = _expression(text.get("sent") if isinstance(text, dict) else text)
                    yield place, LabelledBox(image, box, label, _mask(outline, place, tally))
                except EntryError as problem:
                    yield place, problem


def _of_row(
    values: dict[str, Any], columns: Sequence[str], rank: int, folder: Path, tally: Tally
) -> tuple[BoxedImage, Corners, list]:
    """The image, the box and the expressions of a row of a table."""
    texts, image, bbox = (values[column] for column in columns)
    if not isinstance(texts, list) or not texts:
        raise EntryError("expression_missing", f"{columns[0]} is {shown(texts)}")
    numbers = isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(edge, int | float) for edge in bbox)
    if numbers and columns[0] == "sentences":
        bbox = [bbox[0], bbox[1], bbox[2] - bbox[0], bbox[3] - bbox[1]]
    box, _ = box_of({"bbox": bbox})
    name = stored_image(image, folder)
    name = image_name(first_there([name, posixpath.basename(name)], folder), folder, tally)
    return BoxedImage(name, None, rank=rank), box, texts


def _outline_of(value: object) -> object:
    """The `segmentation` of an annotation that is a text of JSON, or of one polygon."""
    if isinstance(value, str):
        try:
            value = parse_json(value, "raw_anns", "The annotation", kind=dict).get("segmentation")
        except PaliGemmaError as error:
            raise EntryError("mask_malformed", error.what) from None
    return [value] if isinstance(value, list) and value and not isinstance(value[0], list) else value


def _expression(value: object) -> str:
    text = (text_of(value) or "").strip()
    if not text:
        raise EntryError("expression_missing", f"the expression is {shown(value)}")
    return label_of(text)


def _refuse_pickle(refs: Path) -> None:
    with open_binary(refs) as file:
        start = file.read(2)
    if refs.suffix in (".p", ".pkl", ".pickle") or start[:1] == b"\x80" or start in (b"(l", b"(d"):
        write = (
            "python -c \"import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], 'rb')), open(sys.argv[2], 'w'))\""
        )
        raise InputError(
            "The refs are a pickle, which can run any program when it is opened.",
            where=refs,
            expected="the same list as JSON",
            fix="take MDETR's finetune_refcoco_*.json, without --refs; or, if you trust it, write it as JSON in a container "
            f"without your credentials: {write} {refs.name!r} refs.json",
        )
