"""Text for a terminal: what somebody else wrote is shown, and steers nothing."""

from __future__ import annotations

import re

# C0 but for tab and line feed, DEL, C1 (ECMA-48 has a control sequence begin with U+009B too), line and paragraph separators,
# marks that turn the direction of text (Unicode TR 9, section 2), and surrogates, which file names that are no UTF-8 become.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_STEERING_OR_LINE = re.compile(f"[\n{_STEERING.pattern[1:]}")


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


def _escape(found: re.Match) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode()
