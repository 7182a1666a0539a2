"""The source of a data set's images: a local folder, a prefix in Google Cloud Storage, or tar files in either.

A tar file acts as a folder in a name: `shard-000.tar/cat.jpg`. Nothing outside the folder or prefix is read.
"""

from __future__ import annotations

import functools
import os
import stat
import tarfile
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Protocol, cast

from paligemma.artifacts.record import canonical_sha256
from paligemma.data.image_names import is_foreign, missing_name, unsafe_name
from paligemma.data.images import MAX_BYTES, ImageError, read_image_file
from paligemma.data.rows import RowError, image_path
from paligemma.errors import InputError
from paligemma.storage import gcs
from paligemma.storage.cache import local_copy
from paligemma.storage.location import GcsLocation, parse_location

MOST_AHEAD = 64 * 1024 * 1024
"""Most bytes of prefetched images."""

_MOST_FOLDERS = 10_000
"""Most folders in the cache, which bounds memory for trees of millions."""


class ImageSource(Protocol):
    """Reads the image file that a row names."""

    def read(self, name: str) -> bytes:
        """The file's bytes.

        Raises:
            RowError: the name is unsafe, or there is no such file.
        """
        ...

    def expect(self, names: Iterable[str]) -> None:
        """Announces the files that are read next, so that the source can fetch them; it drops all others."""
        ...


def open_images(location: str | Path | GcsLocation) -> ImageSource:
    """The image source at a location.

    Raises:
        InputError: there is no such local folder.
    """
    parsed = parse_location(location)
    return _Folder(parsed) if isinstance(parsed, Path) else _Bucket(parsed)


def image_marks(location: str | Path, names: Sequence[str]) -> list[str]:
    """What tells each image from others of its name: size and crc32c of its bytes; of one without a file to read, the fault.

    In Cloud Storage they come with the list of objects, which reads no image; a file in an archive has the archive's mark
    there. On a disk a sha256 would be most of what preparing again costs. crc32c finds any change of up to four bytes in a
    row, and misses one in four billion of those that leave the size.

    Args:
        location: the folder or prefix.
        names: as rows name them.
    """
    source, parsed = open_images(location), parse_location(location)
    if isinstance(parsed, GcsLocation):
        listed = {path: f"{found.size} {found.crc32c}" for path, found in gcs.list_files(parsed)}
        anything = canonical_sha256(listed)  # of a name that is spelled in another way, or of nothing
        return [listed.get(split_archive(name)[0] or name, anything) for name in names]

    return [_mark(source, name) for name in names]  # threads take twice the processor time, and no less time


def _mark(source: ImageSource, name: str) -> str:
    try:
        data = source.read(name)
    except RowError as error:
        return fault_mark(error)
    return f"{len(data)} {gcs.crc32c_of(data)}"


def fault_mark(error: RowError) -> str:
    """The mark of an image that cannot be read. It has all that the list of rejected rows says of it."""
    return f"{error.code}: {error.message}"


class _Folder:
    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            if root.exists():
                raise InputError(
                    f"{root} is a file, not a folder of images.",
                    fix="pass its folder as --images; rows name images as FILE.tar/NAME",
                )
            raise InputError(f"There is no image folder {root}.", fix="check --images")
        self._root = os.path.realpath(root)
        self._inside: set[str] = set()  # folders whose links were resolved, by their names in rows

    def read(self, name: str) -> bytes:
        try:
            archive, member = split_archive(name)
            if archive and os.path.isfile(os.path.join(self._root, archive)):
                return read_member(Path(self._path(archive)), member)
            return read_image_file(self._path(name))
        except ImageError as error:
            raise RowError(error.code, f"{name!r}: {error.what}") from None

    def _path(self, name: str) -> str | Path:
        """Like `image_path`, but resolves links once for each folder, not for each of its files."""
        parent, file = os.path.split(name)
        if parent in self._inside and file not in ("", ".", ".."):
            path = os.path.join(self._root, name)
            try:
                if stat.S_ISREG(os.lstat(path).st_mode):
                    return path
            except (OSError, ValueError):
                pass  # reported below
        found = image_path(Path(self._root), name)
        folder = os.path.realpath(os.path.join(self._root, parent))
        if os.path.commonpath([self._root, folder]) == self._root:
            if len(self._inside) == _MOST_FOLDERS:
                self._inside.clear()
            self._inside.add(parent)
        return found

    def expect(self, names: Iterable[str]) -> None:
        pass  # a local disk needs no prefetching


