"""Opens users' files: plain or gzip, JSON, and text in any encoding, with a guess at the right one."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from paligemma.data.rows import Repeated, once_each
from paligemma.errors import DamagedError, InputError
from paligemma.regular_files import open_regular

K = TypeVar("K")

MAX_JSON_BYTES = 2 << 30
"""Largest JSON file that is read: its objects take up to ten times as much memory."""

BAD = "\udcff"
"""Replaces undecodable bytes in text; a row with it is skipped as `encoding_invalid`."""

_BLOCK = 1 << 20
_SIGNATURES = {
    b"PK\x03\x04": "a zip archive (of data, or an Excel workbook)",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ\0": "packed with xz",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"ARROW1": "an Arrow file, whose name is to end in .arrow",
    b"\xd0\xcf\x11\xe0": "an old Office file",
    b"SQLite format 3": "an SQLite data base",
    b"%PDF": "a PDF",
}
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHERS = ("cp1251", "shift_jis", "gb18030", "euc_kr")
codecs.register_error("paligemma.convert", lambda error: (BAD, cast(UnicodeDecodeError, error).end))  # only decoding uses it


@contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """A file, unpacked if it is gzip.

    Raises:
        InputError: the file cannot be read, or its format is not supported.
        DamagedError: the gzip file is cut short or altered.
    """
    try:
        with open_regular(path) as file:
            start = file.read(16)
            file.seek(0)
            for signature, kind in _SIGNATURES.items():
                if start.startswith(signature):
                    fix = "unpack it, or save it as CSV, JSONL or Parquet"
                    raise InputError(f"The file is {kind}.", where=path, expected="the plain file, or gzip", fix=fix)
            if start[:2] == b"\x1f\x8b":
                with gzip.open(file) as unpacked:
                    yield cast(IO[bytes], unpacked)  # which it is, but for its types
            else:
                yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedError(f"The gzip file cannot be unpacked: {error}.", where=path, fix="fetch or pack it again") from None
    except OSError as error:
        raise InputError(f"The file cannot be read: {error.strerror or error}.", where=path) from None


def read_json(path: Path, what: str, most: int = 0) -> object:
    """A JSON file's value. An object with a repeated key becomes a `Repeated`.

    Args:
        path: the file.
        what: what the file is, for messages, e.g. `annotations`.
        most: most bytes, unpacked; `MAX_JSON_BYTES` by default.

    Raises:
        InputError: the file cannot be read, is too large, or is not JSON.
    """
    most = most or MAX_JSON_BYTES
    data = read_bytes(path, what, most, "as JSON takes ten times its size of memory")
    if not data.strip():
        raise InputError(f"The {what} are empty.", where=path, expected="JSON")
    try:
        return json.loads(data, object_pairs_hook=once_each)
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is {data[error.start]:#04x}"
        raise InputError(f"The {what} are not UTF-8: {byte}.", where=path, fix="save the file as UTF-8, as JSON is") from None
    except RecursionError:
        raise InputError(f"The {what} are nested too deeply.", where=path) from None
    except ValueError as error:
        raise InputError(f"The {what} are not JSON: {error}.", where=path) from None


def read_bytes(path: Path, what: str, most: int, why: str) -> bytes:
    """A file's bytes, unpacked.

    Raises:
        InputError: the file cannot be read, or has more than `most` bytes.
    """
    blocks, size = [], 0
    with open_binary(path) as file:
        while size <= most and (block := file.read(_BLOCK)):
            blocks.append(block)
            size += len(block)
    if size > most:
        limit = f"{most >> 20} MiB at most, {why}"
        raise InputError(f"The {what} are too large: {limit}.", where=path, fix="split the file by images")
    return b"".join(blocks)


def read_list(path: Path, what: str) -> list:
    """The list that a JSON file is.

    Raises:
        InputError: see `read_json`; or the file is no list.
    """
    return _of_kind(read_json(path, what), list, path, what, "a JSON list")


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The object that a JSON file is.

    Raises:
        InputError: see `read_json`; or the file is no object.
    """
    return _of_kind(read_json(path, what), dict, path, what, "a JSON object")


def _of_kind(data: object, kind: type[K], path: Path, what: str, expected: str) -> K:
    if isinstance(data, kind):
        return data
    if isinstance(data, Repeated):
        raise InputError(f"The {what} have {data.key!r} twice.", where=path, expected=expected)
    found = f"an object with {', '.join(data)}"[:80] if isinstance(data, dict) else type(data).__name__
    raise InputError(f"The {what} are {found}, not {expected.removeprefix('a JSON ')}.", where=path, expected=expected)


def read_lists(path: Path, what: str, keys: tuple[str, ...]) -> list[list]:
    """The lists that a JSON file has under the given keys.

    Raises:
        InputError: see `read_json`; or a list is missing.
    """
    data, expected = read_json(path, what), f"a JSON object with the lists {', '.join(keys)}"
    if isinstance(data, Repeated):
        raise InputError(f"The {what} have {data.key!r} twice.", where=path, expected=expected)
    if not isinstance(data, dict):
        kind = "a list; is it a file of results?" if isinstance(data, list) else f"{type(data).__name__}, not an object."
        raise InputError(f"The {what} are {kind}", where=path, expected=expected)
    for key in keys:
        if key not in data:
            fix = f"it has {', '.join(data) or 'no keys'}"[:200]
            raise InputError(f"The {what} have no {key!r}.", where=path, expected=expected, fix=fix)
        if not isinstance(data[key], list):
            raise InputError(f"In the {what}, {key!r} is {type(data[key]).__name__}.", where=path, expected=expected)
    return [data[key] for key in keys]


