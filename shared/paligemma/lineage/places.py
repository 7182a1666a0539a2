"""Where a record's artifact is now: where it was written, or, when the root was moved or copied, at the same place in it."""

from __future__ import annotations

from pathlib import Path

from paligemma.lineage.record import RECORD_FILE
from paligemma.storage import gcs
from paligemma.storage.files import exists
from paligemma.storage.location import GcsLocation, Location, parse_location


def artifact_place(record: dict, root: Location) -> Location:
    """The artifact's folder or prefix, whether or not there is anything."""
    place = parse_location(record["artifact"]["uri"])
    below = f"/{record['run']}/{record['task']}/"
    head, found, tail = str(place).partition(below)
    if found and head != str(root) and not exists(place, RECORD_FILE):
        return root / f"{record['run']}/{record['task']}/{tail}"
    return place


def files_place(record: dict, place: Location) -> Location:
    """The folder that the artifact's files are in."""
    version = record["artifact"]["version"]
    return place / f"version-{version}" if version is not None and isinstance(place, GcsLocation) else place


def is_there(place: Location) -> bool:
    """Whether there is an artifact, or what is left of one."""
    if isinstance(place, Path):
        return place.is_dir()
    return next(iter(gcs.list_objects(place)), None) is not None
