"""What a command prints. Names in it are often somebody else's: they are shown, and steer nothing.

All of it goes through here: `say` a line, `show_table` a table, `say_json` an answer for programs. Lines of our log, and our
errors, are made printable where they are put together.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

# C0 but for tab and line feed, DEL, C1 (ECMA-48 has a control sequence begin with U+009B too), line and paragraph separators,
# marks that turn the direction of text (Unicode TR 9, section 2), and surrogates, which file names that are no UTF-8 become.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_STEERING_OR_LINE = re.compile(f"[\n{_STEERING.pattern[1:]}")


def say(text: object = "", *, lines: bool = False, error: bool = False) -> None:
    """Prints a text.

    Args:
        text: any; rich's markup counts for nothing in it.
        lines: its line feeds end lines; without, it is one.
        error: on standard error.
    """
    _write(f"{printable(str(text), lines)}\n", error)


def say_json(text: str) -> None:
    """Prints JSON, for programs."""
    _write(f"{printable_json(text)}\n", False)


def show_table(table: Table, error: bool = False) -> None:
    """Prints a table: as wide as the terminal, or, where there is none, as wide as it is. Nothing without rows."""
    if not table.row_count:
        return
    console = _console(error)
    with console.capture() as printed:
        console.print(table)
    _write("".join(f"{line.rstrip()}\n" for line in printed.get().splitlines()), error)


def table_width() -> int:
    """Columns that a table has room in."""
    return _console(False).width


def printable(text: str, lines: bool = False) -> str:
    r"""A text with its control characters as escapes, such as \x1b.

    Args:
        text: any.
        lines: keep line feeds; without, a value cannot look like a line of its own.
    """
    return (_STEERING if lines else _STEERING_OR_LINE).sub(_escape, text)


def printable_json(text: str) -> str:
    """JSON text, which is the same value, without control characters in its strings."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _write(text: str, error: bool) -> None:
    stream = sys.stderr if error else sys.stdout
    stream.write(text)
    stream.flush()


def _console(error: bool) -> Any:
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        """Takes text for text: without markup, and with control characters as escapes. Only rich's own styles steer."""

        def render_str(self, text: str, **options: Any) -> Text:
            plain: dict[str, Any] = {**options, "markup": False, "emoji": False}
            return super().render_str(printable(text, lines=True), **plain)

    here = Plain(stderr=error)
    return here if here.is_terminal else Plain(stderr=error, width=10_000)


def _escape(found: re.Match) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode()
