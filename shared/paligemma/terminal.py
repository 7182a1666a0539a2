"""Prints to the terminal. Names in the output often come from others; they must not control the terminal.

All output goes through here: `say` prints a line, `show_table` a table, `say_json` an answer for programs. Log lines and errors
are made printable where they are composed.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

# C0 except tab and line feed, DEL, C1 (by ECMA-48, U+009B too begins a control sequence), line and paragraph separators, marks
# that change the direction of text (Unicode TR 9, section 2), and surrogates, which stand for file names that are not UTF-8.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_STEERING_OR_LINE = re.compile(f"[\n{_STEERING.pattern[1:]}")


def say(text: object = "", *, lines: bool = False, error: bool = False) -> None:
    """Prints a text.

    Args:
        text: any text; rich's markup has no effect.
        lines: whether line feeds end lines; otherwise they are escaped.
        error: print to standard error.
    """
    _write(f"{printable(str(text), lines)}\n", error)


def say_json(text: str) -> None:
    """Prints JSON, for programs."""
    _write(f"{printable_json(text)}\n", False)


def show_table(table: Table, error: bool = False) -> None:
    """Prints a table, limited to the terminal's width if there is one. Prints nothing without rows."""
    if not table.row_count:
        return
    console = _console(error)
    with console.capture() as printed:
        console.print(table)
    _write("".join(f"{line.rstrip()}\n" for line in printed.get().splitlines()), error)


def table_width() -> int:
    """Width available to a table, in characters."""
    return _console(False).width


def printable(text: str, lines: bool = False) -> str:
    r"""Escapes control characters in a text.

    Args:
        text: any text.
        lines: keep line feeds; without it, a value cannot pass for a separate line.
    """
    return (_STEERING if lines else _STEERING_OR_LINE).sub(_escape, text)


def printable_json(text: str) -> str:
    """JSON text for the same value, without raw control characters in its strings."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _write(text: str, error: bool) -> None:
    stream = sys.stderr if error else sys.stdout
    stream.write(text)
    stream.flush()


def _console(error: bool) -> Any:
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        """Prints plain text without markup, and escapes control characters. Only rich's own styles control the terminal."""

        def render_str(self, text: str, **options: Any) -> Text:
            plain: dict[str, Any] = {**options, "markup": False, "emoji": False}
            return super().render_str(printable(text, lines=True), **plain)

    here = Plain(stderr=error)
    return here if here.is_terminal else Plain(stderr=error, width=10_000)


def _escape(found: re.Match) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode()
