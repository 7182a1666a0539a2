"""Reads the rows of Parquet and Arrow files with pyarrow, which is optional. Both may name classes by numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from paligemma.data.convert.class_labels import named_labels
from paligemma.data.convert.outcomes import Entry, EntryError
from paligemma.errors import InputError, did_you_mean

FoundRow = tuple[Entry, dict[str, Any] | EntryError]

_BATCH = 64
"""Rows of a Parquet file that are decoded at once."""


def check_columns(columns: Sequence[str], header: Sequence[str], table: Path, how: str = "") -> None:
    """Raises InputError if a wanted column is missing, or is there twice."""
    for column in columns:
        if column not in header:
            what = f"The table has no column {column!r}{how}."
            raise InputError(what, where=table, fix=did_you_mean(column, dict.fromkeys(header)))
        if list(header).count(column) > 1:
            raise InputError(f"The table has {list(header).count(column)} columns {column!r}.", where=table, fix="rename one")


def parquet_rows(table: Path, columns: Sequence[str]) -> Iterator[FoundRow]:
    """The rows of a Parquet file; only the wanted columns are read, a few rows at a time.

    Raises:
        InputError: pyarrow or a column is missing, or the file cannot be read.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError("Reading Parquet needs pyarrow.", where=table, fix="pip install pyarrow") from None
    number = 0
    try:
        file = ParquetFile(table)
        schema = file.schema_arrow
        check_columns(columns, schema.names, table)
        name = named_labels(schema.metadata)
        for batch in file.iter_batches(_BATCH, columns=list(dict.fromkeys(columns))):
            for index in range(batch.num_rows):
                number += 1
                yield Entry(f"row {number}"), _row(batch.slice(index, 1), name)
    except (ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"The table cannot be read after row {number}: {error}.", where=table) from None


def parquet_columns(table: Path) -> list[str]:
    """The names of a Parquet file's columns.

    Raises:
        InputError: pyarrow is missing, or the file cannot be read.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_schema
    except ImportError:
        raise InputError("Reading Parquet needs pyarrow.", where=table, fix="pip install pyarrow") from None
    try:
        return list(read_schema(table).names)
    except (ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"The table cannot be read: {error}.", where=table) from None


def arrow_rows(path: Path, columns: Sequence[str]) -> Iterator[FoundRow]:
    """The rows of an Arrow file, or of an Arrow stream as `datasets` writes it.

    Raises:
        InputError: pyarrow or a column is missing, or the file cannot be read.
    """
    try:
        import pyarrow
        from pyarrow import ipc
    except ImportError:
        raise InputError("Reading Arrow needs pyarrow.", where=path, fix="pip install pyarrow") from None
    number = 0
    try:
        with pyarrow.memory_map(str(path)) as source:
            whole = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = ipc.open_file(source) if whole else ipc.open_stream(source)
            check_columns(columns, reader.schema.names, path)
            name = named_labels(reader.schema.metadata)
            batches = (reader.get_batch(n) for n in range(reader.num_record_batches)) if whole else reader
            for batch in batches:
                batch.validate(full=True)  # a damaged file has offsets beyond its data
                for index in range(batch.num_rows):
                    number += 1
                    yield Entry(f"{path.name}, row {number}"), _row(batch.slice(index, 1), name)
    except (pyarrow.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"The table cannot be read after row {number}: {error}.", where=path) from None


def _row(row: Any, name: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any] | EntryError:
    """The values of a batch of one row."""
    try:
        return name(row.to_pylist()[0])
    except EntryError as problem:
        return problem
    except Exception as error:  # times before the year 1, unknown time zones, text that is not UTF-8, ...
        return EntryError("value_wrong", f"{type(error).__name__}: {error}")
