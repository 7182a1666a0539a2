"""Operations on single files, local or on `gs://`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paligemma.storage import atomic, gcs
from paligemma.storage.failures import ChangedError
from paligemma.storage.location import GcsLocation, Location, parse_location


def parent_of(location: str | Location) -> Location:
    """A file's folder or prefix."""
    parsed = parse_location(location)
    if isinstance(parsed, Path):
        return parsed.parent
    return GcsLocation(parsed.bucket, parsed.name.rpartition("/")[0])


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


def exists(location: str | Location, name: str) -> bool:
    """Whether a folder or prefix has a file with this name."""
    parsed = parse_location(location)
    return (parsed / name).is_file() if isinstance(parsed, Path) else gcs.stat(parsed / name) is not None
