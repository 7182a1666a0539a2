"""Converts a data set that a Croissant file describes to rows: chooses which fields are image, prefix and suffix.

`croissant_files` finds the files, and `croissant_records` reads the records.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paligemma.data.convert.croissant_files import Distribution, FoundFile
from paligemma.data.convert.croissant_records import Description, Field, RecordSet, read_records
from paligemma.data.convert.outcomes import EntryError, Outcome, Tally
from paligemma.data.convert.table import filled_rows, named_columns
from paligemma.data.convert.table_files import TableRow
from paligemma.errors import InputError, did_you_mean

PREFIXES = {"prefix": "{prefix}", "question": "answer en {question}", "query": "answer en {query}", "prompt": "{prompt}",
            "instruction": "{instruction}"}  # fmt: skip
"""Prefixes by the field that a record set may have for it, the first that there is; else a caption is asked for."""
CAPTION = "caption en"
SUFFIXES = ("suffix", "answer", "response", "caption", "label", "text", "description")


@dataclass(frozen=True)
class Choice:
    """Which fields make a row.

    Attributes:
        record_set: name of the record set; empty: the only one that has images.
        image: field with the image or its name, or a name in which `{field}` stands for a field; empty: the only image.
        prefix, suffix: texts in which `{field}` stands for a field; empty: see `PREFIXES` and `SUFFIXES`.
        answers: fields with right answers.
    """

    record_set: str = ""
    image: str = ""
    prefix: str = ""
    suffix: str = ""
    answers: tuple[str, ...] = ()


def parse_files(named: Sequence[str]) -> dict[str, Path]:
    """The files and folders that `--files ID=PATH` names, by id.

    Raises:
        InputError: a value is not of this form.
    """
    pairs = [text.partition("=") for text in named]
    if wrong := next((text for text, (name, _, path) in zip(named, pairs, strict=True) if not name or not path), None):
        raise InputError(f"{wrong!r} names no file.", where="--files", expected="ID=PATH, as in repo=clones/the-data")
    return {name: Path(path) for name, _, path in pairs}


def croissant_rows(
    description: Path, choice: Choice, named: Mapping[str, Path], folder: Path, tally: Tally
) -> Iterator[Outcome]:
    """A row for every record of a record set.

    Args:
        description: the Croissant file.
        choice: which fields make a row.
        named: files and folders on this machine by the id of the FileObject that they are.
        folder: the folder that image names are relative to. Images from elsewhere are written to its `images/`, named by hash.
        tally: counts oddities.

    Raises:
        InputError: the description, or what it describes, cannot be read; or it does not say which fields are meant.
        DamagedError: a file is not the described one.
    """
    described = Description(description)
    record_set = _record_set(described, choice, description)
    choice = _settled(record_set, choice, description)
    wanted = named_columns(description, [choice.image], choice.prefix, choice.suffix, choice.answers)
    for name in wanted:
        if name not in record_set.fields:
            raise InputError(
                f"The record set {record_set.name!r} has no field {name!r}.",
                where=description,
                expected=f"{did_you_mean(name, record_set.fields)} {_listed(record_set)}",
            )
    with tempfile.TemporaryDirectory(prefix="paligemma-") as scratch:
        distribution = Distribution(described.nodes, description.absolute().parent, named, Path(scratch))
        rows = read_records(record_set, wanted, distribution, Path(scratch), description, tally)
        yield from filled_rows(
            _with_images(rows, folder), description, folder, [choice.image], choice.prefix, choice.suffix, tally,
            choice.answers,
        )  # fmt: skip


def _record_set(described: Description, choice: Choice, where: Path) -> RecordSet:
    if choice.record_set:
        if choice.record_set in described.sets:
            return described.sets[choice.record_set]
        what = f"There is no record set {choice.record_set!r}."
        raise InputError(what, where=where, expected=did_you_mean(choice.record_set, described.sets))
    asked = [one for one in described.sets.values() if _images(one)] or list(described.sets.values())
    if len(asked) == 1:
        return asked[0]
    raise InputError(
        f"The description has {len(asked)} record sets{' with images' if asked and _images(asked[0]) else ''}.",
        where=where,
        expected="--record-set NAME, one of: " + "; ".join(f"{one.name} {_listed(one)}" for one in asked[:20]),
    )


def _settled(record_set: RecordSet, choice: Choice, where: Path) -> Choice:
    """The choice with what it leaves open taken from the types and names of the fields."""
    images = _images(record_set)
    image = choice.image or (images[0] if len(images) == 1 else "")
    if not image:
        raise InputError(
            f"The record set {record_set.name!r} has {len(images)} fields with images.",
            where=where,
            expected=f"--image with a field, or with a name such as 'images/{{id}}.jpg'. It has {_listed(record_set)}",
        )
    prefix = choice.prefix or next((text for name, text in PREFIXES.items() if name in record_set.fields), CAPTION)
    suffix = choice.suffix
    if not suffix and not choice.answers:
        taken = named_columns(where, [image], prefix, "", ())
        texts = [name for name, field in record_set.fields.items() if "Text" in field.types and name not in taken]
        found = [name for name in SUFFIXES if name in record_set.fields] or (texts if len(texts) == 1 else [])
        if not found:
            raise InputError(
                f"It is not clear which field of {record_set.name!r} is the suffix.",
                where=where,
                expected=f"--suffix '{{FIELD}}', or --answers FIELD. It has {_listed(record_set)}",
            )
        suffix = f"{{{found[0]}}}"
    return replace(choice, image=image, prefix=prefix, suffix=suffix)


def _images(record_set: RecordSet) -> list[str]:
    return [name for name, field in record_set.fields.items() if "ImageObject" in field.types]


def _listed(record_set: RecordSet) -> str:
    def one(field: Field) -> str:
        return f"{field.name} ({', '.join(field.types) or 'no type'})"

    fields = [one(field) for field in record_set.fields.values()]
    return ", ".join(fields[:30]) + (f" and {len(fields) - 30} more" if len(fields) > 30 else "") or "no fields"


def _with_images(rows: Iterator[TableRow], folder: Path) -> Iterator[TableRow]:
    """The same rows, with the name or the bytes of an image in place of a file that is one."""
    root = folder.absolute()
    for entry, values in rows:
        if isinstance(values, EntryError):
            yield entry, values
            continue
        try:
            yield entry, {name: _image(one, root) if isinstance(one, FoundFile) else one for name, one in values.items()}
        except EntryError as problem:
            yield entry, problem


def _image(file: FoundFile, root: Path) -> str | bytes:
    if file.path is not None and file.path.absolute().is_relative_to(root):
        return file.path.absolute().relative_to(root).as_posix()
    return file.read()
