"""Finds artifacts: where they were written, or, if the root was moved or copied, at the same paths in it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from paligemma.artifacts.record import RECORD_FILE, parse_record
from paligemma.artifacts.recording import FOLDER
from paligemma.errors import PaliGemmaError
from paligemma.safe_names import relative_path_fault
from paligemma.storage.folders import kind_of, read_file
from paligemma.storage.location import Location, parse_location
from paligemma.storage.versions import keeps_versions

_TRIED = 5  # artifacts per component that are searched for below the root


@dataclass(frozen=True)
class Made:
    """An artifact from its record: what made it, where and when, and the record's hash."""

    component: str
    sha256: str
    output: str
    started: str


class Places:
    """Finds the locations of the artifacts in a root's records."""

    def __init__(self, root: Location, made: Iterable[Made]) -> None:
        """Detects whether the root was moved since its records were written, by looking for some of their artifacts in it."""
        self._root = root
        self._former = _former_roots(root, made)

    def of(self, uri: str) -> Location:
        """The folder or prefix of an artifact by its recorded address, whether or not it exists.

        Raises:
            InputError: the address is invalid.
        """
        below = self.below_root(uri)
        return parse_location(uri) if below is None else self._root / below

    def is_below_root(self, uri: str) -> bool:
        """Whether the artifact written at an address should be below the root."""
        return self.below_root(uri) is not None

    def below_root(self, uri: str) -> str | None:
        """The path from the root to the artifact written at an address; None if it is elsewhere, or among the records."""
        plain = os.path.normpath(uri) if uri.startswith("/") else uri
        for root in (str(self._root).rstrip("/"), *self._former):
            path = plain.removeprefix(f"{root}/")
            if path != plain and not relative_path_fault(path):
                return None if path.partition("/")[0] == FOLDER else path
        return None


def _former_roots(root: Location, made: Iterable[Made]) -> list[str]:
    """Former roots: folders and prefixes whose artifacts are below this root now."""
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
    """The former root in an artifact's address; None if the artifact is not below the root."""
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


def version_folder(version: str | None, place: Location) -> str:
    """The folder of an artifact's files below its location, with a slash at the end; empty: the location itself."""
    folder = f"version-{version}"
    in_version = keeps_versions(place) or kind_of(place / folder) == "folder"  # also in a copy from Cloud Storage
    return f"{folder}/" if version is not None and in_version else ""
