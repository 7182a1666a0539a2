"""Runs `paligemma convert` in this process, for tests: what it wrote, skipped and said."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import typer

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
