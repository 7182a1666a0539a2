"""Where artifacts are now: where they were written, or, when the root was moved or copied, at the same places in it."""

from __future__ import annotations

import json
from pathlib import Path

from paligemma.lineage.index import Index
from paligemma.lineage.record import RECORD_FILE
from paligemma.storage import gcs
from paligemma.storage.folders import read_file
from paligemma.storage.location import GcsLocation, Location, parse_location

_TRIED = 5  # artifacts of each component that are looked for below the root


class Places:
    """Where the artifacts of an index's records are."""

    def __init__(self, index: Index) -> None:
        """Finds out whether the root is where its records were written, by looking for some of their artifacts in it."""
        self._root = index.root
        self._former = _former_roots(index)

    def of(self, record: dict) -> Location:
        """The folder or prefix of a record's artifact, whether or not there is anything."""
        uri = record["artifact"]["uri"]
        former = self._former_root_of(uri)
        return parse_location(uri) if former is None else self._root / uri.removeprefix(f"{former}/")

    def is_below_root(self, uri: str) -> bool:
        """Whether what was written at an address is to be found below the root."""
        return uri.startswith(f"{self._root}/") or self._former_root_of(uri) is not None

    def _former_root_of(self, uri: str) -> str | None:
        return next((former for former in self._former if uri.startswith(f"{former}/")), None)


def _former_roots(index: Index) -> list[str]:
    """Folders and prefixes that the records' artifacts were written below, and whose contents are below the root now."""
    found: list[str] = []
    for (component,) in index.ask("SELECT DISTINCT component FROM records"):
        newest = index.ask(
            "SELECT sha256, output FROM records WHERE component = ?1 AND tree NOT NULL"
            " AND substr(output, 1, length(?2)) != ?2 ORDER BY started DESC LIMIT ?3",
            component, f"{index.root}/", _TRIED,
        )  # fmt: skip
        for sha256, output in newest:
            if not any(output.startswith(f"{former}/") for former in found):
                former = _former_root(index.root, sha256, output)
                found += [former] if former is not None else []
    return sorted(found, key=len, reverse=True)


def _former_root(root: Location, sha256: str, output: str) -> str | None:
    """The part of an artifact's address that the root stands for now; None if the artifact is not below the root."""
    parts = output.split("/")
    for start in (number for number in range(1, len(parts)) if parts[number]):
        data = read_file(root / "/".join([*parts[start:], RECORD_FILE]))
        try:
            if data is not None and json.loads(data)["sha256"] == sha256:
                return "/".join(parts[:start])
        except (ValueError, LookupError, TypeError):
            continue
    return None


def files_place(record: dict, place: Location) -> Location:
    """The folder that the artifact's files are in."""
    version = f"version-{record['artifact']['version']}"
    in_version = isinstance(place, GcsLocation) or (place / version).is_dir()  # as also in a copy from Cloud Storage
    return place / version if record["artifact"]["version"] is not None and in_version else place


def is_there(place: Location) -> bool:
    """Whether there is an artifact, or what is left of one."""
    if isinstance(place, Path):
        return place.is_dir()
    return next(iter(gcs.list_objects(place)), None) is not None
