"""Operations on single files, local or on `gs://`."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paligemma.foreign_json import SMALL_BYTES, read_bounded
from paligemma.storage import atomic, gcs
from paligemma.storage.cache import exclusive
from paligemma.storage.failures import ChangedError
from paligemma.storage.location import GcsLocation, Location, parse_location


def write_file(location: str | Location, data: bytes) -> None:
    """Replaces a file's or an object's contents atomically."""
    parsed = parse_location(location)
    if isinstance(parsed, Path):
        atomic.write_file(parsed, data)
    else:
        gcs.write_bytes(parsed, data)


def write_new_file(location: str | Location, data: bytes) -> bool:
    """Writes a new file or object atomically. Returns False and does nothing if it exists."""
    parsed = parse_location(location)
    if isinstance(parsed, Path):
        return atomic.write_new_file(parsed, data)
    try:
        gcs.write_bytes(parsed, data, if_generation=0)
    except ChangedError:
        return False
    return True


def copy_new_file(source: Path, location: str | Location) -> bool:
    """`write_new_file` with the contents of a local file, however large."""
    parsed = parse_location(location)
    if isinstance(parsed, Path):
        return atomic.copy_new_file(source, parsed)
    try:
        gcs.upload(source, parsed, if_generation=0)
    except ChangedError:
        return False
    return True


@contextmanager
def local_file(location: Location) -> Iterator[Path]:
    """Yields a file's path; for an object, a temporary local copy, since it may be larger than memory."""
    if isinstance(location, Path):
        yield location
        return
    with tempfile.TemporaryDirectory(prefix="paligemma-") as folder:
        path = Path(folder) / "object"
        gcs.download(location, path)
        yield path


def read_generation(location: Location) -> tuple[bytes | None, int]:
    """A pointer's contents, and their generation for `write_generation`: the object's, or on a disk a hash of them.

    Returns:
        None and 0 if there is nothing; no bytes if the object is too large.

    Raises:
        DamagedError: it is not a file.
    """
    if isinstance(location, Path):
        data = read_bounded(location, "The pointer", fix="remove what is there instead") if os.path.lexists(location) else None
        return data, _generation(data)
    found = gcs.stat(location)
    if found is None or found.size > SMALL_BYTES:
        return (None, 0) if found is None else (b"", found.generation)
    data, found = gcs.read_bytes(location, most=SMALL_BYTES)
    return data, found.generation


def write_generation(location: Location, data: bytes, generation: int) -> int:
    """Replaces a pointer's contents atomically if they are at a generation (0: there is none). Returns the new one.

    Raises:
        ChangedError: somebody else wrote it meanwhile; or an answer was lost, and perhaps this write itself succeeded.
    """
    if isinstance(location, GcsLocation):
        return gcs.write_bytes(location, data, generation).generation
    with exclusive(location):
        if read_generation(location)[1] != generation:
            raise ChangedError(
                f"{location} was written by somebody else.", expected=f"generation {generation}", fix="run again"
            )
        atomic.write_file(location, data)
    return _generation(data)


def _generation(data: bytes | None) -> int:
    return 0 if data is None else int.from_bytes(hashlib.sha256(data).digest()[:8])


def exists(location: str | Location, name: str) -> bool:
    """Whether a folder or prefix has a file with this name."""
    return is_file(parse_location(location) / name)


def is_file(location: Location) -> bool:
    """Whether there is a file or an object. Follows links."""
    return location.is_file() if isinstance(location, Path) else gcs.stat(location) is not None
