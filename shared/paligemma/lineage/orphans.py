"""Finds artifacts below a root that no record names, including hidden ones and those behind links."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from paligemma.artifacts.record import RECORD_FILE, Record, parse_record
from paligemma.artifacts.recording import FOLDER
from paligemma.errors import PaliGemmaError
from paligemma.storage import gcs
from paligemma.storage.folders import kind_of, read_file
from paligemma.storage.location import GcsLocation, Location

_WHAT = "the artifact's record is not among those below the root"


def orphans(root: Location, known: set[str], unfinished: set[str]) -> Iterator[tuple[str, str, Record | None]]:
    """Yields each orphan's location, a message, and the record beside it if readable.

    Args:
        root: the root to search, except its folder `lineage`.
        known: paths of known artifacts relative to the root; nothing below them is an orphan.
        unfinished: outputs of attempts that made no artifact; their leftovers are not orphans either.
    """
    for path in _below(root, known):
        folder, _, name = path.rpartition("/")
        of = f"{folder}/" if folder else ""
        if any(name == f".{one.rpartition('/')[2]}.partial" and one.startswith(of) for one in unfinished):
            continue
        place = root / path if path else root
        if kind_of(place) == "link":
            yield str(place), "a link to an artifact was added", None
        else:
            yield str(place), _WHAT, _record(place)


def _record(place: Location) -> Record | None:
    try:
        data = read_file(place / RECORD_FILE)
        return parse_record(data, place) if data else None
    except PaliGemmaError:
        return None


def _below(root: Location, known: set[str]) -> Iterator[str]:
    """Paths of the topmost folders with a record that are neither known artifacts nor inside one."""
    if isinstance(root, GcsLocation):
        start, found = len(root.name) + 1 if root.name else 0, []
        for one in gcs.list_objects(root):
            path = one.location.name[start:]
            place = path.removesuffix(RECORD_FILE).rstrip("/")
            inside = (place[:end] for end in range(len(place) + 1) if end == len(place) or place[end] == "/")
            if path.rpartition("/")[2] == RECORD_FILE and path.partition("/")[0] != FOLDER and known.isdisjoint(inside):
                found.append(place)
        yield from (place for place in found if not any(place != other and place.startswith(f"{other}/") for other in found))
        return
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(root / below) as entries:
            inside = list(entries)
        if below and any(entry.name == RECORD_FILE for entry in inside):
            yield below
            continue
        for entry in inside:
            path = f"{below}/{entry.name}" if below else entry.name
            if path in known or path == FOLDER:
                continue
            if entry.is_symlink() and os.path.lexists(Path(entry.path) / RECORD_FILE):
                yield path
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(path)
