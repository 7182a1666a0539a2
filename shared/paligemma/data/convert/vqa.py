"""Converts published question sets to rows: the prompt that PaliGemma was trained with, the usual answer, and all answers."""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paligemma.artifacts.record import one_or_all
from paligemma.data.convert.answers import usable_answers
from paligemma.data.convert.drawn import with_letters
from paligemma.data.convert.image_templates import ImageTemplate, name_image
from paligemma.data.convert.names import number_of, text_of
from paligemma.data.convert.outcomes import Entry, EntryError, Outcome, Tally, shown
from paligemma.data.convert.vqa_entries import Source, read_small
from paligemma.data.convert.vqa_forms import VqaForm
from paligemma.errors import InputError, did_you_mean

MOST_PARTS = 5
"""Most parts of an answer whose orders are all listed: 5 have 120."""


def vqa_rows(form: VqaForm, source: Source, folder: Path, tally: Tally, image: str = "", split: str = "") -> Iterator[Outcome]:
    """A row for every question: the suffix is the most frequent answer, of equally frequent ones the first.

    Args:
        form: where things are in the files.
        source: the files.
        folder: the folder that image names are relative to.
        tally: counts oddities.
        image: name of an image in place of the form's.
        split: the split, where the file has several.

    Raises:
        InputError: a file is not in the form, or `image` or `split` does not fit it.
    """
    names = [ImageTemplate(name, source.annotations) for name in ((image,) if image else form.images)]
    if image and not names[0].columns:
        raise InputError(f"{image!r} would be the same image for every question.", expected="--image with {KEY} for a value")
    wanted = _split(form, split)
    for entry, value in form.read(source, tally):
        try:
            if isinstance(value, EntryError):
                raise value
            _leave_out(form, value, wanted)
            question = (text_of(value.get(form.question)) or "").strip()
            if not question:
                raise EntryError("question_missing", f"question {shown(entry.id)} has no text")
            choices, right = _choices(form, value)
            answers = _answers(form, value, entry, choices, right, tally)
            hint = (text_of(value.get("hint")) or "").strip() or "N/A"
            listed = form.between.join(
                form.choice.format(choice=choice, letter=letter)
                for choice, letter in zip(choices, string.ascii_uppercase, strict=False)
            )
            row = {
                "image": one_or_all(_images(form, names, value, folder, tally)),
                "prefix": form.prefix.format(question=question, choices=listed, hint=hint),
                "suffix": Counter(answers).most_common(1)[0][0],
                "answers": _any_order(answers, entry, tally) if form.any_order else answers,
            }
            yield Outcome((entry,), row)
        except EntryError as problem:
            yield Outcome((entry,), problem)


def refuse_constant(images: str) -> None:
    """Raises InputError if a name such as `COCO_train2014_{:012d}.jpg` has no place for an image's number."""
    try:
        different = images.format(1) != images.format(2)
    except (LookupError, ValueError, AttributeError, TypeError):
        different = False
    if not different:
        expected = "--images with a name such as COCO_train2014_{:012d}.jpg"
        raise InputError(f"{images!r} has no place for an image's number.", expected=expected)


def _split(form: VqaForm, split: str) -> object:
    if not form.splits:
        if split:
            raise InputError("The form's files have one split each.", expected="no --split")
        return None
    if split not in form.splits:
        what = f"There is no split {split!r}." if split else "The file has several splits."
        raise InputError(what, where="--split", expected=did_you_mean(split, form.splits))
    return form.splits[split]


def _images(form: VqaForm, names: Sequence[ImageTemplate], value: Mapping[str, Any], folder: Path, tally: Tally) -> list[str]:
    """The names of a question's images."""
    if form.image_count > 1:
        return [name_image(names, {**value, "number": number}, folder, tally) for number in range(form.image_count)]
    name = name_image(names, value, folder, tally)
    if not form.labels or not value.get("abcLabel"):
        return [name]
    tally.note("labels_replaced", shown(name))
    return [with_letters(folder, name, read_small(value["labels"]))]


def _leave_out(form: VqaForm, value: Mapping[str, Any], wanted: object) -> None:
    for key, values in form.left_out.items():
        found = value.get(key)
        if isinstance(found, str | bool | None) and found in values:
            raise EntryError("left_out", f"{key} is {shown(found)}")
    if form.splits and text_of(value.get("split")) != str(wanted):
        raise EntryError("left_out", f"split is {shown(value.get('split'))}")


def _choices(form: VqaForm, value: Mapping[str, Any]) -> tuple[list[str], int]:
    """The choices, and the number of the right one."""
    if not form.choices:
        return [], 0
    given = value.get(form.choices)
    texts = [text_of(choice) for choice in given] if isinstance(given, list) else []
    choices = [text.strip() for text in texts if text is not None]
    if not texts or len(choices) < len(texts) or len(choices) > len(string.ascii_uppercase):
        raise EntryError("choices_wrong", f"{form.choices} is {shown(given)}")
    number = number_of(value.get(form.answers))
    if number is None or number != int(number) or not 0 <= number < len(choices):
        raise EntryError("answer_missing", f"{form.answers} is {shown(value.get(form.answers))}, of {len(choices)} choices")
    return choices, int(number)


def _answers(
    form: VqaForm, value: Mapping[str, Any], entry: Entry, choices: Sequence[str], right: int, tally: Tally
) -> list[str]:
    """The usable answers; if there are none, VQA's `multiple_choice_answer`."""
    if choices:
        return [form.suffix.format(answer=choices[right], letter=string.ascii_uppercase[right])]
    usable = usable_answers(value.get(form.answers), entry, tally, text_of(value.get("multiple_choice_answer")) or "")
    return [answer.lower() for answer in usable] if form.lower else usable


def _any_order(answers: Sequence[str], entry: Entry, tally: Tally) -> list[str]:
    """Every answer with its parts in every order; InfographicVQA's evaluation takes any (infovqa/infovqa.py:42-45)."""
    found: dict[str, None] = {}
    for answer in answers:
        parts = answer.split(", ")
        if len(parts) > MOST_PARTS:
            tally.note("answer_in_order", entry.place)
            found[answer] = None
        else:
            found.update(dict.fromkeys(", ".join(order) for order in itertools.permutations(parts)))
    return list(found)
