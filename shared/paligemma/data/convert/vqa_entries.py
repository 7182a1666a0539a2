"""Reads question files as they are published: each question becomes one object, wherever its parts are in the files."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from paligemma.data.convert.files import read_json, read_list, read_lists, read_object
from paligemma.data.convert.names import Index, id_of
from paligemma.data.convert.outcomes import Entry, EntryError, Tally, object_of, shown
from paligemma.data.convert.table_files import read_table
from paligemma.errors import InputError

Question = tuple[Entry, dict[str, Any] | EntryError]

MAX_FILE_BYTES = 64 << 20
"""Largest annotation file of a single image."""


@dataclass(frozen=True)
class Source:
    """What a user named: the annotations, a file or a folder, and the questions where they are in a file of their own."""

    annotations: Path
    questions: Path | None = None


Read = Callable[[Source, Tally], Iterator[Question]]

_IDENTIFIER = re.compile(r"(?P<pair>(?P<split>[a-z0-9]{1,20})(-[0-9]{1,20}){2})-[0-9]{1,20}")


def _alone(source: Source) -> Path:
    if source.questions is not None:
        raise InputError("The form has its questions in the annotations.", where=source.questions, expected="no --questions")
    return source.annotations


def one_list(key: str = "") -> Read:
    """Reads the list that a file has under a key; with no key, the list that it is."""

    def read(source: Source, tally: Tally) -> Iterator[Question]:
        path = _alone(source)
        entries = read_lists(path, "annotations", (key,))[0] if key else read_list(path, "annotations")
        for number, value in enumerate(entries):
            known = value.get("question_id", value.get("questionId")) if isinstance(value, dict) else None
            yield Entry(f"{key}[{number}]", known), _object(value)

    return read


def by_id(source: Source, tally: Tally) -> Iterator[Question]:
    """Reads an object of questions by their ids; each gets the id as its `id`."""
    for id, value in read_object(_alone(source), "annotations").items():
        found = _object(value)
        yield Entry(repr(id[:80]), id), found if isinstance(found, EntryError) else {**found, "id": id}


def ocr_vqa_books(source: Source, tally: Tally) -> Iterator[Question]:
    """Reads OCR-VQA's object of books by their ids, each with a list of questions and one of answers.

    A picture's name is the book's id and the ending of its address.
    """
    for id, value in read_object(_alone(source), "annotations").items():
        place = repr(id[:80])
        try:
            book = object_of(value)
            questions, answers = book.get("questions"), book.get("answers")
            if not isinstance(questions, list):
                raise EntryError("question_missing", f"questions is {shown(questions)}")
            if not isinstance(answers, list) or len(answers) != len(questions):
                raise EntryError("answer_missing", f"{len(questions)} questions, and answers is {shown(answers)}")
        except EntryError as problem:
            yield Entry(place, id), problem
            continue
        common = {"id": id, "ending": _ending(book.get("imageURL")), "split": book.get("split")}
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            yield Entry(f"{place}[{number}]", id), {**common, "question": question, "answers": answer}


def _ending(address: object) -> str:
    try:
        path = urlsplit(address).path if isinstance(address, str) else ""
    except ValueError:
        path = ""
    return posixpath.splitext(path)[1] or ".jpg"


def nlvr2_pairs(source: Source, tally: Tally) -> Iterator[Question]:
    """Reads NLVR2's lines, a sentence about a pair of photos each, which its `identifier` names: `train-10171-0-1`.

    The photos' name is the identifier without the sentence's number. The authors' archive has them in a folder for each split,
    and those for training in a folder there that the entry's `directory` names.
    """
    for entry, value in read_table(_alone(source), (), tally):
        if isinstance(value, EntryError):
            yield entry, value
            continue
        known = value.get("identifier")
        found = _IDENTIFIER.fullmatch(known) if isinstance(known, str) else None
        if found is None:
            yield entry, EntryError("image_id_missing", f"identifier is {shown(known)}, not as train-10171-0-1")
            continue
        directory = id_of(value.get("directory"))
        folder = found["split"] + (f"/{directory}" if directory and directory.isdigit() else "")
        label = value.get("label")
        named = {"pair": found["pair"], "folder": folder, "label": str(label) if isinstance(label, bool) else label}
        yield Entry(entry.place, known), {**value, **named}


def ai2d_diagrams(source: Source, tally: Tally) -> Iterator[Question]:
    """Reads AI2D's folder `questions`: a file for each diagram, with an object of questions by their texts."""
    for path in json_files(_alone(source)):
        try:
            diagram = object_of(read_small(path))
            questions = diagram.get("questions")
            if not isinstance(questions, dict):
                raise EntryError("question_missing", f"questions is {shown(questions)}")
        except EntryError as problem:
            yield Entry(path.name), problem
            continue
        common = {"imageName": diagram.get("imageName"), "labels": path.parent.parent / "annotations" / path.name}
        for number, (text, value) in enumerate(questions.items()):
            found = _object(value)
            known = found.get("questionId") if isinstance(found, dict) else None
            yield (
                Entry(f"{path.name}[{number}]", known),
                found
                if isinstance(found, EntryError)
                else {
                    **found,
                    **common,
                    "question": text,
                },
            )


