"""Converts tables to rows: prefix and suffix are texts in which `{name}` stands for a column."""

from __future__ import annotations

import ast
import hashlib
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paligemma.artifacts.record import one_or_all
from paligemma.data.convert.answers import usable_answers
from paligemma.data.convert.names import image_name
from paligemma.data.convert.outcomes import Converted, EntryError, Outcome, Tally, shown
from paligemma.data.convert.table_files import TableRow, read_table
from paligemma.data.convert.table_folders import read_folder
from paligemma.data.images import MAX_BYTES
from paligemma.data.rows import Repeated
from paligemma.errors import DamagedError, InputError, did_you_mean
from paligemma.foreign_json import parse_json
from paligemma.storage.atomic import write_file

MOST_LIST = 1 << 16
"""Longest cell, in characters, that is read as a list of answers."""


def table_rows(
    table: Path,
    folder: Path,
    images: Sequence[str],
    prefix: str,
    suffix: str,
    tally: Tally,
    encoding: str = "",
    delimiter: str = "",
    answers: Sequence[str] = (),
) -> Iterator[Outcome]:
    """A row for every row of a CSV, JSONL, JSON, Parquet or Arrow file, or of a folder; Parquet and Arrow need pyarrow.

    Args:
        table: the file; or a folder of a data set saved on disk, of Parquet files, or of WebDataset's tar files.
        folder: the folder that image paths are relative to; images held as bytes are written to its `images/`, named by hash.
        images: for each image of a row: a column with a path, or with bytes as Hugging Face stores them
            (`{"bytes": ..., "path": ...}`); or a path in which `{name}` stands for a column.
        prefix, suffix: texts in which `{name}` stands for a column. An empty suffix is the most frequent answer.
        tally: counts oddities.
        encoding, delimiter: encoding and delimiter of a CSV file; by default detected.
        answers: columns of right answers, each of a text or a list of them.

    Raises:
        InputError: the table cannot be read, lacks a column, or a text without `{name}` equals a column's name.
    """
    columns = named_columns(table, images, prefix, suffix, answers)
    rows = read_folder(table, folder, columns) if table.is_dir() else read_table(table, columns, tally, encoding, delimiter)
    return filled_rows(rows, table, folder, images, prefix, suffix, tally, answers)


def named_columns(where: Path, images: Sequence[str], prefix: str, suffix: str, answers: Sequence[str]) -> list[str]:
    """The columns that a conversion needs; see `table_rows`.

    Raises:
        InputError: a text is not a valid template.
    """
    of_images = [column for image in images for column in (Template(image, where).columns if "{" in image else [image])]
    of_texts = [column for text in (prefix, suffix) for column in Template(text, where).columns]
    return list(dict.fromkeys([*of_images, *of_texts, *answers]))


def filled_rows(
    rows: Iterable[TableRow],
    table: Path,
    folder: Path,
    images: Sequence[str],
    prefix: str,
    suffix: str,
    tally: Tally,
    answers: Sequence[str] = (),
) -> Iterator[Outcome]:
    """A row for every row of a table that is read already; see `table_rows`."""
    texts = [Template(prefix, table), Template(suffix, table)]
    named = {image: Template(image, table) for image in images if "{" in image}
    constant = {flag: text for flag, text in (("--prefix", prefix), ("--suffix", suffix)) if not Template(text, table).columns}
    for entry, values in rows:
        try:
            if isinstance(values, EntryError):
                raise values
            if constant:
                _refuse_names(constant, values, table)
                constant = {}  # all rows of a table have the same columns
            filled = [text.fill(values) for text in texts]
            if lacking := [image for image in images if image not in named and image not in values]:
                raise EntryError("column_missing", f"there is no {lacking[0]!r}: {did_you_mean(lacking[0], values)}")
            paths = (named[one].fill(values) if one in named else stored_image(values[one], folder) for one in images)
            names = [image_name(path, folder, tally) for path in paths]
            row: Converted = {"image": one_or_all(names), "prefix": filled[0], "suffix": filled[1]}
            if answers:
                row["answers"] = usable_answers(_all_answers(values, answers), entry, tally)
                row["suffix"] = filled[1] if suffix else Counter(row["answers"]).most_common(1)[0][0]
            yield Outcome((entry,), row)
        except EntryError as problem:
            yield Outcome((entry,), problem)


