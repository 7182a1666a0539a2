"""Pictures that a row holds itself: in a `data:` address, or as bare base64 where that can be nothing else.

The form of `data:` addresses is that of RFC 2397. White space is left out before decoding, as browsers do (Fetch standard,
"data: URL processor" and "forgiving-base64 decode").

Bare base64 is taken for a picture only if it is of base64's letters alone, in whole groups of four, at least 64 of them, and
what it says begins as a PNG, JPEG, GIF or WebP file does. A file's name would have to have no dot, begin with `iVBORw0KGgo`,
`/9j/`, `R0lGOD` or `UklGR`, and go on like that.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

_DATA = re.compile(r"\s*data:(?P<kind>[^,]{0,300}),", re.IGNORECASE)
_SPACE = re.compile(rb"[\t\n\f\r ]+")
_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
_BARE = re.compile(r"[A-Za-z0-9+/\r\n]{62,}={0,2}\s*")
_LEAST = 64
_WEBP = 8  # where a RIFF file says what it is


def inline_image(text: str) -> bytes | None:
    """The bytes of the file in a `data:` address or in bare base64; None if the text is neither.

    Raises:
        ValueError: it is a `data:` address without a file in base64; says what is wrong.
    """
    if (address := _DATA.match(text)) is not None:
        return _of_address(address["kind"], text[address.end() :])
    if not text.startswith(_STARTS) or not _BARE.fullmatch(text):
        return None
    plain = _SPACE.sub(b"", text.encode())
    try:
        data = base64.b64decode(plain, validate=True) if len(plain) >= _LEAST else b""
    except binascii.Error:
        return None
    return data if not data.startswith(b"RIFF") or data[_WEBP : _WEBP + 4] == b"WEBP" else None


def _of_address(kind: str, data: str) -> bytes:
    if kind.rpartition(";")[2].strip().lower() != "base64":
        raise ValueError("the data: address is not in base64")
    coded = _SPACE.sub(b"", unquote_to_bytes(data) if "%" in data else data.encode("utf-8", "surrogatepass"))
    try:
        decoded = base64.b64decode(coded + b"=" * (-len(coded) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"what follows the comma of the data: address is not base64: {error}") from None
    if not decoded:
        raise ValueError("the data: address holds nothing")
    return decoded
