"""Runs `paligemma convert` in this process, for tests: what it wrote, skipped and said."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path

import typer
from hypothesis import strategies as st

from paligemma.data.convert.reasons import REASONS
from paligemma.data.rows import Row, read_rows
from paligemma.errors import PaliGemmaError
from pipelines.commands.convert import convert

COMMAND = typer.main.get_command(convert)


@dataclass(frozen=True)
class Conversion:
    """What a conversion left.

    Attributes:
        rows, skipped: that were written, and the list beside them.
        words: that were printed, and the error's.
        exit_code: 0, or the error's.
    """

    rows: list[dict]
    skipped: list[dict]
    words: str
    exit_code: int

    @property
    def codes(self) -> list[str]:
        """Why entries were skipped, in order."""
        return [entry["code"] for entry in self.skipped]


def run_convert(output: Path, *arguments: object, limit: float = 1.0) -> Conversion:
    """Runs `paligemma convert ARGUMENTS --output OUTPUT --max-reject-fraction LIMIT`.

    Raises:
        Exception: anything that a user would see as a traceback.
    """
    words = [str(argument) for argument in (*arguments, "--output", output, "--max-reject-fraction", limit)]
    printed, error = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed):
            COMMAND(words, standalone_mode=False)
    except PaliGemmaError as caught:
        error = caught
    listed = output.with_name(output.name + ".skipped.jsonl")
    return Conversion(
        rows=_lines(output),
        skipped=_lines(listed),
        words=printed.getvalue() + str(error or ""),
        exit_code=error.exit_code if error else 0,
    )


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []


ODD = ["1", 1, 1.0, "5", 7, "\ud800", "\0", "..", "/", 1e308, -1e308]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(ODD)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=5
)
"""Any value that JSON can hold."""


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def with_value(value: object, path: tuple, new: object) -> object:
    """The value with another one in a place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = with_value(value[path[0]], path[1:], new)
    return copy


def assert_accounted(done: Conversion, output: Path, entries: Sized | None, one_each: bool = True) -> None:
    """Nothing is lost: what is read (`entries`, if they can be counted) is used or skipped; prepare_data takes every row."""
    assert done.exit_code in (0, 2)
    assert {entry["code"] for entry in done.skipped} <= REASONS.keys()
    if found := re.search(r"(\d+) \w+ read: (\d+) used, (\d+) skipped", done.words):
        read, used, skipped = map(int, found.groups())
        assert entries is None or read == len(entries)
        assert (used + skipped, skipped) == (read, len(done.skipped))
        assert not one_each or len(done.rows) == used
    if output.exists():
        assert all(isinstance(row, Row) for _, row in read_rows(output, images=None))
