"""Folders of files, on a disk or in Google Cloud Storage: lists, checksums, removal."""

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
from paligemma.storage.atomic import sync_tree
from paligemma.storage.failures import ChangedError
from paligemma.storage.location import GcsLocation, Location

Checksums = dict[str, tuple[int, str]]
"""For every file by its path with forward slashes: its size in bytes, and its crc32c as Cloud Storage writes it."""


Kind = Literal["file", "folder", "link", "other"]
"""The kind of an entry: `other` is a FIFO, socket or device, or an object whose name is not a path."""


@dataclass(frozen=True)
class Entry:
    """An entry of a folder: its relative path with forward slashes, its kind, and a file's size in bytes.

    Attributes:
        generation: an object's generation; 0 on a disk.
    """

    path: str
    kind: Kind
    bytes: int = 0
    generation: int = 0


def kind_of(location: Location) -> Kind | None:
    """The kind of entry at a location; None if nothing exists. A prefix with objects is a folder."""
    if isinstance(location, GcsLocation):
        if location.name and gcs.stat(location) is not None:
            return "file"
        return "folder" if next(iter(gcs.list_objects(location)), None) is not None else None
    try:
        return _kind(location.lstat().st_mode)
    except (OSError, ValueError):
        return None


def is_folder(location: Location) -> bool:
    """Whether there is a folder, or a prefix with objects. Follows links."""
    return location.is_dir() if isinstance(location, Path) else kind_of(location) == "folder"


def subfolders(folder: Location) -> set[str]:
    """The names of the folders directly in a folder, empty ones too, without links; none if there is no such folder."""
    if isinstance(folder, GcsLocation):
        return {name for name, slash, _ in (path.partition("/") for path in list_files(folder)) if slash}
    entries = folder.iterdir() if folder.is_dir() else ()
    return {path.name for path in entries if kind_of(path) == "folder"}


def first_link(folder: Location, path: str) -> Location | None:
    """The first entry from a folder down to and including `path` that is a link or not a folder; None if there is none."""
    if isinstance(folder, GcsLocation):
        return None
    for part in path.split("/"):
        folder = folder / part
        if kind_of(folder) not in (None, "folder"):
            return folder
    return None


def walk(folder: Location) -> Iterator[Entry]:
    """Everything in a folder and below, including folders and hidden files. Lists links without following; opens nothing."""
    if isinstance(folder, GcsLocation):
        start = f"{folder.name}/" if folder.name else ""
        for found in gcs.list_objects(folder):
            path = found.location.name.removeprefix(start)
            if path.endswith("/"):  # the Cloud Console's placeholder for a folder
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
    """The paths of all files in a folder and below, with forward slashes; empty if there is no such folder."""
    if isinstance(folder, GcsLocation):
        yield from (path for path, _ in gcs.list_files(folder))
    else:
        yield from (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def checksums(folder: Location) -> Checksums:
    """The checksums of a folder's files. Reads local files; for objects, takes the service's checksums."""
    if isinstance(folder, GcsLocation):
        return {path: (found.size, found.crc32c) for path, found in gcs.list_files(folder)}
    return {name: ((folder / name).stat().st_size, gcs.file_crc32c(folder / name)) for name in sorted(list_files(folder))}


def read_file(location: Location) -> bytes | None:
    """A small file's contents; None if there is no such file.

    Raises:
        DamagedError: the file is too large, or not a regular file.
    """
    if isinstance(location, GcsLocation):
        return None if gcs.stat(location) is None else gcs.read_bytes(location, most=DOCUMENT_BYTES)[0]
    return read_bounded(location, location.name) if os.path.lexists(location) else None


def readers(location: Location) -> int:
    """How many threads read small files of a location best: an object takes a round trip, a file on a disk no time."""
    return 2 if isinstance(location, Path) else gcs.STREAMS


def remove_file(location: Location) -> None:
    """Removes a file, if there is one."""
    if isinstance(location, GcsLocation):
        gcs.delete(location)
    else:
        location.unlink(missing_ok=True)


def remove_files(folder: Location, files: Sequence[Entry], last: str) -> list[str]:
    """Removes the given files of a folder, then folders that became empty; removes links without following.

    Args:
        folder: their folder.
        files: entries from `walk`. Nothing else is touched.
        last: the path of one of the files. In a local folder it is removed last, so that the folder stays recognizable. In
            Cloud Storage it is removed first, so that nobody begins to read.

    Returns:
        The paths of objects that were kept because somebody rewrote them since the listing. If `last` is one, only `last`: the
        folder is another writer's now, and nothing is removed.
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
        remove_empty(folder / path)
    (folder / last).unlink(missing_ok=True)
    remove_empty(folder)
    return []


def _delete_listed(folder: GcsLocation, files: Sequence[Entry]) -> list[str]:
    """Deletes objects as listed; returns the paths of objects that stay because they were rewritten since."""

    def is_kept(file: Entry) -> bool:
        try:
            gcs.delete(folder / file.path, file.generation)
        except ChangedError:
            return True
        return False

    with ThreadPoolExecutor(gcs.STREAMS) as pool:
        return [file.path for file, kept in zip(files, pool.map(is_kept, files), strict=True) if kept]


def remove_empty(folder: Location) -> None:
    """Removes a folder if it is empty. A prefix without objects is gone by itself."""
    if isinstance(folder, GcsLocation):
        return
    with contextlib.suppress(OSError):  # not empty, or deleted meanwhile
        folder.rmdir()


def touch(folder: Location) -> None:
    """Marks a folder on a disk as changed now. A bucket keeps no such time."""
    if isinstance(folder, Path):
        os.utime(folder)


def sync(folder: Location) -> None:
    """Syncs a folder and its contents to the disk. An object that was written is kept."""
    if isinstance(folder, Path):
        sync_tree(folder)


def identity(folder: Location) -> str:
    """A text that identifies an existing folder, even among folders that were at the same path one after the other."""
    if isinstance(folder, GcsLocation):
        return str(folder)
    status = folder.stat()
    return f"{folder}\0{status.st_dev}\0{status.st_ino}"


def remove_folder(folder: Location, first: str) -> None:
    """Removes a folder with its contents, starting with the file `first`, without which it is not valid.

    Raises:
        ChangedError: an object was rewritten since the listing, and stays.
    """
    remove_file(folder / first)
    if isinstance(folder, Path):
        shutil.rmtree(folder)
        return
    with ThreadPoolExecutor(gcs.STREAMS) as pool:
        list(pool.map(lambda found: gcs.delete(found.location, found.generation), list(gcs.list_objects(folder))))
