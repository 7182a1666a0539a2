"""The sources of a data set's images: a local folder, a prefix in Google Cloud Storage, or tar files in either.

A tar file acts as a folder in a name: `shard-000.tar/cat.jpg`. Nothing outside the folder or prefix is read, but what a name
leads to by its form: `gs://` to any bucket, and `https://` to what `web_images` has fetched.
"""

from __future__ import annotations

import functools
import os
import stat
import tarfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Protocol, cast

from paligemma.artifacts.record import canonical_sha256
from paligemma.data.image_names import is_foreign, missing_name, unsafe_name
from paligemma.data.images import MAX_BYTES, ImageError, read_image_file
from paligemma.data.rows import RowError, image_path
from paligemma.data.web_images import WebImage
from paligemma.errors import InputError
from paligemma.storage import gcs
from paligemma.storage.cache import local_copy
from paligemma.storage.location import SCHEME, GcsLocation, parse_location

MOST_AHEAD = 64 * 1024 * 1024
"""Most bytes of prefetched images."""

_AMONG = "among "
_LISTED = 32  # objects of a folder from which on its list is asked for
_MOST_OTHERS = 20  # entries of a list for each object that is named, before it is given up
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


def open_images(location: str | Path | GcsLocation, web: Mapping[str, WebImage] | None = None) -> ImageSource:
    """The source of a data set's images.

    Args:
        location: the folder or prefix that names are relative to.
        web: what the addresses in the rows gave, by name; see `web_images.fetch_images`.

    Raises:
        InputError: there is no such local folder.
    """
    parsed = parse_location(location)
    return _Everywhere(_Folder(parsed) if isinstance(parsed, Path) else _Bucket(parsed), web or {})


def image_marks(location: str | Path, names: Collection[str], web: Mapping[str, WebImage]) -> dict[str, str]:
    """What tells each image from others of its name: size and crc32c of its bytes; of one without a file to read, the fault.

    In Cloud Storage they come with the list of objects, or with one object, and no image is read; a file in an archive is told
    by the archive there. On a disk a sha256 would be most of what preparing again costs. crc32c finds any change of up to four
    bytes in a row, and misses one in four billion of those that leave the size.

    Args:
        location: the folder or prefix.
        names: as rows name them, but pictures in rows.
        web: what addresses gave.
    """
    source, parsed = open_images(location, web), parse_location(location)
    marks = _marks_in_buckets([name for name in names if name.startswith(SCHEME)])
    marks |= {name: fault_mark(web[name].error) if web[name].code else f"{web[name].bytes} {web[name].crc32c}"
              for name in names if name in web}  # fmt: skip
    here = [name for name in names if name not in marks]
    if not isinstance(parsed, GcsLocation):
        return marks | {name: _mark(source, name) for name in here}  # threads take twice the processor time, and no less time
    if not here:
        return marks
    listed = dict(gcs.list_files(parsed))
    whole = canonical_sha256({path: f"{found.size} {found.crc32c}" for path, found in listed.items()})
    for name in here:
        archive, found = split_archive(name)[0], listed.get(split_archive(name)[0] or name)
        exact = found is not None and not archive and found.size <= MAX_BYTES
        # Of a name that is spelled in another way, or of nothing, all objects tell.
        marks[name] = f"{found.size} {found.crc32c}" if found and exact else _among(found or whole)
    return marks


def _marks_in_buckets(names: Sequence[str]) -> dict[str, str]:
    """The marks of images in any buckets. Where rows name many objects of a folder, its list has a thousand in an answer.

    A list may be refused where an object is not, and may be of millions of others: then each object is asked for.
    """
    source, marks = _Bucket(None), dict[str, str]()
    folders: dict[GcsLocation, dict[str, list[str]]] = {}
    for name in names:
        with suppress(RowError):
            place = source.place(split_archive(name)[0] or name)
            folders.setdefault(place.parent, {}).setdefault(place.name, []).append(name)
    for folder, objects in folders.items():
        if len(objects) < _LISTED:
            continue
        with suppress(InputError):
            for found in islice(gcs.list_objects(folder), _MOST_OTHERS * len(objects)):
                marks |= {name: source.mark_of(name, found) for name in objects.get(found.location.name, ())}
    left = [name for name in names if name not in marks]
    with ThreadPoolExecutor(gcs.STREAMS) as pool:
        return marks | dict(zip(left, pool.map(source.mark, left), strict=True))


def mark_of(data: bytes) -> str:
    """The mark of an image file."""
    return f"{len(data)} {gcs.crc32c_of(data)}"


def _mark(source: ImageSource, name: str) -> str:
    try:
        return mark_of(source.read(name))
    except RowError as error:
        return fault_mark(error)