@contextmanager
def open_text(path: Path, encoding: str = "") -> Iterator[IO[str]]:
    """Opens a text file without its byte order mark, with line ends unchanged; `BAD` replaces undecodable bytes.

    Args:
        path: the file, plain or gzip.
        encoding: the file's encoding; by default from its byte order mark, else UTF-8.

    Raises:
        InputError: the encoding is unknown, or the file has another one.
    """
    if encoding:
        try:
            "a".encode(encoding)
        except (LookupError, ValueError):
            names = "utf-8, latin-1, cp1252, utf-16, shift_jis, gb18030, ..."
            raise InputError(f"There is no text encoding {encoding!r}.", expected=f"--encoding {names}") from None
    with open_binary(path) as file:
        start = file.read(4)
        marked = next((name for mark, name in _BOMS.items() if start.startswith(mark)), "")
        found = marked if marked and (not encoding or _kin(encoding, marked)) else encoding or "utf-8"
        file.seek(0)
        _check_encoding(path, file, found)
        file.seek(0)
        with io.TextIOWrapper(file, found, "paligemma.convert", newline="") as text:
            if found not in ("utf-8-sig", "utf-16", "utf-32"):
                _skip_mark(text)
            yield text


def _skip_mark(text: IO[str]) -> None:
    position = text.tell()
    if text.read(1) != "\ufeff":
        text.seek(position)


def _kin(asked: str, marked: str) -> bool:
    """Whether an encoding matches a byte order mark, with or without naming the byte order."""
    return codecs.lookup(asked).name.replace("-sig", "").startswith(marked.replace("-sig", ""))


def _check_encoding(path: Path, file: IO[bytes], encoding: str) -> None:
    """Reads a whole file. One wrong byte among many right ones only costs its row; more mean a wrong encoding.

    Raises:
        InputError: the encoding is wrong; the message has a guess.
    """
    wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
    bad = right = 0
    sample = b""
    try:
        decoder = codecs.getincrementaldecoder(encoding)("paligemma.convert")
        decoder.decode(b"")
    except (LookupError, ValueError):
        raise InputError(f"Text in {encoding!r} cannot be read.", where=path, expected="an encoding of files") from None
    while block := file.read(_BLOCK):
        if not wide and (order := _order_of_wide(block)):
            what = "every other byte is 0, as in UTF-16"
            raise InputError(f"The file is not text in {encoding}: {what}.", where=path, fix=f"pass --encoding {order}")
        text = decoder.decode(block)
        if text.isascii():
            continue
        wrong = text.count(BAD)
        right += len(text) - len(text.encode("ascii", "ignore")) - wrong
        bad += wrong
        if wrong and not sample:
            sample = _line_of_first_bad(block, encoding)
    if bad > right:
        raise InputError(
            f"The file is not {encoding.upper().removesuffix('-SIG')} text: {bad} bytes are not of it.",
            where=path,
            expected="UTF-8, or --encoding with what the file is in",
            fix=_guess(sample, encoding),
        )


def _order_of_wide(block: bytes) -> str:
    """The byte order of text that looks like UTF-16 without a mark, from the positions of its zeros; else empty."""
    even, odd = block[::2].count(0), block[1::2].count(0)
    if max(even, odd) <= len(block) // 6 or min(even, odd) > max(even, odd) // 8:
        return ""
    return "utf-16-le" if odd > even else "utf-16-be"


def _line_of_first_bad(block: bytes, encoding: str) -> bytes:
    try:
        block.decode(encoding)
    except UnicodeDecodeError as error:
        start = max(block.rfind(b"\n", 0, error.start) + 1, error.start - 40)
        return block[start : error.start + 40].split(b"\r")[0].split(b"\n")[0] or block[error.start : error.start + 1]
    except LookupError:
        pass
    return block[:40]


def _guess(sample: bytes, encoding: str) -> str:
    """Advice: the encoding to pass, and how the file's first odd word reads in it and in others."""
    word = re.search(rb"[\w'&-]*[\x80-\xff][\x80-\xff\w'&-]*", sample)
    odd = word[0] if word else sample
    first = "cp1252" if re.search(rb"[\x80-\x9f]", sample) else "latin-1"
    readings = {}
    for name in (first, *_OTHERS):
        try:
            readings[name] = odd.decode(name)
        except UnicodeDecodeError:
            continue
    if not readings or codecs.lookup(encoding).name == codecs.lookup(first).name:
        return "find out what wrote the file"
    best, *others = readings.items()
    also = ", ".join(f"{name} {text!r}" for name, text in others)
    return f"try --encoding {best[0]}, in which a word of it reads {best[1]!r}" + (f" (in others: {also})" if also else "")
