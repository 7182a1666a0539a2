"""Converts VQAv2, and question files in its format (OK-VQA), to rows.

The form: https://visualqa.org/download.html, GT-Vision-Lab/VQA, README.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from paligemma.data.convert.files import read_lists
from paligemma.data.convert.names import Index, id_of, text_of
from paligemma.data.convert.outcomes import Entry, EntryError, Outcome, Tally, object_of, shown
from paligemma.errors import InputError

Question = tuple[str | None, object]
"""A question's text, and its image's id."""


def vqav2(questions: Path, annotations: Path, images: str, tally: Tally) -> Iterator[Outcome]:
    """A row for every question of VQAv2, `answer en QUESTION`, with the most frequent of its ten answers, and all ten.

    Args:
        questions, annotations: the two files.
        images: an image's name, with a placeholder for its number, e.g. `COCO_train2014_{:012d}.jpg`.
        tally: counts oddities.

    Raises:
        InputError: a file is not in VQA's format, or `images` has no placeholder for a number.
    """
    _check_name(images)
    (asked,) = read_lists(questions, "questions", ("questions",))
    (entries,) = read_lists(annotations, "annotations", ("annotations",))
    index, answered = _index_questions(asked, tally), set()
    for number, annotation in enumerate(entries):
        known = annotation.get("question_id") if isinstance(annotation, dict) else None
        entry = Entry(f"annotations[{number}]", known)
        try:
            annotation = object_of(annotation)
            key, (text, image) = index.find(known, "question_id_missing")
            answered.add(key)
            if text is None:
                raise EntryError("question_missing", f"question {shown(known)} has no text")
            answers = _answers(annotation, entry, tally)
            yield Outcome(
                (entry,),
                {
                    "image": _name(images, annotation.get("image_id"), image),
                    "prefix": f"answer en {text}",
                    "suffix": Counter(answers).most_common(1)[0][0],
                    "answers": answers,
                },
            )
        except EntryError as problem:
            yield Outcome((entry,), problem)
    tally.facts["questions listed"] = len(asked)
    tally.facts["questions without an annotation"] = max(len(asked) - len(answered), 0)


def _index_questions(asked: list, tally: Tally) -> Index[Question]:
    index: Index[Question] = Index("question")
    for number, question in enumerate(asked):
        where = f"questions[{number}]"
        if not isinstance(question, dict):
            tally.note("entry_unusable", f"{where} is {shown(question)}")
            continue
        text = text_of(question.get("question"))
        index.add(question.get("question_id"), ((text or "").strip() or None, question.get("image_id")), tally, where)
    return index


def _answers(annotation: dict, entry: Entry, tally: Tally) -> list[str]:
    """The usable answers; if there are none, VQA's `multiple_choice_answer`."""
    given = annotation.get("answers")
    given = given if isinstance(given, list) else [] if given is None else [given]
    texts = [text_of(answer.get("answer") if isinstance(answer, dict) else answer) for answer in given]
    usable = [text for text in texts if text is not None and text.strip()]
    only = text_of(annotation.get("multiple_choice_answer")) or ""
    if not usable and not only.strip():
        raise EntryError("answer_missing", f"answers is {shown(annotation.get('answers'))}")
    if len(usable) < len(texts):
        tally.note("answer_dropped", entry.place, len(texts) - len(usable))
    return usable or [only]


def _name(images: str, own: object, asked: object) -> str:
    """The image's file name, from its id in the annotation or else in the question."""
    ids = [id for id in (id_of(own), id_of(asked)) if id is not None]
    if not ids:
        raise EntryError("image_id_missing", f"the image_id is {shown(own)}")
    if len({id.lstrip("0") for id in ids}) > 1:
        raise EntryError("image_disagrees", f"the annotation is of image {shown(own)}, the question of {shown(asked)}")
    id = ids[0]
    try:
        return images.format(int(id) if id.isascii() and id.isdigit() and len(id) < 30 else id)
    except ValueError:
        raise EntryError("image_id_missing", f"the image_id is {shown(id)}, and the images' names have a number") from None


def _check_name(images: str) -> None:
    try:
        different = images.format(1) != images.format(2)
    except (LookupError, ValueError, AttributeError, TypeError):
        different = False
    if not different:
        expected = "--images with a name such as COCO_train2014_{:012d}.jpg"
        raise InputError(f"{images!r} has no place for an image's number.", expected=expected)
