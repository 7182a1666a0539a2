"""Types for names that become parts of paths. A name from outside is parsed into one of these types, or refused.

Others write records, manifests, pointers, flags and environment variables, and we join their names to local folders. So no name
may leave its folder, name the parent, or denote another file than it seems to.

Each type is a `str` that pydantic checks, with a function `parse_...` for values outside a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator

from paligemma.errors import InputError, PaliGemmaError
from paligemma.terminal import printable

MOST_PATH_BYTES = 1024
"""The longest name of an object (cloud.google.com/storage/docs/objects#naming)."""
MOST_ADDRESS_BYTES = 4096
"""The longest path, PATH_MAX on Linux."""
MOST_PART_BYTES = 255
"""The longest file name, NAME_MAX on Linux and macOS."""

# C0 and C1 controls, line and paragraph separators, and marks that turn the direction of text (Unicode TR 9, section 2).
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_DRIVE = re.compile(r"[A-Za-z]:")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def relative_path_fault(path: str) -> str:
    """Why a text is not a path of a file below a folder; empty if it is."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "it is not UTF-8"
    if not path:
        return "it is empty"
    if size > MOST_PATH_BYTES:
        return f"it is longer than {MOST_PATH_BYTES} bytes"
    if _UNPRINTABLE.search(path):
        return "it holds a control character"
    if "\\" in path:
        return "it holds a backslash"
    if path.startswith("/"):
        return "it begins with a slash"
    if _DRIVE.match(path):
        return "it names a drive"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return f"a part of it is {part!r}"
        if len(part.encode()) > MOST_PART_BYTES:
            return f"a part of it is longer than {MOST_PART_BYTES} bytes"
    return ""


def address_fault(text: str) -> str:
    """Why a text is neither a path nor an address; empty if it may be either."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "it is not UTF-8"
    if not text:
        return "it is empty"
    if size > MOST_ADDRESS_BYTES:
        return f"it is longer than {MOST_ADDRESS_BYTES} bytes"
    return "it holds a control character" if _UNPRINTABLE.search(text) else ""


def _pattern_fault(pattern: re.Pattern, expected: str) -> Callable[[str], str]:
    return lambda text: "" if pattern.fullmatch(text) else f"it is not {expected}"


sha256_fault = _pattern_fault(_SHA256, "64 hexadecimal digits in lower case")
_name_fault = _pattern_fault(_NAME, "a name of letters, digits, '_', '.' and '-' that does not begin with '.' or '-'")
version_id_fault = _pattern_fault(_VERSION, "a version of letters, digits, '_' and '-'")
_release_fault = _pattern_fault(_RELEASE, "a version of letters, digits, '_', '.' and '-' that begins with a letter or a digit")


def _validator(fault_of: Callable[[str], str]) -> AfterValidator:
    def check(text: str) -> str:
        if fault := fault_of(text):
            raise ValueError(f"{shown(text)}: {fault}")
        return text

    return AfterValidator(check)


RelativePath = Annotated[str, _validator(relative_path_fault)]
"""A file's path below a folder, with forward slashes."""
Sha256 = Annotated[str, _validator(sha256_fault)]
"""A SHA-256, as hexadecimal digits in lower case."""
RunName = Annotated[str, _validator(_name_fault)]
"""The name of a run, task or attempt, and of its folder or file."""
VersionId = Annotated[str, _validator(version_id_fault)]
"""The version of an artifact in Cloud Storage; part of its files' addresses."""
ReleaseVersion = Annotated[str, _validator(_release_fault)]
"""The version of a release, and the name of its folder in a registry."""
Address = Annotated[str, _validator(address_fault)]
"""Any path or address in a record, as long as it is printable. `parse_location` parses it."""


def parse_relative_path(
    text: object, what: str, *, where: object = None, error: type[PaliGemmaError] = InputError, fix: str | None = None
) -> str:
    """Parses a path below a folder.

    Args:
        text: the text to parse.
        what: what the text is, as the beginning of a sentence, e.g. `A shard's name`.
        where: where the text came from, for the message.
        error: what to raise: `InputError` if a user wrote it, `DamagedError` if a program did.
        fix: advice for the message.

    Raises:
        PaliGemmaError: of the type `error`: the path leaves the folder, or is not a valid file name on every system.
    """
    return _parse(text, relative_path_fault, "a path below its folder, such as part/file", what, where, error, fix)


def parse_sha256(
    text: object, what: str, *, where: object = None, error: type[PaliGemmaError] = InputError, fix: str | None = None
) -> str:
    """Parses a SHA-256; see `parse_relative_path`. For a user's text, which may be in upper case, apply `str.lower` first."""
    return _parse(text, sha256_fault, "64 hexadecimal digits", what, where, error, fix)


def parse_run_name(
    text: object, what: str, *, where: object = None, error: type[PaliGemmaError] = InputError, fix: str | None = None
) -> str:
    """Parses the name of a run, task or attempt; see `parse_relative_path`."""
    return _parse(text, _name_fault, "letters, digits, '_', '.' and '-'", what, where, error, fix)


def parse_version_id(
    text: object, what: str, *, where: object = None, error: type[PaliGemmaError] = InputError, fix: str | None = None
) -> str:
    """Parses the version of an artifact in Cloud Storage; see `parse_relative_path`."""
    return _parse(text, version_id_fault, "letters, digits, '_' and '-'", what, where, error, fix)


def parse_release_version(
    text: object, what: str, *, where: object = None, error: type[PaliGemmaError] = InputError, fix: str | None = None
) -> str:
    """Parses the version of a release; see `parse_relative_path`."""
    return _parse(text, _release_fault, "a version that `paligemma releases` lists", what, where, error, fix)


def is_release_version(text: str) -> bool:
    """Whether a text is the version of a release."""
    return not _release_fault(text)


def shown(text: object) -> str:
    """Makes a text safe for a terminal: escapes control characters, adds quotes, and cuts long texts."""
    plain = printable(repr(text))
    return plain if len(plain) <= 200 else f"{plain[:200]}..."


def _parse(
    text: object,
    fault_of: Callable[[str], str],
    expected: str,
    what: str,
    where: object,
    error: type[PaliGemmaError],
    fix: str | None,
) -> str:
    fault = fault_of(text) if isinstance(text, str) else f"it is {type(text).__name__}, not a text"
    if fault:
        raise error(f"{what} cannot be used: {fault}: {shown(text)}.", where=where, expected=expected, fix=fix)
    return str(text)
