"""JSONL rows `{"image", "prefix", "suffix"}`: reading them, and saying exactly what is wrong with one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paligemma.errors import InputError

MAX_LINE_BYTES = 1 << 20
"""Longest line that is parsed; longer ones are rejected without being held in memory."""

REASONS = {
    "line_too_long": "the line is longer than 1 MiB",
    "encoding_invalid": "the line is not UTF-8, or has half a surrogate pair",
    "json_invalid": "the line is not JSON",
    "not_an_object": "the line is JSON, but not an object",
    "key_missing": "image, prefix or suffix is missing",
    "type_wrong": "image, prefix or suffix is not a string, or answers is not a list of strings",
    "suffix_empty": "the suffix is empty or blank: there is nothing to learn",
    "image_path_unsafe": "the image path is absolute or leads out of the image folder",
    "image_missing": "there is no such image file, or it cannot be read",
    "image_unreadable": "the file is not an image that can be decoded",
    "image_too_large": "the image has too many pixels, or bytes, to decode safely",
    "text_too_long": "prefix and suffix have more tokens than the budget",
}
"""Reason codes of `rejected.jsonl`, and what each means."""


class RowError(Exception):
    """A row that cannot be used: a code of `REASONS`, and the particulars."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True)
class Row:
    """A row whose form is right. `image` is relative to the image folder.

    `answers` are references for evaluation, where several are right or were given; without any, the suffix is the one.
    """

    line: int
    image: str
    prefix: str
    suffix: str
    answers: tuple[str, ...] = ()


def read_rows(path: str | Path) -> Iterator[tuple[int, Row | RowError]]:
    """Every line that is not blank, numbered from 1, as a row or what is wrong with it. Streams; a BOM is skipped.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(_lines(file), start=1):
                if line is None:
                    yield number, RowError("line_too_long", f"longer than {MAX_LINE_BYTES} bytes")
                elif line.strip():
                    try:
                        yield number, parse_row(line, number)
                    except RowError as error:
                        yield number, error
    except OSError as error:
        raise InputError(f"The data cannot be read: {error.strerror}.", where=path, expected="a JSONL file") from None


def parse_row(line: bytes, number: int) -> Row:
    """One line as a row.

    Raises:
        RowError: it is not one.
    """
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise RowError("encoding_invalid", f"byte {error.start} is not UTF-8") from None
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RowError("json_invalid", str(error) or "nested too deeply") from None
    except ValueError as error:  # integers of more than 4,300 digits
        raise RowError("json_invalid", str(error)) from None
    if not isinstance(values, dict):
        raise RowError("not_an_object", f"found {type(values).__name__}")
    for key in ("image", "prefix", "suffix"):
        if key not in values:
            raise RowError("key_missing", f"{key!r} is missing; the row has {', '.join(map(repr, values)) or 'no keys'}")
        if not isinstance(values[key], str):
            raise RowError("type_wrong", f"{key!r} is {type(values[key]).__name__}, not a string")
        try:
            values[key].encode()
        except UnicodeEncodeError:
            raise RowError("encoding_invalid", f"{key!r} has half a surrogate pair") from None
    if not values["suffix"].strip():
        raise RowError("suffix_empty", "the suffix is empty")
    answers = values.get("answers", [])
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise RowError("type_wrong", "'answers' is not a list of strings")
    try:
        "".join(answers).encode()
    except UnicodeEncodeError:
        raise RowError("encoding_invalid", "'answers' has half a surrogate pair") from None
    return Row(number, values["image"], values["prefix"], values["suffix"], tuple(answers))


def image_path(folder: Path, name: str) -> Path:
    """Where a row's image is: below `folder`, also after links are followed.

    Raises:
        RowError: it is not below the folder, or not there.
    """
    if not name or "\0" in name:
        raise RowError("image_missing", f"{name!r} is not a file name")
    root = folder.resolve()
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root) or Path(name).is_absolute():
            raise RowError("image_path_unsafe", f"{name!r} is not inside the image folder")
        if not path.is_file():
            raise RowError("image_missing", f"there is no file {name!r} in the image folder")
    except (OSError, RuntimeError) as error:  # name too long; a loop of links
        raise RowError("image_missing", f"{name!r}: {error}") from None
    return path


def row_id(image_sha256: str, prefix: str, suffix: str) -> str:
    """Identity of a row's contents: sha256 over the image bytes' hash, the prefix and the suffix, each with its length."""
    digest = hashlib.sha256()
    for part in (image_sha256, prefix, suffix):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _lines(file) -> Iterator[bytes | None]:
    """Lines of a binary file; None for one that is too long."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield line