def _all_answers(values: Mapping[str, Any], columns: Sequence[str]) -> list[object]:
    """The answers in some columns of a row. A text may be a list as JSON, or as Python writes one."""
    found: list[object] = []
    for column in columns:
        if column not in values:
            raise EntryError("column_missing", f"there is no {column!r}: {did_you_mean(column, values)}")
        value = values[column]
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = _list_in(value)
        found.extend(value if isinstance(value, list) else [value])
    return found


def _list_in(text: str) -> object:
    """The list that a text is, or the text."""
    if len(text) > MOST_LIST:
        return text
    try:
        return parse_json(text, "the cell", "The list", kind=list)
    except DamagedError:
        pass
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    return value if isinstance(value, list) else text


def _refuse_names(constant: Mapping[str, str], values: Mapping[str, Any], table: Path) -> None:
    """Refuses constant texts that equal a column's name: the user means the column."""
    by_name = {str(column).casefold(): column for column in values}
    for flag, text in constant.items():
        if text.strip() and (column := by_name.get(text.strip().casefold())) is not None:
            raise InputError(
                f"{flag} {text!r} would be the same text in every row, and is the name of a column.",
                where=table,
                expected="a text in which {name} stands for a column",
                fix=f"{flag} '{{{column}}}'",
            )


class Template(string.Formatter):
    """A text in which `{name}` stands for a column, and `{name[0]}` or `{name[key]}` for a part of it.

    Attributes:
        columns: the columns that it names.
    """

    def __init__(self, text: str, where: Path) -> None:
        """Raises InputError if the text is not a valid template."""
        self._text = text
        try:
            self.columns = list(dict.fromkeys(self._names(text)))
        except ValueError as error:
            raise InputError(f"{text!r} cannot be filled in: {error}.", where=where, expected="{name} for a column") from None

    def _names(self, text: str | None) -> Iterator[str]:
        for _, name, detail, _ in self.parse(text or ""):
            if name is not None:
                column = name.split(".")[0].split("[")[0]
                if not column or column.isdigit():
                    raise ValueError("{} names no column")
                yield column
                yield from self._names(detail)

    def fill(self, values: Mapping[str, Any]) -> str:
        """The text with the values of a row.

        Raises:
            EntryError: a value is missing, or cannot be put into a text.
        """
        try:
            return self.vformat(self._text, (), values)
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise EntryError("value_wrong", f"{shown(self._text)}: {type(error).__name__}: {error}") from None

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if not isinstance(key, str) or key not in kwargs:
            raise EntryError("column_missing", f"there is no {key!r}: {did_you_mean(str(key), kwargs)}")
        if isinstance(kwargs[key], EntryError):  # a part of a row that cannot be read
            raise kwargs[key]
        return kwargs[key]

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        value, first = super().get_field(field_name, args, kwargs)
        if value is None or value != value:  # None or NaN: tables use both for a missing value
            raise EntryError("value_missing", f"{field_name!r} is empty")
        if isinstance(value, bytes):  # text in a Parquet column of type binary
            try:
                return value.decode(), first
            except UnicodeDecodeError:
                raise EntryError("value_wrong", f"{field_name!r} is bytes, and not UTF-8") from None
        if isinstance(value, list | tuple | dict | Repeated):
            raise EntryError("value_wrong", f"{field_name!r} is {shown(value)}: name a part of it, as {{{first}[0]}}")
        return value, first


def stored_image(value: object, folder: Path) -> str:
    """The name of an image; if the value holds bytes, they are written to a file in `images/`, named by their hash."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        if data and not isinstance(data, bytes):  # JSON has no bytes, and no standard spelling for them
            raise EntryError("value_wrong", f"the image's bytes are {shown(data)}")
        value = data or path
    if value is None or value in ("", b""):
        raise EntryError("value_missing", "there is no image")
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise EntryError("value_wrong", f"the image is {shown(value)}, neither a path nor bytes")
    if len(value) > MAX_BYTES:
        raise EntryError("value_wrong", f"the image has {len(value)} bytes, {MAX_BYTES} at most")
    name = f"images/{hashlib.sha256(value).hexdigest()}"
    if not (folder / name).exists():
        write_file(folder / name, value)
    return name
