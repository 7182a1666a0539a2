"""The only reader of JSON from outside: downloaded, mounted, or written by a run and perhaps altered since.

Its values stay within what callers expect: bounded size and nesting, 64-bit integers, finite numbers, no repeated key, text
that can be written again. Everything else raises one of our own errors. Python's own reader accepts NaN, 10,000 digits, the
last of two equal keys and half a surrogate pair, and raises RecursionError for deep nesting.

RFC 8259 lets a reader set such limits (section 9) and says why repeated keys are unreliable (section 4).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from paligemma.errors import DamagedError, PaliGemmaError
from paligemma.regular_files import open_regular
from paligemma.safe_names import shown

SMALL_BYTES = 1 << 20
"""Maximum size of a pointer, a setting or another file with a few fields."""
DOCUMENT_BYTES = 64 << 20
"""Maximum size of a document, such as a record that lists 100,000 files."""
LINE_BYTES = 16 << 20
"""Maximum size of a line."""
MOST_DEPTH = 64
"""Maximum nesting of lists and objects. Our own files have at most 8 levels."""

_STRING = re.compile(rb'"(?:[^"\\]++|\\.|\\\Z)*+(?:"|\Z)', re.DOTALL)  # it always matches at a quote, so the search is linear
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_STEPS = dict.fromkeys(b"[{", 1) | dict.fromkeys(b"]}", -1)
_NO_BRACKETS = bytes(set(range(256)) - _STEPS.keys())

M = TypeVar("M", bound=BaseModel)


def read_json(
    path: str | Path,
    what: str,
    *,
    kind: type = dict,
    most: int = DOCUMENT_BYTES,
    nonfinite: bool = False,
    error: type[PaliGemmaError] = DamagedError,
    fix: str | None = None,
) -> Any:
    """The value in a JSON file; see `parse_json`.

    Raises:
        PaliGemmaError: of the type `error`; also if the file is missing or not a regular file.
    """
    data = read_bounded(path, what, most=most, error=error, fix=fix)
    return parse_json(data, path, what, kind=kind, most=most, nonfinite=nonfinite, error=error, fix=fix)


def parse_json(
    data: bytes | str,
    where: object,
    what: str,
    *,
    kind: type = dict,
    most: int = DOCUMENT_BYTES,
    nonfinite: bool = False,
    error: type[PaliGemmaError] = DamagedError,
    fix: str | None = None,
) -> Any:
    """The value of a JSON text.

    Args:
        data: the text; bytes are UTF-8.
        where: where the text came from, for the message.
        what: what the text is, as the beginning of a sentence, e.g. `The index of the weights`.
        kind: expected type of the value; `object` for any.
        most: maximum size in bytes.
        nonfinite: accept NaN and infinities, which our own files of figures hold.
        error: what to raise: `InputError` if a user wrote the file, `DamagedError` if a program did.
        fix: advice for the message.

    Raises:
        PaliGemmaError: of the type `error`: the text is not JSON, or exceeds the limits above.
    """
    try:
        return _parse(data, kind, most, _ANY_NUMBER if nonfinite else _FINITE)
    except (ValueError, RecursionError) as fault:
        raise error(f"{what} cannot be read: {_reason(fault)}.", where=where, expected=_expected(kind), fix=fix) from None


def read_model(
    path: str | Path,
    model: type[M],
    what: str,
    *,
    most: int = DOCUMENT_BYTES,
    nonfinite: bool = False,
    error: type[PaliGemmaError] = DamagedError,
    fix: str | None = None,
) -> M:
    """The object in a JSON file, by its pydantic model; see `parse_json`.

    Raises:
        PaliGemmaError: of the type `error`.
    """
    data = read_bounded(path, what, most=most, error=error, fix=fix)
    return parse_model(data, path, model, what, most=most, nonfinite=nonfinite, error=error, fix=fix)


def parse_model(
    data: bytes | str,
    where: object,
    model: type[M],
    what: str,
    *,
    most: int = DOCUMENT_BYTES,
    nonfinite: bool = False,
    error: type[PaliGemmaError] = DamagedError,
    fix: str | None = None,
) -> M:
    """The object of a JSON text, by its pydantic model; see `parse_json`.

    Raises:
        PaliGemmaError: of the type `error`: the text is not JSON, exceeds the limits above, or does not fit the model.
    """
    values = parse_json(data, where, what, most=most, nonfinite=nonfinite, error=error, fix=fix)
    try:
        return model.model_validate(values)
    except ValidationError as fault:
        raise error(f"{what} is wrong: {first_fault(fault)}.", where=where, fix=fix) from None


def first_fault(fault: ValidationError) -> str:
    """The first validation error in one line: key path and message."""
    mistake = fault.errors(include_url=False, include_input=False)[0]
    return ".".join(str(part) for part in mistake["loc"]) + (": " if mistake["loc"] else "") + mistake["msg"]


def read_json_lines(
    path: str | Path,
    what: str,
    *,
    kind: type = dict,
    most: int = LINE_BYTES,
    nonfinite: bool = False,
    error: type[PaliGemmaError] = DamagedError,
    fix: str | None = None,
) -> Iterator[Any]:
    """The value of every line of a file; skips blank lines.

    Args:
        most: maximum size of a line in bytes.

    Raises:
        PaliGemmaError: of the type `error`; it names the line.
    """
    decoder = _ANY_NUMBER if nonfinite else _FINITE
    number = 0
    try:
        with open_regular(path) as file:
            while line := file.readline(most + 2):
                number += 1
                if not line.isspace():
                    yield _parse(line, kind, most, decoder)
    except OSError as fault:
        raise error(f"{what} cannot be read: {_reason(fault)}.", where=path, fix=fix) from None
    except (ValueError, RecursionError) as fault:
        raise error(
            f"{what} cannot be read: line {number}: {_reason(fault)}.", where=path, expected=_expected(kind), fix=fix
        ) from None


def read_bounded(
    path: str | Path,
    what: str,
    *,
    most: int = DOCUMENT_BYTES,
    error: type[PaliGemmaError] = DamagedError,
    fix: str | None = None,
) -> bytes:
    """The bytes of a file of at most `most` bytes.

    Raises:
        PaliGemmaError: of the type `error`: the file is too large, missing, or not a regular file.
    """
    try:
        with open_regular(path) as file:
            data = file.read(most + 1)
    except OSError as fault:
        raise error(f"{what} cannot be read: {_reason(fault)}.", where=path, fix=fix) from None
    if len(data) > most:
        raise error(f"{what} cannot be read: {_too_large(most)}.", where=path, fix=fix)
    return data


def _parse(data: bytes | str, kind: type, most: int, decoder: json.JSONDecoder) -> Any:
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw.rstrip(b"\r\n")) > most:
        raise ValueError(_too_large(most))
    _check_depth(raw)
    value = decoder.decode(raw.decode("utf-8").removeprefix("\ufeff"))
    if not isinstance(value, kind):
        raise ValueError(f"it is {_name(type(value))}")
    if _SURROGATE.search(raw):  # a whole pair is valid text, half a pair is not
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _check_depth(raw: bytes) -> None:
    if raw.count(b"[") + raw.count(b"{") <= MOST_DEPTH:
        return
    brackets = _STRING.sub(b"", raw).translate(None, _NO_BRACKETS)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MOST_DEPTH:
        raise ValueError(f"it is nested deeper than {MOST_DEPTH} levels")


def _integer(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= (number := int(text)) < 1 << 63:
        raise ValueError(f"an integer in it has more than 64 bits: {text[:24]}{'...' if len(text) > 24 else ''}")
    return number


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"a number in it is not finite: {text[:24]}")
    return number


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {shown(key[:40])} is there twice")
    return result


_FINITE = json.JSONDecoder(
    object_pairs_hook=_without_repetition, parse_int=_integer, parse_float=_finite, parse_constant=_finite
)
_ANY_NUMBER = json.JSONDecoder(object_pairs_hook=_without_repetition, parse_int=_integer)


def _reason(fault: Exception) -> str:
    match fault:
        case UnicodeDecodeError():
            return f"it is not UTF-8 at byte {fault.start}"
        case UnicodeEncodeError():
            return "a text in it holds half of a surrogate pair"
        case json.JSONDecodeError():
            return f"it is not JSON: {fault.msg}, line {fault.lineno}, column {fault.colno}"
        case RecursionError():
            return "it is nested too deep"
        case FileNotFoundError():
            return "it is not there"
        case OSError():
            return (fault.strerror or type(fault).__name__).removesuffix(".")
    return str(fault)


def _too_large(most: int) -> str:
    return f"it is larger than {most:,} bytes"


def _expected(kind: type) -> str:
    return "JSON" if kind is object else f"JSON, {_name(kind)}"


def _name(kind: type) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(kind, "a number")