def json_files(folder: Path) -> list[Path]:
    """The JSON files in a folder, sorted by name.

    Raises:
        InputError: there are none, or the folder cannot be read.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(".json"))
    except OSError as error:
        raise InputError(f"The folder cannot be read: {error.strerror}.", where=folder) from None
    if not names:
        raise InputError("The folder has no file that ends in .json.", where=folder)
    return [folder / name for name in names]


def read_small(path: Path) -> object:
    """The value of one of many JSON files.

    Raises:
        EntryError: the file cannot be read.
    """
    try:
        return read_json(path, "annotations", MAX_FILE_BYTES)
    except InputError as error:
        raise EntryError("file_unreadable", f"{path.name}: {error.what}") from None


def two_files(questions_key: str, question_id: str, answers_key: str, answered_id: str) -> Read:
    """Reads annotations, and for each the question of its id from another file. The annotation's own values win."""

    def read(source: Source, tally: Tally) -> Iterator[Question]:
        if source.questions is None:
            raise InputError("The questions are in a file of their own.", where=source.annotations, fix="pass --questions FILE")
        (asked,) = read_lists(source.questions, "questions", (questions_key,))
        (answered,) = read_lists(source.annotations, "annotations", (answers_key,))
        index, found = _index(asked, questions_key, question_id, tally), set()
        for number, value in enumerate(answered):
            known = value.get(answered_id) if isinstance(value, dict) else None
            entry = Entry(f"{answers_key}[{number}]", known)
            try:
                annotation = object_of(value)
                if annotation.get("active") is False:  # RSVQA's has nothing else
                    yield entry, annotation
                    continue
                key, question = index.find(known, "question_id_missing")
                found.add(key)
                yield entry, {**question, **annotation, **_same_image(annotation, question)}
            except EntryError as problem:
                yield entry, problem
        tally.facts["questions listed"] = len(asked)
        tally.facts["questions without an annotation"] = max(len(asked) - len(found), 0)

    return read


def _index(asked: list, key: str, question_id: str, tally: Tally) -> Index[Mapping[str, Any]]:
    index: Index[Mapping[str, Any]] = Index("question")
    for number, question in enumerate(asked):
        where = f"{key}[{number}]"
        if isinstance(question, dict):
            index.add(question.get(question_id), question, tally, where)
        else:
            tally.note("entry_unusable", f"{where} is {shown(question)}")
    return index


def _same_image(annotation: Mapping[str, Any], question: Mapping[str, Any]) -> dict[str, Any]:
    """The image's id, which either of the two may have."""
    given = [one["image_id"] for one in (annotation, question) if id_of(one.get("image_id")) is not None]
    if len({str(id_of(id)).lstrip("0") for id in given}) > 1:
        raise EntryError("image_disagrees", f"the annotation is of image {shown(given[0])}, the question of {shown(given[1])}")
    return {"image_id": given[0]} if given else {}


def _object(value: object) -> dict[str, Any] | EntryError:
    try:
        return object_of(value)
    except EntryError as problem:
        return problem
