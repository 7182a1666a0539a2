"""Folders of files, on a disk or in Google Cloud Storage: what they hold, with its checksums, and their removal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from paligemma.foreign_json import DOCUMENT_BYTES, read_bounded
from paligemma.storage import gcs
from paligemma.storage.location import GcsLocation, Location

Checksums = dict[str, tuple[int, str]]
"""Of every file of a folder, by its path with forward slashes: its bytes, and their crc32c as Cloud Storage writes it."""


def list_files(folder: Location) -> Iterator[str]:
    """The paths of all files in a folder and below, with forward slashes; nothing if there is no such folder."""
    if isinstance(folder, GcsLocation):
        yield from (path for path, _ in gcs.list_files(folder))
    else:
        yield from (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def checksums(folder: Location) -> Checksums:
    """What a folder holds. A local folder's files are read; an object's checksum is the one that the service keeps."""
    if isinstance(folder, GcsLocation):
        return {path: (found.size, found.crc32c) for path, found in gcs.list_files(folder)}
    return {name: ((folder / name).stat().st_size, gcs.file_crc32c(folder / name)) for name in sorted(list_files(folder))}


def read_file(location: Location) -> bytes | None:
    """A small file's contents; None if there is no such file.

    Raises:
        DamagedError: it is too large to be one, or something else than a file.
    """
    if isinstance(location, GcsLocation):
        return None if gcs.stat(location) is None else gcs.read_bytes(location, most=DOCUMENT_BYTES)[0]
    return read_bounded(location, location.name) if os.path.lexists(location) else None


def remove_file(location: Location) -> None:
    """Removes a file, if there is one."""
    if isinstance(location, GcsLocation):
        gcs.delete(location)
    else:
        location.unlink(missing_ok=True)


def remove_folder(folder: Location, first: str) -> None:
    """Removes a folder with all that is in it, beginning with the file without which it counts for nothing."""
    remove_file(folder / first)
    if isinstance(folder, Path):
        shutil.rmtree(folder)
        return
    with ThreadPoolExecutor(gcs.STREAMS) as pool:
        list(pool.map(gcs.delete, [found.location for found in gcs.list_objects(folder)]))
