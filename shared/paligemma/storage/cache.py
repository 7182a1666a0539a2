"""The local cache of objects in Google Cloud Storage, shared by runs and processes: a second run copies nothing."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paligemma.errors import InputError
from paligemma.progress import WorkProgress
from paligemma.safe_names import parse_relative_path
from paligemma.storage import gcs
from paligemma.storage.access import explain_refusal
from paligemma.storage.atomic import expect_file, expect_folder, hidden_beside
from paligemma.storage.location import GcsLocation, Location

CACHE_VARIABLE = "PALIGEMMA_CACHE"
_FIX = f"point ${CACHE_VARIABLE} to a folder of yours"


def cache_folder() -> Path:
    """`$PALIGEMMA_CACHE`, else `paligemma` in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paligemma"


def work_folder(location: Location, purpose: str) -> Path:
    """The folder for unfinished work on what is to be at a location: beside it, or in the cache folder for a prefix."""
    if isinstance(location, Path):
        return location.absolute().with_name(f".{location.name}.work")
    return cache_folder() / purpose / hashlib.sha256(str(location).encode()).hexdigest()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Makes other processes wait while one fills `path`. The kernel releases a killed process's lock.

    Raises:
        InputError: the parent folder is not writable.
    """
    lock = hidden_beside(path, ".lock")
    with explain_refusal(path.parent, fix=_FIX):
        path.parent.mkdir(parents=True, exist_ok=True)
        expect_file(lock)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def exclusive_folder(folder: Path, marker: str) -> Iterator[None]:
    """`exclusive` for a cached folder. First removes anything else at its path, or a folder without its `marker`.

    Raises:
        InputError: the cache is not writable.
    """
    with exclusive(folder):
        with explain_refusal(folder, fix=_FIX):
            expect_folder(folder)
            if folder.is_dir() and not (folder / marker).is_file():
                shutil.rmtree(folder)
        yield


def local_copy(location: GcsLocation) -> Path:
    """A local file with an object's contents; for a prefix, a local folder with the objects directly below it.

    Does not fetch copies that exist with the right checksum. Skips objects whose names cannot be files.

    Raises:
        InputError: there is no such object and none below it, or its name cannot be a file's.
        DamagedError: the received bytes do not match the object's checksum.
    """
    found = gcs.stat(location)
    below = {} if found and found.size else {path: one for path, one in gcs.list_files(location) if "/" not in path}
    if found is not None and not below:  # an empty object with others below it stands for a folder
        parent, _, name = location.name.rpartition("/")
        name = parse_relative_path(name, "The object's name", where=location, fix="copy it to another name")
        return _copies(GcsLocation(location.bucket, parent), {name: found}) / name
    if not below:
        raise InputError(f"There is no object {location}, and none directly below it.", fix="check bucket and name")
    return _copies(location, below)


def _copies(parent: GcsLocation, objects: dict[str, gcs.Object]) -> Path:
    """The local folder that mirrors a prefix, with current copies of the given objects."""
    folder = cache_folder() / "objects" / hashlib.sha256(str(parent).encode()).hexdigest()
    with exclusive(folder), explain_refusal(folder, fix=_FIX):
        expect_folder(folder)
        for name, found in objects.items():
            path = folder / name
            expect_file(path)
            if not path.is_file() or gcs.file_crc32c(path) != found.crc32c:
                with WorkProgress(f"fetching {name}", "bytes", found.size) as progress:
                    gcs.download(found.location, path, progress.advance)
    return folder
