"""Reads the rows of CSV, JSONL, JSON and Parquet files as columns and values, and says what is wrong with bad rows."""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from paligemma.data.convert.arrow_tables import arrow_rows, check_columns, parquet_rows
from paligemma.data.convert.files import BAD, open_binary, open_text, read_json
from paligemma.data.convert.outcomes import Entry, EntryError, Tally
from paligemma.data.rows import Repeated, once_each
from paligemma.errors import InputError

MAX_CELL = 16 << 20
"""Largest cell or line that is parsed, in characters. Python's own limit is 128 Ki, which pictures in base64 exceed."""

_BEFORE_JSON = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"  # a byte order mark and white space, in UTF-8 or UTF-16
_SEP = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""Excel's own first line, which gives the delimiter."""

_QUOTED = re.compile(r'"[^"]*"')

TableRow = tuple[Entry, dict[str, Any] | EntryError]


def read_table(
    table: Path, columns: Sequence[str], tally: Tally, encoding: str = "", delimiter: str = ""
) -> Iterator[TableRow]:
    """Every row of a table, with at least the given columns, or what is wrong with it.

    Args:
        table: Parquet by its contents; Arrow, JSONL or JSON by its name; anything else is CSV.
        columns: the required columns.
        tally: counts oddities.
        encoding, delimiter: encoding and delimiter of text; by default detected.

    Raises:
        InputError: the table cannot be read, has no rows, or lacks a column.
        DamagedError: the gzip file is cut short.
    """
    if table.suffix.lower() == ".arrow":
        return arrow_rows(table, columns)
    with open_binary(table) as file:
        start = file.read(4096)
    names = [suffix.lower() for suffix in table.suffixes if suffix.lower() != ".gz"]
    kind = names[-1] if names else ""
    if not start.strip():
        raise _empty(table)
    if start[:4] == b"PAR1":
        return parquet_rows(table, columns)
    if kind == ".parquet":
        raise InputError("The table is not a Parquet file.", where=table, expected="a file that begins with PAR1")
    if kind in (".jsonl", ".ndjson", ".json"):
        if kind == ".json" and start.lstrip(_BEFORE_JSON)[:1] == b"[":
            return _json_rows(table)
        return _jsonl_rows(table, encoding)
    return _csv_rows(table, columns, tally, encoding, delimiter or ("\t" if kind in (".tsv", ".tab") else ""))


def _empty(table: Path) -> InputError:
    return InputError("The table is empty.", where=table, expected="rows; of CSV, below a header")


def _json_rows(table: Path) -> Iterator[TableRow]:
    values = read_json(table, "rows")
    for number, value in enumerate(values if isinstance(values, list) else [values]):
        yield Entry(f"row {number + 1}"), _object(value)


def _jsonl_rows(table: Path, encoding: str) -> Iterator[TableRow]:
    with open_text(table, encoding) as file:
        for number, line in _lines(file):
            if line is not None and not line.strip():
                continue
            try:
                yield Entry(f"line {number}"), _object(_parse(line))
            except EntryError as problem:
                yield Entry(f"line {number}"), problem


