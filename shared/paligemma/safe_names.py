"""Names that become parts of paths: what comes from outside is one of these types, or is refused where it is read.

A record, a manifest, a pointer, a flag or a variable of the environment is written by somebody else, and each of these names
is joined to a folder of this machine. So none can leave that folder, name its parent, or be another file than it seems.

Each type is a `str` that pydantic checks, and has a function `parse_...` for values that come without a model.
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
"""The longest path: PATH_MAX of Linux."""
MOST_PART_BYTES = 255
"""The longest name of a file: NAME_MAX of Linux and macOS."""

# C0 and C1 controls, line and paragraph separators, and marks that turn the direction of text (Unicode TR 9, section 2).
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_DRIVE = re.compile(r"[A-Za-z]:")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def relative_path_fault(path: str) -> str:
    """Why a text is no path of a file below a folder; empty if it is one."""
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
    """Why a text is neither a path nor an address; empty if it may be one."""
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


_sha256_fault = _pattern_fault(_SHA256, "64 hexadecimal digits in lower case")
_name_fault = _pattern_fault(_NAME, "a name of letters, digits, '_', '.' and '-' that begins with none of the last two")
version_id_fault = _pattern_fault(_VERSION, "a version of letters, digits, '_' and '-'")
_release_fault = _pattern_fault(
    _RELEASE, "a version of letters, digits, '_', '.' and '-' that begins with one of the first two"
)


def _validator(fault_of: Callable[[str], str]) -> AfterValidator:
    def check(text: str) -> str:
        if fault := fault_of(text):
            raise ValueError(f"{shown(text)}: {fault}")
        return text

    return AfterValidator(check)


RelativePath = Annotated[str, _validator(relative_path_fault)]
"""A file's path below a folder, with forward slashes."""
Sha256 = Annotated[str, _validator(_sha256_fault)]
"""A SHA-256, as hexadecimal digits in lower case."""
RunName = Annotated[str, _validator(_name_fault)]
"""What a run, a task or an attempt is called, and its folder or file."""
VersionId = Annotated[str, _validator(version_id_fault)]
"""Which writing of an artifact in Cloud Storage it is: a part of its files' address."""
ReleaseVersion = Annotated[str, _validator(_release_fault)]
"""The version of a release, and the name of its folder in a registry."""
Address = Annotated[str, _validator(address_fault)]
"""A path or an address as a record has it: any, but one that can be shown. `parse_location` makes a place of it."""


def parse_relative_path(
    text: object, what: str, *, where: object = None, error: type[PaliGemmaError] = InputError, fix: str | None = None
) -> str:
    """A path below a folder.

    Args:
        text: what is to be one.
        what: it is, as the beginning of a sentence, e.g. `A shard's name`.
        where: it came from, for the message.
        error: what to raise: `InputError` where a user wrote it, `DamagedError` where a program did.
        fix: what to do, for the message.

    Raises:
        PaliGemmaError: of the type `error`: it leaves the folder, or cannot be a file's name on every system.
    """
    return _parse(text, relative_path_fault, "a path below its folder, such as part/file", what, where, error, fix)


def parse_sha256(
    text: object, what: str, *, where: object = None, error: type[PaliGemmaError] = InputError, fix: str | None = None
) -> str:
    """A SHA-256; see `parse_relative_path`. What a user wrote may be in upper case: pass it through `str.lower`."""
    return _parse(text, _sha256_fault, "64 hexadecimal digits", what, where, error, fix)


def parse_run_name(
    text: object, what: str, *, where: object = None, error: type[PaliGemmaError] = InputError, fix: str | None = None
) -> str:
    """The name of a run, a task or an attempt; see `parse_relative_path`."""
    return _parse(text, _name_fault, "letters, digits, '_', '.' and '-'", what, where, error, fix)


def parse_version_id(
    text: object, what: str, *, where: object = None, error: type[PaliGemmaError] = InputError, fix: str | None = None
) -> str:
    """The version of an artifact in Cloud Storage; see `parse_relative_path`."""
    return _parse(text, version_id_fault, "letters, digits, '_' and '-'", what, where, error, fix)


def parse_release_version(
    text: object, what: str, *, where: object = None, error: type[PaliGemmaError] = InputError, fix: str | None = None
) -> str:
    """The version of a release; see `parse_relative_path`."""
    return _parse(text, _release_fault, "a version that `paligemma releases` lists", what, where, error, fix)


def is_release_version(text: str) -> bool:
    """Whether a text is the version of a release."""
    return not _release_fault(text)


def shown(text: object) -> str:
    """A text that cannot steer a terminal: its control characters as escapes, in quotes; long ones are cut."""
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
