"""Pointers: small JSON files such as `latest.json` that name a current value, and that one writer at a time can move.

A writer names the state that it read, and fails if the pointer has moved since. The file is the same on a local disk and in
Google Cloud Storage: the value, and a random number, so that no two moves write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.errors import DamagedError
from paligemma.foreign_json import SMALL_BYTES, parse_json, read_bounded
from paligemma.storage import gcs
from paligemma.storage.atomic import write_file
from paligemma.storage.cache import exclusive
from paligemma.storage.failures import ChangedError
from paligemma.storage.location import GcsLocation, Location, parse_location


@dataclass(frozen=True)
class Pointer:
    """A pointer's state at one moment.

    Attributes:
        value: a JSON value; None if there is no such pointer.
        generation: changes with every move; 0 if there is no such pointer.
    """

    value: Any
    generation: int


class DamagedPointerError(DamagedError):
    """The file is not a pointer. A writer who knows the right value can move it from `generation`."""

    def __init__(self, what: str, generation: int, *, where: object, expected: object = None, fix: str | None = None) -> None:
        super().__init__(what, where=where, expected=expected, fix=fix)
        self.generation = generation


def read_pointer(location: str | Path | Location) -> Pointer:
    """A pointer's value and generation.

    Raises:
        DamagedPointerError: the file is not a pointer.
        DamagedError: it is not even a file.
    """
    location = parse_location(location)
    data, generation = _read(location)
    if data is None:
        return Pointer(None, 0)
    try:
        values = parse_json(data, location, "The pointer", most=SMALL_BYTES)
        return Pointer(values["value"], generation)
    except (DamagedError, LookupError) as fault:
        what = fault.what if isinstance(fault, DamagedError) else "The pointer has no value."
        raise DamagedPointerError(what, generation, where=location, expected='{"value": ..., "move": ...}') from None


def _read(location: Location) -> tuple[bytes | None, int]:
    """Contents and generation; None and 0 if there is nothing."""
    if isinstance(location, GcsLocation):
        found = gcs.stat(location)
        if found is None:
            return None, 0
        if found.size > SMALL_BYTES:
            return b"", found.generation  # not a pointer either
        data, found = gcs.read_bytes(location, most=SMALL_BYTES)
        return data, found.generation
    if not os.path.lexists(location):
        return None, 0
    data = read_bounded(location, "The pointer", fix="remove what is there instead")
    return data, _generation(data)


def move_pointer(location: str | Path | Location, value: Any, generation: int) -> Pointer:
    """Sets a pointer's value if it is still at the generation that was read. Readers see the old value or the new one.

    Args:
        location: a path, or a `gs://` address.
        value: a JSON value.
        generation: from `read_pointer`; 0 to create a pointer.

    Raises:
        ChangedError: somebody else moved it meanwhile; or an answer was lost, and perhaps this move itself succeeded.
    """
    location = parse_location(location)
    data = (json.dumps({"value": value, "move": secrets.token_hex(16)}, indent=2) + "\n").encode()
    if isinstance(location, GcsLocation):
        return Pointer(value, gcs.write_bytes(location, data, generation).generation)
    with exclusive(location):
        if _read(location)[1] != generation:
            raise ChangedError(
                f"{location} was written by somebody else.", expected=f"generation {generation}", fix="run again"
            )
        write_file(location, data)
    return Pointer(value, _generation(data))


def _generation(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8])
