"""User errors. Each says what was wrong, where, what was expected and what to do, and carries its exit code.

Any other exception is a bug and exits with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from paligemma.redaction import without_passwords
from paligemma.terminal import printable

Choice = TypeVar("Choice", bound=str)


class PaliGemmaError(Exception):
    """Base class of errors that are shown to a user without a traceback."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, expected: object = None, fix: str | None = None) -> None:
        lines = [what]
        if where is not None:
            lines.append(f"  where:    {where}")
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if fix is not None:
            lines.append(f"  to do:    {fix}")
        super().__init__(_shown("\n".join(lines)))
        self.what, self.expected, self.fix = _shown(what), expected, fix


def _shown(text: str) -> str:
    """Escapes a message for display. It may quote foreign text, which must not control a terminal or leak a password."""
    return printable(without_passwords(text), lines=True)


class InputError(PaliGemmaError):
    """Wrong input or configuration; the user can correct it and run again."""

    exit_code = 2


class DamagedError(PaliGemmaError):
    """A file or artifact differs from what was written: truncated, altered, or incomplete."""

    exit_code = 3


class StoppedError(PaliGemmaError):
    """The machine was preempted, or somebody stopped the program. The same command starts again or continues."""

    exit_code = 4


def one_of(text: str, choices: Sequence[Choice], where: str) -> Choice:
    """The choice that a text is; pipelines' parameters are texts, whatever a step takes.

    Raises:
        InputError: it is none.
    """
    for choice in choices:
        if choice == text:
            return choice
    raise InputError(f"{text!r} is not taken.", where=where, expected=did_you_mean(text, filter(None, choices)))


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Suggests the nearest valid choice, or lists all choices if none is near."""
    choices = sorted(choices)
    return near_match(name, choices) or "one of: " + ", ".join(choices)


def near_match(name: str, choices: Iterable[str]) -> str:
    """Suggests the nearest valid choice; empty if none is near."""
    near = difflib.get_close_matches(name, sorted(choices), n=1)
    return f"did you mean {near[0]!r}?" if near else ""
