"""Where a data set's images are: a local folder, or a prefix in Google Cloud Storage. Reads nothing outside it."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Protocol

from paligemma.data.images import MAX_BYTES, ImageError, read_image_file
from paligemma.data.rows import RowError, image_path
from paligemma.errors import InputError
from paligemma.storage import gcs
from paligemma.storage.location import GcsLocation, parse_location


class ImageSource(Protocol):
    """Reads the image file that a row names."""

    def read(self, name: str) -> bytes:
        """The file's bytes.

        Raises:
            RowError: the name is unsafe, or there is no such file.
        """
        ...

    def expect(self, names: Iterable[str]) -> None:
        """Says which files are read next, so that the source may begin; it holds no others."""
        ...


def open_images(location: str | Path | GcsLocation) -> ImageSource:
    """The image source at a location.

    Raises:
        InputError: there is no such local folder.
    """
    parsed = parse_location(location)
    return _Folder(parsed) if isinstance(parsed, Path) else _Bucket(parsed)


class _Folder:
    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(f"There is no image folder {root}.", fix="pass --images")
        self._root = root

    def read(self, name: str) -> bytes:
        try:
            return read_image_file(image_path(self._root, name))
        except ImageError as error:
            raise RowError(error.code, f"{name!r}: {error.what}") from None

    def expect(self, names: Iterable[str]) -> None:
        pass  # the disk is near


class _Bucket:
    """Fetches the objects that are expected in parallel, because each takes a round trip."""

    def __init__(self, root: GcsLocation) -> None:
        self._root = root
        self._pool = ThreadPoolExecutor(gcs.STREAMS)
        self._coming: dict[str, Future[bytes]] = {}

    def read(self, name: str) -> bytes:
        coming = self._coming.get(name)
        return coming.result() if coming is not None else self._fetch(name)

    def expect(self, names: Iterable[str]) -> None:
        self._coming = {name: self._coming.get(name) or self._pool.submit(self._fetch, name) for name in set(names)}

    def _fetch(self, name: str) -> bytes:
        path = PurePosixPath(name)
        if not name or "\0" in name:
            raise RowError("image_missing", f"{name!r} is not an object name")
        if path.is_absolute() or ".." in path.parts:
            raise RowError("image_path_unsafe", f"{name!r} is not below the image prefix")
        found = gcs.stat(self._root / name)
        if found is None:
            raise RowError("image_missing", f"there is no object {self._root / name}")
        if found.size > MAX_BYTES:
            raise RowError("image_too_large", f"{name!r} has {found.size} bytes, {MAX_BYTES} at most")
        return gcs.read_bytes(self._root / name, found.generation)[0]