class _Bucket:
    """Fetches expected objects in parallel, because each takes a round trip."""

    def __init__(self, root: GcsLocation) -> None:
        self._root = root
        self._pool = ThreadPoolExecutor(gcs.STREAMS)
        self._coming: dict[str, Future[bytes | None]] = {}
        self._ahead: dict[str, int] = {}  # bytes in flight or held
        self._counting = threading.Lock()
        self._archives: dict[str, Path] = {}
        self._fetching = threading.Lock()

    def read(self, name: str) -> bytes:
        coming = self._coming.get(name)
        data = coming.result() if coming is not None else None
        return cast(bytes, self._fetch(name)) if data is None else data  # for what is asked for there is room

    def expect(self, names: Iterable[str]) -> None:
        wanted = list(dict.fromkeys(names))
        with self._counting:
            self._ahead = {name: size for name, size in self._ahead.items() if name in wanted}
        self._coming = {name: self._coming.get(name) or self._pool.submit(self._fetch, name, self._has_room) for name in wanted}

    def _has_room(self, name: str, size: int) -> bool:
        """Whether `size` more bytes may be held."""
        with self._counting:
            if sum(self._ahead.values()) + size > MOST_AHEAD:
                return False
            self._ahead[name] = size
            return True

    def _fetch(self, name: str, has_room: Callable[[str, int], bool] = lambda *_: True) -> bytes | None:
        path = PurePosixPath(name)
        if not name or "\0" in name:
            raise RowError("image_missing", f"{name!r} is not an object name")
        if path.is_absolute() or ".." in path.parts:
            raise RowError("image_path_unsafe", unsafe_name(name, str(self._root)))
        archive, member = split_archive(name)
        if archive:
            path = self._archive(archive)  # a local copy's files need no prefetching
            return read_member(path, member) if has_room(name, MOST_AHEAD + 1) else None
        found = gcs.stat(self._root / name)
        if found is None and is_foreign(name):
            raise RowError("image_path_unsafe", unsafe_name(name, str(self._root)))
        if found is None and "\\" in name:
            raise RowError("image_missing", missing_name(name, lambda near: gcs.stat(self._root / near) is not None))
        if found is None:
            raise RowError("image_missing", f"there is no object {self._root / name}")
        if found.size > MAX_BYTES:
            raise RowError("image_too_large", f"{name!r} has {found.size} bytes, {MAX_BYTES} at most")
        return gcs.read_bytes(self._root / name, found.generation)[0] if has_room(name, found.size) else None

    def _archive(self, name: str) -> Path:
        """The local copy of a tar file, fetched and verified once."""
        with self._fetching:
            if name not in self._archives:
                if gcs.stat(self._root / name) is None:
                    raise RowError("image_missing", f"there is no object {self._root / name}")
                self._archives[name] = local_copy(self._root / name)
            return self._archives[name]


def split_archive(name: str) -> tuple[str, str]:
    """The tar file in a name, and the member's name in it; without a tar file, an empty text and the name."""
    archive, found, member = name.partition(".tar/")
    return (archive + ".tar", member) if found else ("", name)


def read_member(archive: Path, member: str) -> bytes:
    """The contents of a file in a tar file.

    Raises:
        RowError: there is no such file, or it is too large.
    """
    place = _members(archive).get(member)
    if place is None:
        raise RowError("image_missing", f"{archive.name!r} has no file {member!r}, or is not a whole, plain tar file")
    offset, size = place
    if size > MAX_BYTES:
        raise RowError("image_too_large", f"{member!r} has {size} bytes, {MAX_BYTES} at most")
    with archive.open("rb") as file:
        return os.pread(file.fileno(), size, offset)


@functools.lru_cache(maxsize=16)
def _members(archive: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each plain file in a tar file; links and other entries are left out."""
    try:
        with tarfile.open(archive, "r:") as tar:
            return {member.name.removeprefix("./"): (member.offset_data, member.size) for member in tar if member.isreg()}
    except (tarfile.TarError, OSError):
        return {}