def _parse(line: str | None) -> object:
    if line is None:
        raise EntryError("cell_too_large", f"the line has more than {MAX_CELL} characters")
    if BAD in line:
        raise EntryError("encoding_invalid", "bytes of the line are not of the file's encoding")
    try:
        return json.loads(line, object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:
        raise EntryError("json_invalid", str(error) or "nested too deeply") from None


def _object(value: object) -> dict[str, Any] | EntryError:
    if isinstance(value, Repeated):
        return EntryError("key_repeated", value.what)
    return value if isinstance(value, dict) else EntryError("not_an_object", f"the row is {type(value).__name__}")


def _csv_rows(table: Path, columns: Sequence[str], tally: Tally, encoding: str, delimiter: str) -> Iterator[TableRow]:
    with ExitStack() as stack:
        limit = csv.field_size_limit(MAX_CELL)  # a setting of the whole process
        stack.callback(csv.field_size_limit, limit)
        source = _Source(_lines(stack.enter_context(open_text(table, encoding))))
        if told := _SEP.fullmatch(source.peek()):
            source.drop()
            delimiter = delimiter or told[1]
        delimiter = delimiter or _find_delimiter(source.peek())
        try:
            reader = csv.reader(source, delimiter=delimiter, strict=True)
        except (TypeError, ValueError) as error:
            expected = "--delimiter with one character"
            raise InputError(f"{delimiter!r} cannot be a delimiter: {error}.", expected=expected) from None
        records = _csv_records(reader, source)
        _, header = next(records, (0, None))
        if header is None:
            raise _empty(table)
        if isinstance(header, EntryError):
            raise InputError(f"The header cannot be read: {header.message}.", where=table)
        check_columns(columns, header, table, f" (cells end at {delimiter!r})")
        for number, cells in records:
            entry = Entry(f"line {number}")
            if isinstance(cells, EntryError):
                yield entry, cells
                continue
            if any("\n" in cell or "\r" in cell for cell in cells):
                tally.note("cell_of_many_lines", entry.place)
            yield entry, dict(zip(header, cells, strict=True)) if len(cells) == len(header) else _miscounted(cells, header)


def _miscounted(cells: list[str], header: list[str]) -> EntryError:
    code = "cells_too_many" if len(cells) > len(header) else "cells_too_few"
    return EntryError(code, f"{len(cells)} cells for {len(header)} columns")


def _csv_records(reader: Iterator[list[str]], source: _Source) -> Iterator[tuple[int, list[str] | EntryError]]:
    """The first line's number and the cells of every record that is not blank.

    If a record's quotes are broken, only its first line is skipped, so an unclosed quote does not swallow the rest of the file.
    """
    while True:
        source.taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except EntryError as problem:  # a line that is too long
            yield source.taken[0][0], problem
            continue
        except csv.Error as error:
            first, last = source.taken[0][0], source.taken[-1][0]
            large = first == last and "field limit" in str(error)
            source.give_back()
            until = f"; the quote is open until line {last}" if last > first else ""
            yield first, EntryError("cell_too_large" if large else "quotes_broken", f"{error}{until}")
            continue
        if any(not cell.isspace() for cell in cells if cell):
            broken = any(BAD in cell for cell in cells)
            wrong = EntryError("encoding_invalid", "bytes of the row are not of the file's encoding")
            yield source.taken[0][0], wrong if broken else cells


class _Source:
    """Numbered lines for csv.reader, which can be pushed back."""

    def __init__(self, lines: Iterator[tuple[int, str | None]]) -> None:
        self._lines = lines
        self._waiting: deque[tuple[int, str | None]] = deque()
        self.taken: list[tuple[int, str | None]] = []

    def __iter__(self) -> _Source:
        return self

    def __next__(self) -> str:
        number, line = self._waiting.popleft() if self._waiting else next(self._lines)
        self.taken.append((number, line))
        if line is None:
            raise EntryError("cell_too_large", f"the line has more than {MAX_CELL} characters")
        return line

    def drop(self) -> None:
        """Discards the lines that were peeked at."""
        self._waiting.clear()

    def peek(self) -> str:
        """The first line that is not blank, without consuming it."""
        for number, line in self._lines:
            self._waiting.append((number, line))
            if line is None or line.strip():
                return line or ""
        return ""

    def give_back(self) -> None:
        """Pushes back all consumed lines except the first."""
        self._waiting.extendleft(reversed(self.taken[1:]))


def _find_delimiter(header: str) -> str:
    """The most frequent of comma, semicolon, tab and bar in the header, outside quotes; at a tie, the first of them."""
    plain = _QUOTED.sub("", header)
    return max(",;\t|", key=plain.count)


def _lines(file: IO[str]) -> Iterator[tuple[int, str | None]]:
    """Lines, numbered from 1; None for one that is too long."""
    number = 0
    while line := file.readline(MAX_CELL + 2):
        number += 1
        if len(line) > MAX_CELL and line[-1] not in "\r\n":
            while (rest := file.readline(MAX_CELL)) and rest[-1] not in "\r\n":
                pass
            yield number, None
        else:
            yield number, line
