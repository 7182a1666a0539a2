"""Explains image names that lead to no image: paths of other systems, addresses, near misses. Reads no image."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from paligemma.data.image_suffixes import is_image_name

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")
_WINDOWS = re.compile(r"[a-zA-Z]:[\\/]|\\\\")
_RELATIVE = "rows name images relative to the image folder (--images)"
_MOST_NAMES = 200_000


def unsafe_name(name: str, folder: str) -> str:
    """Explains a name that leads out of the image folder, or would on another system; empty if it does not.

    Args:
        name: the name in the row.
        folder: the path or `gs://` prefix that names are relative to.
    """
    if _ADDRESS.match(name):
        return _of_absolute(name, folder, "is an address")
    if os.path.isabs(name):
        return _of_absolute(name, folder, "is an absolute path")
    if _WINDOWS.match(name):
        return f"{name!r} is an absolute path of Windows; {_RELATIVE}, with / between folders, as in {_example(name)!r}"
    if ".." in PurePosixPath(name).parts:
        return f"{name!r} leads out of the image folder {folder}; {_RELATIVE}, without .."
    return f"{name!r} leads out of the image folder {folder} through a link; copy what it leads to into the folder"


def is_foreign(name: str) -> bool:
    """Whether a name is an address or an absolute Windows path, and so hardly a file's name here."""
    return bool(_ADDRESS.match(name) or _WINDOWS.match(name))


def missing_name(name: str, exists: Callable[[str], bool], folder: str | None = None) -> str:
    """Explains a name that names nothing, with the nearest name in the folder if there is one.

    Args:
        name: the name in the row.
        exists: says whether an image with another name exists.
        folder: a local folder, to search for the name in other capitals; None if there is none.
    """
    found = next((near for near in _near(name, folder) if near != name and exists(near)), None)
    if "\\" in name:
        written = name.replace("\\", "/")
        there = f"there is {found!r}" if found else f"there is no {written!r} either"
        return f"{name!r} has backslashes, which are no separators here; write / between folders: {there}"
    if found:
        return f"there is no file {name!r} in the image folder; did you mean {found!r}?"
    return f"there is no file {name!r} in the image folder"


def _of_absolute(name: str, folder: str, what: str) -> str:
    inside = _relative(name, folder)
    if inside:
        return f"{name!r} {what}; {_RELATIVE}: write {inside!r}"
    return f"{name!r} {what} outside the image folder {folder}; {_RELATIVE}: name a folder that holds it, and write the rest"


def _relative(name: str, folder: str) -> str | None:
    """An absolute name made relative to the folder, as written or with links followed; None if it is not below the folder."""
    name = name.removeprefix("file://")
    pairs = [(name, str(folder).rstrip("/"))]
    if "://" not in folder:
        try:
            absolute = os.path.abspath(folder)
            pairs += [(os.path.normpath(name), absolute), (os.path.realpath(name), os.path.realpath(folder))]
        except (OSError, ValueError):
            pass
    for one, root in pairs:
        if one.startswith(f"{root.rstrip('/')}/") and (rest := one[len(root.rstrip("/")) :].strip("/")):
            return rest if ".." not in PurePosixPath(rest).parts else None
    return None


def _example(name: str) -> str:
    return "/".join(PureWindowsPath(name).parts[1:][-2:]) or "folder/cat.jpg"


def _near(name: str, folder: str | None) -> Iterator[str]:
    """Other common spellings of a name in data sets."""
    slashed = name.replace("\\", "/")
    plain = slashed.strip().removeprefix("./")
    yield slashed
    yield plain
    yield unicodedata.normalize("NFC", plain)
    yield unicodedata.normalize("NFD", plain)
    yield unquote(plain)
    yield plain.partition("/")[2] or plain  # the name includes the image folder's own name
    if folder:
        parent, _, file = plain.rpartition("/")
        listed = _by_letters(os.path.join(folder, parent))
        other = listed.get(_letters(file)) or listed.get(_letters(os.path.splitext(file)[0]), file)
        yield os.path.join(parent, other)


@functools.lru_cache(maxsize=8)
def _by_letters(folder: str) -> dict[str, str]:
    """Names in a folder by their case-folded letters; empty if the folder is very large or missing."""
    names: dict[str, str] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if len(names) == _MOST_NAMES:
                    return {}
                names.setdefault(_letters(entry.name), entry.name)
                if is_image_name(entry.name):
                    names.setdefault(_letters(os.path.splitext(entry.name)[0]), entry.name)
    except (OSError, ValueError):
        return {}
    return names


def _letters(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
