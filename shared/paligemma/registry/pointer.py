"""Pointers: small JSON files such as `latest.json` that name a current value, and that one writer at a time can move.

A writer names the state that it read, and fails if the pointer has moved since. The file is the same on a local disk and in
Google Cloud Storage: the value, and a random number, so that no two moves write the same bytes.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.errors import DamagedError
from paligemma.foreign_json import SMALL_BYTES, parse_json
from paligemma.storage.files import read_generation, write_generation
from paligemma.storage.location import Location, parse_location


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
    data, generation = read_generation(location)
    if data is None:
        return Pointer(None, 0)
    try:
        values = parse_json(data, location, "The pointer", most=SMALL_BYTES)
        return Pointer(values["value"], generation)
    except (DamagedError, LookupError) as fault:
        what = fault.what if isinstance(fault, DamagedError) else "The pointer has no value."
        raise DamagedPointerError(what, generation, where=location, expected='{"value": ..., "move": ...}') from None


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
    return Pointer(value, write_generation(location, data, generation))
