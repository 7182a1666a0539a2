"""Converts published captions to rows: `caption LANGUAGE` and a caption, or all captions of an image for evaluation.

Files: the builders in google-research/big_vision at commit 0127fb6, `big_vision/datasets/NAME/NAME.py`. Texts: the transfers in
`big_vision/configs/proj/paligemma/transfers/NAME.py` there. Each form names its lines. COCO's own form is in `coco.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.data.convert.drawn import with_box
from paligemma.data.convert.files import open_text, read_json, read_lists
from paligemma.data.convert.image_templates import ImageTemplate, name_image
from paligemma.data.convert.names import id_of, number_of, text_of
from paligemma.data.convert.outcomes import Entry, EntryError, Outcome, Tally, object_of, row_line, shown
from paligemma.data.convert.photos import read_photo
from paligemma.data.convert.table_files import read_table
from paligemma.data.convert.vqa_entries import json_files, read_small
from paligemma.errors import InputError

RICO_HEIGHT = 2560
"""Height of the canvas in which RICO's boxes are given (widgetcap/widgetcap.py:53-54)."""

_DEEPEST = 200
"""Deepest view of a screen that is looked for."""


@dataclass(frozen=True)
class Asked:
    """What a user asked for.

    Attributes:
        annotations: the published file, or folder.
        folder: the folder that image names are relative to.
        ids: the list of a split's images, where it is published beside the captions.
        language: the captions' language where there are several; empty for all.
        size: pixels of a side of pictures that are drawn on.
    """

    annotations: Path
    folder: Path
    ids: Path | None = None
    language: str = ""
    size: int = 224


@dataclass(frozen=True)
class Captioned:
    """A caption, its language, and what its image's name is made of."""

    caption: object
    values: Mapping[str, Any]
    language: str = "en"


Read = Callable[[Asked, Tally], Iterator[tuple[Entry, Captioned | EntryError]]]


@dataclass(frozen=True)
class CaptionForm:
    """A published form of captions.

    Attributes:
        read: reads the captions.
        images: names of an image; the first that is there is taken.
        lower: whether captions are trained on in lower case.
        has_ids, has_languages, is_drawn: which of the things that can be asked for have a meaning.
    """

    read: Read
    images: tuple[str, ...]
    lower: bool = False
    has_ids: bool = False
    has_languages: bool = False
    is_drawn: bool = False


def caption_rows(form: CaptionForm, asked: Asked, tally: Tally, image: str = "") -> Iterator[Outcome]:
    """A row for every caption.

    Args:
        form: where things are in the files.
        asked: the files, and what of them.
        tally: counts oddities.
        image: name of an image in place of the form's.

    Raises:
        InputError: a file is not in the form, or something was asked for that the form does not have.
    """
    for flag, given, has in (("--ids", asked.ids, form.has_ids), ("--language", asked.language, form.has_languages)):
        if given and not has:
            raise InputError(f"{flag} has no meaning for this form.", expected=f"no {flag}")
    names = [ImageTemplate(name, asked.annotations) for name in ((image,) if image else form.images)]
    for entry, found in form.read(asked, tally):
        try:
            if isinstance(found, EntryError):
                raise found
            caption = (text_of(found.caption) or "").strip()
            if not caption:
                raise EntryError("caption_missing", f"the caption is {shown(found.caption)}")
            name = name_image(names, found.values, asked.folder, tally)
            if form.is_drawn:
                name = _drawn(name, found.values, asked)
            caption = caption.lower() if form.lower else caption
            yield Outcome((entry,), {"image": name, "prefix": f"caption {found.language}", "suffix": caption})
        except EntryError as problem:
            yield Outcome((entry,), problem)


