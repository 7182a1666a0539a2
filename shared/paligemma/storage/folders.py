"""Folders of files, on a disk or in Google Cloud Storage: what they hold, with its checksums, and their removal."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paligemma.foreign_json import DOCUMENT_BYTES, read_bounded
from paligemma.safe_names import relative_path_fault
from paligemma.storage import gcs
from paligemma.storage.location import GcsLocation, Location
from paligemma.storage.retry import ChangedError

Checksums = dict[str, tuple[int, str]]
"""Of every file of a folder, by its path with forward slashes: its bytes, and their crc32c as Cloud Storage writes it."""


Kind = Literal["file", "folder", "link", "other"]
"""What has a name: `other` is a FIFO, a socket, a device, or an object whose name is no path."""


@dataclass(frozen=True)
class Entry:
    """Something in a folder: its path in it with forward slashes, what it is, and the bytes of a file.

    Attributes:
        generation: of an object, which writing of it this is; 0 on a disk.
    """

    path: str
    kind: Kind
    bytes: int = 0
    generation: int = 0


def kind_of(location: Location) -> Kind | None:
    """What is at a location; None if nothing is. Of a prefix with objects, a folder."""
    if isinstance(location, GcsLocation):
        if location.name and gcs.stat(location) is not None:
            return "file"
        return "folder" if next(iter(gcs.list_objects(location)), None) is not None else None
    try:
        return _kind(location.lstat().st_mode)
    except (OSError, ValueError):
        return None


def walk(folder: Location) -> Iterator[Entry]:
    """Everything in a folder and below, folders too, hidden or not. Links are named and not followed; nothing is opened."""
    if isinstance(folder, GcsLocation):
        start = f"{folder.name}/" if folder.name else ""
        for found in gcs.list_objects(folder):
            path = found.location.name.removeprefix(start)
            if path.endswith("/"):  # the Cloud Console's mark of a folder
                yield Entry(path.rstrip("/"), "other" if found.size or relative_path_fault(path.rstrip("/")) else "folder")
            else:
                yield Entry(path, "other" if relative_path_fault(path) else "file", found.size, found.generation)
        return
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(folder / below) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path, status = f"{below}{entry.name}", entry.stat(follow_symlinks=False)
                kind = _kind(status.st_mode)
                yield Entry(path, kind, status.st_size)
                if kind == "folder":
                    waiting.append(f"{path}/")


def _kind(mode: int) -> Kind:
    kinds: dict[int, Kind] = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    return kinds.get(stat.S_IFMT(mode), "other")


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


def remove_files(folder: Location, files: Sequence[Entry], last: str) -> list[str]:
    """Removes these files of a folder, then the folders that are empty without them; links are removed, not followed.

    Args:
        folder: where they are.
        files: as `walk` found them. Nothing else in it is touched.
        last: the path of one of them, by which a local folder is known for what it is until the end. In Cloud Storage it goes
            first, so that nobody begins to read what is being removed.

    Returns:
        The paths of objects that are kept, as somebody wrote them anew since they were listed; of `last` alone, if it is one:
        then it is another's folder, and nothing of it is touched.
    """
    if isinstance(folder, GcsLocation):
        first = [file for file in files if file.path == last]
        if kept := _delete_listed(folder, first):
            return kept
        return _delete_listed(folder, [file for file in files if file.path != last])
    paths = [file.path for file in files if file.path != last]
    folders = {path[:end] for path in paths for end, letter in enumerate(path) if letter == "/"}
    for path in paths:
        (folder / path).unlink(missing_ok=True)
    for path in sorted(folders, reverse=True):
        _remove_empty(folder / path)
    (folder / last).unlink(missing_ok=True)
    _remove_empty(folder)
    return []


def _delete_listed(folder: GcsLocation, files: Sequence[Entry]) -> list[str]:
    """Deletes objects as they were listed; the paths of those that were written anew since, which stay."""

    def is_kept(file: Entry) -> bool:
        try:
            gcs.delete(folder / file.path, file.generation)
        except ChangedError:
            return True
        return False

    with ThreadPoolExecutor(gcs.STREAMS) as pool:
        return [file.path for file, kept in zip(files, pool.map(is_kept, files), strict=True) if kept]


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not empty, or went meanwhile
        folder.rmdir()


def remove_folder(folder: Location, first: str) -> None:
    """Removes a folder with all that is in it, beginning with the file without which it counts for nothing.

    Raises:
        ChangedError: an object was written anew since it was listed, and stays.
    """
    remove_file(folder / first)
    if isinstance(folder, Path):
        shutil.rmtree(folder)
        return
    with ThreadPoolExecutor(gcs.STREAMS) as pool:
        list(pool.map(lambda found: gcs.delete(found.location, found.generation), list(gcs.list_objects(folder))))
