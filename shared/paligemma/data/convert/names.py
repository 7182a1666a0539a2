"""Ids, numbers and texts in the spellings of data sets: an id may be "1" in one place and 1 in another."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from paligemma.data.convert.outcomes import EntryError, Tally, shown

T = TypeVar("T")

_WHOLE = re.compile(r"([+-]?)0*([0-9]+)(?:\.0+)?")


def id_of(value: object) -> str | None:
    """An id as text: 1, 1.0 and "1" are the same. None for other values: null, true, 1.5, a list."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return str(int(value)) if math.isfinite(value) and value == int(value) else None
    if isinstance(value, int):
        return str(value)
    return (value.strip() or None) if isinstance(value, str) else None


def number_of(value: object) -> float | None:
    """A finite number, from a number or a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def text_of(value: object) -> str | None:
    """Text, or a number as people write it: 3, 2.5, and 3 for 3.0, as some tools store whole numbers with gaps as floats."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, float) or not math.isfinite(value):
        return None
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


class Index(Generic[T]):
    """Looks up things by id, whatever the id's type on either side.

    An id that is not found as written is looked up by its number: "000000000009" is 9, unless several ids equal 9.
    """

    def __init__(self, kind: str) -> None:
        """Args: `kind` begins the codes of the problems: `image`, `question` or `category`."""
        self._kind = kind
        self._things: dict[str, T | EntryError] = {}
        self._same_number: dict[str, set[str]] = {}

    def add(self, id: object, thing: T | EntryError, tally: Tally, place: str) -> None:
        """Adds a thing, or an error that `find` raises when the thing is looked up."""
        key = id_of(id)
        if key is None:
            code = "image_entry_unusable" if self._kind == "image" else "entry_unusable"
            tally.note(code, f"{place} has the id {shown(id)}")
        elif key in self._things:
            if _same(self._things[key], thing):
                tally.note("entry_repeated", f"{self._kind} {shown(id)}")
            else:
                self._things[key] = EntryError(f"{self._kind}_ambiguous", f"there are different ones of id {shown(id)}")
        else:
            self._things[key] = thing
            self._same_number.setdefault(_as_number(key), set()).add(key)

    def keys_in(self, wanted: Container[str]) -> Iterator[str]:
        """The wanted keys, in the order of addition."""
        return (key for key in self._things if key in wanted)

    def ranks(self) -> dict[str, int]:
        """The place of each key, in the order of addition."""
        return {key: number for number, key in enumerate(self._things)}

    def find(self, id: object, code: str) -> tuple[str, T]:
        """The key and the thing for an id; `code` is the error's code if the id is invalid.

        Raises:
            EntryError: there is none, there are several, or the thing is unusable.
        """
        key = id_of(id)
        if key is None:
            raise EntryError(code, f"the id is {shown(id)}")
        if key not in self._things:
            alike = self._same_number.get(_as_number(key), set())
            if len(alike) != 1:
                raise EntryError(f"{self._kind}_unlisted", f"there is none of id {shown(id)}")
            (key,) = alike
        thing = self._things[key]
        if isinstance(thing, EntryError):
            raise thing
        return key, thing


def _as_number(key: str) -> str:
    found = _WHOLE.fullmatch(key)
    return found[1].replace("+", "") + found[2] if found else key


def _same(one: object, other: object) -> bool:
    if isinstance(one, EntryError) and isinstance(other, EntryError):
        return (one.code, one.message) == (other.code, other.message)
    return one == other


def image_name(name: str, folder: Path, tally: Tally) -> str:
    """An image's name for a row: relative to the image folder, without backslashes.

    Args:
        name: the name in the data set.
        folder: the image folder.
        tally: counts the changes.
    """
    if "\\" in name and "\0" not in name and not _exists(folder, name):
        tally.note("name_backslashes", shown(name))
        name = name.replace("\\", "/")
    if os.path.isabs(name):
        root = os.path.abspath(folder)
        inside = os.path.normpath(name)
        if inside.startswith(root.rstrip("/") + "/"):
            tally.note("name_absolute", shown(name))
            return inside[len(root.rstrip("/")) + 1 :]
    return name


def _exists(folder: Path, name: str) -> bool:
    try:
        return os.path.exists(folder / name)
    except (OSError, ValueError):
        return False