def by_image(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """A row for each image and prefix: its first caption, and all of them in `answers`, as caption metrics take them.

    Captions that prepare_data would reject are left out of their image's row.
    """
    images: dict[tuple[str, str], tuple[list[Entry], list[str]]] = {}
    for outcome in outcomes:
        row = outcome.result
        try:
            if isinstance(row, EntryError):
                raise row
            row_line(row)
        except EntryError as problem:
            yield Outcome(outcome.entries, problem)
            continue
        entries, captions = images.setdefault((str(row["image"]), str(row["prefix"])), ([], []))
        entries.extend(outcome.entries)
        captions.append(str(row["suffix"]))
    for (image, prefix), (entries, captions) in images.items():
        yield Outcome(tuple(entries), {"image": image, "prefix": prefix, "suffix": captions[0], "answers": captions})


def _textcaps(asked: Asked, tally: Tally) -> Iterator[tuple[Entry, Captioned | EntryError]]:
    (entries,) = read_lists(asked.annotations, "annotations", ("data",))
    for number, value in enumerate(entries):
        known = value.get("caption_id") if isinstance(value, dict) else None
        entry = Entry(f"data[{number}]", known)
        try:
            value = object_of(value)
            yield entry, Captioned(value.get("caption_str"), {"image_id": value.get("image_id"), **value})
        except EntryError as problem:
            yield entry, problem


def _scicap(asked: Asked, tally: Tally) -> Iterator[tuple[Entry, Captioned | EntryError]]:
    if asked.ids is None:
        names = [path.name.removesuffix(".json") for path in json_files(asked.annotations)]
    else:
        listed = read_json(asked.ids, "names of images")
        if not isinstance(listed, list):
            raise InputError(f"The names of images are {type(listed).__name__}.", where=asked.ids, expected="a JSON list")
        names = [name.removesuffix(".png") if isinstance(name, str) else name for name in listed]
    for number, name in enumerate(names):
        entry = Entry(f"[{number}]", name)
        try:
            if not isinstance(name, str) or not name or "/" in name or "\0" in name:
                raise EntryError("image_unnamed", f"the image's name is {shown(name)}")
            value = object_of(read_small(asked.annotations / f"{name}.json"))
            text = value.get("1-lowercase-and-token-and-remove-figure-index")
            yield entry, Captioned(text.get("caption") if isinstance(text, dict) else None, {"image": f"{name}.png"})
        except EntryError as problem:
            yield entry, problem


def _screen2words(asked: Asked, tally: Tally) -> Iterator[tuple[Entry, Captioned | EntryError]]:
    for entry, value in _of_split(asked, ["screenId", "summary"], tally):
        yield entry, value if isinstance(value, EntryError) else Captioned(value.get("summary"), value)


def _widgetcap(asked: Asked, tally: Tally) -> Iterator[tuple[Entry, Captioned | EntryError]]:
    for entry, value in _of_split(asked, ["screenId", "nodeId", "captions"], tally):
        if isinstance(value, EntryError):
            yield entry, value
            continue
        for number, caption in enumerate((text_of(value.get("captions")) or "").split("|")):
            yield Entry(f"{entry.place}, caption {number + 1}"), Captioned(caption, value)


def _of_split(asked: Asked, columns: Sequence[str], tally: Tally) -> Iterator[tuple[Entry, dict[str, Any] | EntryError]]:
    """The rows of a table of RICO's screens that are of the split."""
    wanted = _listed(asked.ids) if asked.ids is not None else None
    others = 0
    for entry, value in read_table(asked.annotations, columns, tally):
        if wanted is not None and isinstance(value, dict) and id_of(value.get("screenId")) not in wanted:
            others += 1
        else:
            yield entry, value
    if wanted is not None:
        tally.facts[f"rows of screens that are not in {asked.ids}"] = others


def _listed(ids: Path) -> set[str]:
    with open_text(ids) as file:
        return {line.strip() for line in file if line.strip()}


def _drawn(name: str, values: Mapping[str, Any], asked: Asked) -> str:
    """The name of the screen with a widget's box drawn into it."""
    screen, node = id_of(values.get("screenId")), text_of(values.get("nodeId"))
    if screen is None or not node or "/" in screen or "\0" in screen:
        raise EntryError("value_wrong", f"screenId is {shown(values.get('screenId'))}, nodeId {shown(values.get('nodeId'))}")
    photo = read_photo(asked.folder, name)
    if photo is None:
        raise EntryError("picture_unreadable", f"{name!r} cannot be opened")
    view = object_of(read_small(asked.folder / f"{screen}.json"))
    activity = view.get("activity")
    found: object = activity.get("root") if isinstance(activity, dict) else None
    path = node.split(".")[1:]
    for step in path[:_DEEPEST]:
        children = found.get("children") if isinstance(found, dict) else None
        number = int(step) if step.isascii() and step.isdigit() and len(step) < 7 else -1
        found = children[number] if isinstance(children, list) and 0 <= number < len(children) else None
    bounds = found.get("bounds") if isinstance(found, dict) else None
    numbers = [number for value in bounds if (number := number_of(value)) is not None] if isinstance(bounds, list) else []
    if len(numbers) != 4 or len(path) > _DEEPEST:
        raise EntryError("box_missing", f"{screen}.json has no bounds at {node}")
    scale = photo.height / RICO_HEIGHT
    x1, y1, x2, y2 = (number * scale for number in numbers)
    if x1 > x2 or y1 > y2:
        raise EntryError("box_empty", f"{screen}.json has the bounds {numbers} at {node}")
    box = (x1 / photo.width, y1 / photo.height, x2 / photo.width, y2 / photo.height)
    return with_box(asked.folder, name, box, f"{screen}_{node}", asked.size)


def _coco35l(asked: Asked, tally: Tally) -> Iterator[tuple[Entry, Captioned | EntryError]]:
    """A caption for each line in its language, and the English one that it was made from once, where that is German's."""
    others = 0
    for entry, value in read_table(asked.annotations, (), tally):
        if isinstance(value, EntryError):
            yield entry, value
            continue
        language = value.get("trg_lang")
        if not isinstance(language, str) or not language.isalpha():
            yield entry, EntryError("language_missing", f"trg_lang is {shown(language)}")
            continue
        values = {"image_id": (id_of(value.get("image_id")) or "").split("_")[0]}
        texts = {language: value.get("translation_tokenized")}
        if language == "de":
            texts["en"] = value.get("caption_tokenized")
        kept = {code: text for code, text in texts.items() if asked.language in ("", code)}
        others += not kept
        for code, text in kept.items():
            yield Entry(f"{entry.place}, {code}", value.get("image_id")), Captioned(text, values, code)
    if asked.language:
        tally.facts["lines in other languages"] = others


def _xm3600(asked: Asked, tally: Tally) -> Iterator[tuple[Entry, Captioned | EntryError]]:
    for entry, value in read_table(asked.annotations, (), tally):
        if isinstance(value, EntryError):
            yield entry, value
            continue
        languages = [asked.language] if asked.language else [code for code, of in value.items() if isinstance(of, dict)]
        values = {"key": value.get("image/key")}
        if not languages:
            yield entry, EntryError("language_missing", "the line has no captions")
        for code in languages:
            of = value.get(code)
            captions = of.get("caption") if isinstance(of, dict) else None
            if not isinstance(captions, list) or not captions:
                yield Entry(f"{entry.place}, {code[:20]}"), EntryError("caption_missing", f"{code[:20]}: {shown(captions)}")
                continue
            for number, caption in enumerate(captions):
                yield Entry(f"{entry.place}, {code[:20]}, caption {number + 1}"), Captioned(caption, values, code)


_COCO = tuple(f"{folder}COCO_{part}2014_{{image_id:012d}}.jpg" for part in ("train", "val") for folder in ("", f"{part}2014/"))
_COCO += tuple(f"{folder}{{image_id:012d}}.jpg" for folder in ("", "train2017/", "val2017/"))

FORMS: dict[str, CaptionForm] = {
    # textcaps/textcaps.py:102-124, transfers/textcaps.py:53-60
    "textcaps": CaptionForm(
        _textcaps, tuple(f"{folder}{{image_id}}.jpg" for folder in ("", "train_images/", "test_images/")), lower=True
    ),
    # scicap/scicap.py:94-205, transfers/scicap.py:22-48
    "scicap": CaptionForm(_scicap, ("{image}",), has_ids=True),
    # screen2words/screen2words.py:99-120, transfers/screen2words.py:42-46
    "screen2words": CaptionForm(_screen2words, ("{screenId}.jpg", "combined/{screenId}.jpg"), has_ids=True),
    # widgetcap/widgetcap.py:101-151, transfers/widgetcap.py:42-50
    "widgetcap": CaptionForm(_widgetcap, ("{screenId}.jpg",), has_ids=True, is_drawn=True),
    # coco35l/coco35l.py:118-154, transfers/coco35l.py:54-60
    "coco35l": CaptionForm(_coco35l, _COCO, has_languages=True),
    # xm3600/xm3600.py:114-136, transfers/coco35l.py:93-109
    "xm3600": CaptionForm(_xm3600, ("{key}.jpg", "images/{key}.jpg"), has_languages=True),
}
"""Forms by name."""
