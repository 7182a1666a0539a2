"""Versioned folders in Google Cloud Storage, which change atomically, as a renamed folder does locally.

    gs://bucket/name/MANIFEST          written last; readers start here
    gs://bucket/name/version-X/...     the files of a version; X is unique to its writer, and in the manifest

A reader that finds a manifest also finds every file that it names. A writer first uploads its files. Then it replaces the
manifest, if that is still at the generation that the writer knew. Only then does it delete older versions, except the previous
one, which somebody may be reading. A writer that began before that moment can no longer publish, so no deletion hits files of a
future manifest. The next publication removes the leftovers of killed writers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from paligemma.errors import DamagedError, InputError
from paligemma.foreign_json import DOCUMENT_BYTES
from paligemma.safe_names import parse_relative_path, parse_version_id, version_id_fault
from paligemma.storage import gcs
from paligemma.storage.atomic import clear
from paligemma.storage.failures import ChangedError
from paligemma.storage.location import GcsLocation, Location

_PREFIX = "version-"

log = logging.getLogger("paligemma.storage")


VersionOf = Callable[[bytes], tuple[str, list[str]]]
"""Parses a manifest: returns its version, and the paths of its files."""


def keeps_versions(location: Location) -> bool:
    """Whether artifacts at a location are versioned folders. On a disk, they are renamed instead."""
    return isinstance(location, GcsLocation)


def folder_of(location: GcsLocation, version: str) -> GcsLocation:
    """The prefix of a version's files."""
    return location / f"{_PREFIX}{version}"


def publish(
    folder: Path,
    location: GcsLocation,
    manifest: str,
    version_of: VersionOf,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Makes the files of `folder` the current version at `location`.

    Args:
        folder: the files, among them one called `manifest`.
        location: the prefix.
        manifest: name of the manifest in `folder`.
        version_of: reads the manifest; its version must be unique among all publications.
        advance: called with the size in bytes of every uploaded file.

    Raises:
        InputError: `location` holds something foreign.
        ChangedError: another writer published meanwhile.
    """
    before = gcs.stat(location / manifest)
    kept = set()
    if before is not None:
        kept.add(version_of(gcs.read_bytes(location / manifest, most=DOCUMENT_BYTES)[0])[0])
    elif any(not _is_version(found, location) for found in gcs.list_objects(location)):
        raise InputError(
            f"{location} holds objects that are not an artifact of this program.",
            expected="an unused prefix",
            fix="choose another output location, or delete them yourself",
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / manifest)
    version, _ = version_of((folder / manifest).read_bytes())
    place = folder_of(location, version)

    def upload(path: Path) -> None:
        gcs.upload(path, place / path.relative_to(folder).as_posix(), advance)

    with ThreadPoolExecutor(gcs.STREAMS) as pool:
        list(pool.map(upload, files))
    expected = 0 if before is None else before.generation
    published = gcs.write_bytes(location / manifest, (folder / manifest).read_bytes(), expected)
    _delete_versions_before(published, location, {version, *kept})


def fetch(
    location: GcsLocation,
    folder: Path,
    manifest: str,
    version_of: VersionOf,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Downloads the current version into an existing, empty folder.

    Args:
        location: the prefix.
        folder: destination.
        manifest: name of the manifest.
        version_of: reads the manifest.
        advance: called with the size in bytes of every file that arrived.

    Raises:
        InputError: nothing is published there.
        DamagedError: a file that the manifest names is gone.
    """
    while True:
        data, found = gcs.read_bytes(location / manifest, most=DOCUMENT_BYTES)
        version, names = version_of(data)
        place = folder_of(
            location, parse_version_id(version, "The version of the artifact", where=location, error=DamagedError)
        )
        for name in names:
            parse_relative_path(name, "A file's name in the artifact", where=location, error=DamagedError)

        try:
            objects = {one.location.name.removeprefix(f"{place.name}/"): one for one in gcs.list_objects(place)}
            if missing := set(names) - objects.keys():
                raise InputError(f"{place / min(missing)} is not there.")
            with ThreadPoolExecutor(gcs.STREAMS) as pool:
                list(pool.map(gcs.download_object, map(objects.get, names), map(folder.joinpath, names), repeat(advance)))
        except InputError as error:
            current = gcs.stat(location / manifest)
            if current is not None and current.generation != found.generation:
                # A newer version replaced the one being read: start again, without the old files.
                clear(folder)
                continue
            raise DamagedError(
                f"The artifact at {location} is not whole: {error.what}", fix="run the step that makes it again"
            ) from None
        (folder / manifest).write_bytes(data)
        return


def _is_version(found: gcs.Object, location: GcsLocation) -> bool:
    """Whether an object is in a version's folder, by the names that our writers choose."""
    first, slash, _ = found.location.name.removeprefix(f"{location.name}/").partition("/")
    return bool(slash) and first.startswith(_PREFIX) and not version_id_fault(first.removeprefix(_PREFIX))


def _delete_versions_before(manifest: gcs.Object, location: GcsLocation, kept: set[str]) -> None:
    for found in gcs.list_objects(location):
        part = found.location.name.removeprefix(f"{location.name}/").partition("/")[0]
        if _is_version(found, location) and part.removeprefix(_PREFIX) not in kept and found.created < manifest.created:
            try:
                gcs.delete(found.location, found.generation)
            except ChangedError as error:  # another writer's now; our publication is complete
                log.warning("%s", error.what)
