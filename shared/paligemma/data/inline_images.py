"""Pictures that a row holds itself: in a `data:` address, or as bare base64 where that can be nothing else.

The form of `data:` addresses is that of RFC 2397. White space is left out before decoding, as browsers do (Fetch standard,
"data: URL processor" and "forgiving-base64 decode").

Bare base64 is taken for a picture only if it is of base64's letters alone, in whole groups of four, at least 64 of them, and
what it says begins as a PNG, JPEG, GIF or WebP file does. A file's name would have to have no dot, begin with `iVBORw0KGgo`,
`/9j/`, `R0lGOD` or `UklGR`, and go on like that.
"""

from __future__ import annotations

import binascii
import re

_DATA = re.compile(r"\s*data:(?P<kind>[^,]{0,300}),", re.IGNORECASE)
_SPACE = b"\t\n\f\r "
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_ESCAPES = {b"%2B": b"+", b"%2F": b"/", b"%3D": b"=", b"%0A": b"", b"%0D": b"", b"%20": b"", b"%09": b""}
"""What of base64 an address may have in percent escapes."""
_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
_LEAST = 64
_WEBP = 8  # where a RIFF file says what it is


def inline_image(text: str) -> bytes | None:
    """The bytes of the file in a `data:` address or in bare base64; None if the text is neither.

    Raises:
        ValueError: it is a `data:` address without a file in base64; says what is wrong.
    """
    if (address := _DATA.match(text)) is not None:
        return _of_address(address["kind"], text[address.end() :])
    if not text.startswith(_STARTS) or not text.isascii():
        return None
    plain = text.encode().translate(None, _SPACE)
    if len(plain) < _LEAST or plain.translate(None, _LETTERS):
        return None
    try:
        data = binascii.a2b_base64(plain, strict_mode=True)
    except binascii.Error:
        return None
    return data if not data.startswith(b"RIFF") or data[_WEBP : _WEBP + 4] == b"WEBP" else None


def _of_address(kind: str, data: str) -> bytes:
    if kind.rpartition(";")[2].strip().lower() != "base64":
        raise ValueError("the data: address is not in base64")
    coded = data.encode("utf-8", "surrogatepass").translate(None, _SPACE)
    for escape, letter in _ESCAPES.items() if b"%" in coded else ():
        coded = coded.replace(escape, letter).replace(escape.lower(), letter)
    try:
        decoded = binascii.a2b_base64(coded + b"=" * (-len(coded) % 4), strict_mode=True)
    except binascii.Error as error:
        raise ValueError(f"what follows the comma of the data: address is not base64: {error}") from None
    if not decoded:
        raise ValueError("the data: address holds nothing")
    return decoded
