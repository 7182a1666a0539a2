"""Where artifacts are now: where they were written, or, when the root was moved or copied, at the same places in it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from paligemma.artifacts.record import RECORD_FILE, parse_record
from paligemma.artifacts.recording import FOLDER
from paligemma.errors import PaliGemmaError
from paligemma.safe_names import relative_path_fault
from paligemma.storage.folders import kind_of, read_file
from paligemma.storage.location import GcsLocation, Location, parse_location

_TRIED = 5  # artifacts of each component that are looked for below the root


@dataclass(frozen=True)
class Made:
    """An artifact as its record has it: what made it, where and when, and the record's hash."""

    component: str
    sha256: str
    output: str
    started: str


class Places:
    """Where the artifacts of a root's records are."""

    def __init__(self, root: Location, made: Iterable[Made]) -> None:
        """Finds out whether the root is where its records were written, by looking for some of their artifacts in it."""
        self._root = root
        self._former = _former_roots(root, made)

    def of(self, uri: str) -> Location:
        """The folder or prefix of an artifact by its address, whether or not there is anything.

        Raises:
            InputError: the address is none.
        """
        below = self.below_root(uri)
        return parse_location(uri) if below is None else self._root / below

    def is_below_root(self, uri: str) -> bool:
        """Whether what was written at an address is to be found below the root."""
        return self.below_root(uri) is not None

    def below_root(self, uri: str) -> str | None:
        """The path from the root to what was written at an address; None if that is elsewhere, or among the records."""
        plain = os.path.normpath(uri) if uri.startswith("/") else uri
        for root in (str(self._root).rstrip("/"), *self._former):
            path = plain.removeprefix(f"{root}/")
            if path != plain and not relative_path_fault(path):
                return None if path.partition("/")[0] == FOLDER else path
        return None


def _former_roots(root: Location, made: Iterable[Made]) -> list[str]:
    """Folders and prefixes that the records' artifacts were written below, and whose contents are below the root now."""
    by_component: dict[str, list[Made]] = {}
    for one in made:
        if not one.output.startswith(f"{str(root).rstrip('/')}/"):
            by_component.setdefault(one.component, []).append(one)
    found: list[str] = []
    for artifacts in by_component.values():
        for one in sorted(artifacts, key=lambda one: one.started, reverse=True)[:_TRIED]:
            if not any(one.output.startswith(f"{former}/") for former in found):
                former = _former_root(root, one)
                found += [former] if former is not None else []
    return sorted(found, key=len, reverse=True)


def _former_root(root: Location, made: Made) -> str | None:
    """The part of an artifact's address that the root stands for now; None if the artifact is not below the root."""
    parts = made.output.split("/")
    for start in (number for number in range(1, len(parts)) if parts[number]):
        path = "/".join([*parts[start:], RECORD_FILE])
        if relative_path_fault(path):
            continue
        try:
            data = read_file(root / path)
            if data is not None and parse_record(data, path).sha256 == made.sha256:
                return "/".join(parts[:start])
        except (PaliGemmaError, OSError):
            continue
    return None


def link_between(root: Location, path: str) -> Location | None:
    """The first of the folders from the root down to `path`, itself included, that is a link or no folder; None if none is."""
    if isinstance(root, GcsLocation):
        return None
    place: Path = root
    for part in path.split("/"):
        place = place / part
        if kind_of(place) not in (None, "folder"):
            return place
    return None


def version_folder(version: str | None, place: Location) -> str:
    """The folder below an artifact's place that its files are in, with a slash at its end; empty: the place itself."""
    folder = f"version-{version}"
    in_version = isinstance(place, GcsLocation) or kind_of(place / folder) == "folder"  # as also in a copy from Cloud Storage
    return f"{folder}/" if version is not None and in_version else ""