def _among(found: gcs.Object | str) -> str:
    """The mark of an image that something else tells: its archive, or a hash of all objects."""
    return f"{_AMONG}{found if isinstance(found, str) else f'{found.size} {found.crc32c}'}"


def is_of_the_image(mark: str) -> bool:
    """Whether a mark is of the image itself, and not of its archive, or of all objects."""
    return not mark.startswith(_AMONG)


def fault_mark(error: RowError) -> str:
    """The mark of an image that cannot be read. It has all that the list of rejected rows says of it."""
    return f"{error.code}: {error.message}"


class _Everywhere:
    """Sends each name to the source that its form leads to."""

    def __init__(self, inside: ImageSource, web: Mapping[str, WebImage]) -> None:
        self._inside, self._buckets, self._web = inside, _Bucket(None), web

    def read(self, name: str) -> bytes:
        if (image := self._web.get(name)) is not None:
            return image.read()
        return (self._buckets if name.startswith(SCHEME) else self._inside).read(name)

    def expect(self, names: Iterable[str]) -> None:
        names = [name for name in names if name not in self._web]
        self._buckets.expect(name for name in names if name.startswith(SCHEME))
        self._inside.expect(name for name in names if not name.startswith(SCHEME))


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

    def __init__(self, root: GcsLocation | None) -> None:
        """Args: `root` is the prefix that names are relative to; None: names are addresses, `gs://bucket/name`."""
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

    def mark(self, name: str) -> str:
        """The mark of an image; no image is read."""
        try:
            return self.mark_of(name, self._find(split_archive(name)[0] or name))
        except RowError as error:
            return fault_mark(error)

    def mark_of(self, name: str, found: gcs.Object) -> str:
        """The mark of an image whose object, or whose archive's object, is known."""
        if split_archive(name)[0]:
            return _among(found)
        return f"{found.size} {found.crc32c}" if found.size <= MAX_BYTES else fault_mark(_too_large(name, found))

    def _fetch(self, name: str, has_room: Callable[[str, int], bool] = lambda *_: True) -> bytes | None:
        archive, member = split_archive(name)
        if archive:
            path = self._archive(archive)  # a local copy's files need no prefetching
            return read_member(path, member) if has_room(name, MOST_AHEAD + 1) else None
        found = self._find(name)
        if found.size > MAX_BYTES:
            raise _too_large(name, found)
        with self._explained():
            return gcs.read_bytes(found.location, found.generation)[0] if has_room(name, found.size) else None

    def _find(self, name: str) -> gcs.Object:
        """The object of a name.

        Raises:
            RowError: there is none.
        """
        if not name or "\0" in name:
            raise RowError("image_missing", f"{name!r} is not an object name")
        place = self.place(name)
        with self._explained():
            found = gcs.stat(place)
        if found is not None:
            return found
        if self._root is not None and is_foreign(name):
            raise RowError("image_path_unsafe", unsafe_name(name, str(self._root)))
        if self._root is not None and "\\" in name:
            root = self._root
            raise RowError("image_missing", missing_name(name, lambda near: gcs.stat(root / near) is not None))
        raise RowError("image_missing", f"there is no object {place}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Makes what a bucket refuses the fault of a row, if it is the row that names the bucket."""
        try:
            yield
        except InputError as error:
            if self._root is not None:
                raise
            expected = f" It takes {error.expected}." if error.expected else ""
            raise RowError("image_forbidden", error.what + expected) from None

    def place(self, name: str) -> GcsLocation:
        """Where the object of a name would be.

        Raises:
            RowError: nowhere.
        """
        path = PurePosixPath(name)
        if self._root is not None:
            if path.is_absolute() or ".." in path.parts:
                raise RowError("image_path_unsafe", unsafe_name(name, str(self._root)))
            return self._root / name
        bucket, _, within = name.removeprefix(SCHEME).partition("/")
        try:
            found = parse_location(f"{SCHEME}{bucket}")
        except InputError:
            raise RowError("image_missing", f"{name!r} names no bucket") from None
        if not within or not isinstance(found, GcsLocation):
            raise RowError("image_missing", f"{name!r} names no object")
        if ".." in path.parts:
            raise RowError("image_path_unsafe", f"{name!r} has a part '..', which no object's name needs")
        return GcsLocation(found.bucket, within)

    def _archive(self, name: str) -> Path:
        """The local copy of a tar file, fetched and verified once."""
        with self._fetching:
            if name not in self._archives:
                found = self._find(name)
                with self._explained():
                    self._archives[name] = local_copy(found.location)
            return self._archives[name]


def _too_large(name: str, found: gcs.Object) -> RowError:
    return RowError("image_too_large", f"{name!r} has {found.size} bytes, {MAX_BYTES} at most")


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
