"""This machine's copies of what lies in Google Cloud Storage, shared by runs and processes: a second run copies nothing."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paligemma.errors import InputError
from paligemma.progress import WorkProgress
from paligemma.storage import gcs
from paligemma.storage.location import GcsLocation

CACHE_VARIABLE = "PALIGEMMA_CACHE"


def cache_folder() -> Path:
    """`$PALIGEMMA_CACHE`, else `paligemma` in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paligemma"


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keeps other processes out while one fills `path`; they wait. The kernel lets go of the lock of a killed process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def local_copy(location: GcsLocation) -> Path:
    """A file on this machine with an object's contents; of a prefix, a folder with the objects directly below it.

    What is there already with the right checksum is not fetched.

    Raises:
        InputError: there is no such object, and none below.
        DamagedError: what arrives does not match the object's checksum.
    """
    found = gcs.stat(location)
    if found is not None:
        parent = GcsLocation(location.bucket, location.name.rpartition("/")[0])
        return _copies(parent, [found]) / _name(found)
    depth = f"{location.name}/".count("/") if location.name else 0
    below = [found for found in gcs.list_objects(location) if found.location.name.count("/") == depth]
    if not below:
        raise InputError(f"There is no object {location}, and none directly below it.", fix="check bucket and name")
    return _copies(location, below)


def _copies(parent: GcsLocation, objects: list[gcs.Object]) -> Path:
    """The folder that mirrors a prefix, with current copies of these of its objects."""
    folder = cache_folder() / "objects" / hashlib.sha256(str(parent).encode()).hexdigest()
    with exclusive(folder):
        for found in objects:
            path = folder / _name(found)
            if not path.is_file() or gcs.file_crc32c(path) != found.crc32c:
                with WorkProgress(f"fetching {path.name}", "bytes", found.size) as progress:
                    gcs.download(found.location, path, progress.advance)
    return folder


def _name(found: gcs.Object) -> str:
    return found.location.name.rsplit("/", 1)[-1]
