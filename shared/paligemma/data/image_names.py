"""What to say of a row's image name that names no image: paths of other systems, addresses, near misses. Reads no image."""

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
    """What is said of a name that leads out of the image folder, or would on another system.

    Args:
        name: as the row has it.
        folder: what names are relative to: a path, or a `gs://` prefix.
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
    """Whether a name is an address, or an absolute path of Windows: the name of a file here only by an odd chance."""
    return bool(_ADDRESS.match(name) or _WINDOWS.match(name))


def missing_name(name: str, exists: Callable[[str], bool], folder: str | None = None) -> str:
    """What is said of a name that names nothing: what the folder has instead, where something is near.

    Args:
        name: as the row has it.
        exists: whether there is an image of another name.
        folder: on this machine, to be listed for names in other capitals; None where it cannot be.
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
    """The name that an absolute one has below the folder, as it is written or with links followed."""
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
    """Other spellings of a name that data sets are known to have."""
    slashed = name.replace("\\", "/")
    plain = slashed.strip().removeprefix("./")
    yield slashed
    yield plain
    yield unicodedata.normalize("NFC", plain)
    yield unicodedata.normalize("NFD", plain)
    yield unquote(plain)
    yield plain.partition("/")[2] or plain  # the image folder's own name is part of it
    if folder:
        parent, _, file = plain.rpartition("/")
        listed = _by_letters(os.path.join(folder, parent))
        other = listed.get(_letters(file)) or listed.get(_letters(os.path.splitext(file)[0]), file)
        yield os.path.join(parent, other)


@functools.lru_cache(maxsize=8)
def _by_letters(folder: str) -> dict[str, str]:
    """Names in a folder by their letters alone; nothing of one that is very large or not there."""
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
