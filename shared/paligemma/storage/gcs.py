"""Transfers whole objects to and from Google Cloud Storage, checked by crc32c end to end."""

from __future__ import annotations

import base64
import functools
import io
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c

from paligemma.errors import DamagedError, InputError
from paligemma.retry import BadBytesError
from paligemma.safe_names import relative_path_fault, shown
from paligemma.storage.atomic import expect_file, hidden_beside
from paligemma.storage.disk_space import check_space
from paligemma.storage.failures import ChangedError, call, chunk_retry, google_exceptions
from paligemma.storage.location import GcsLocation

if TYPE_CHECKING:
    from google.cloud import storage

RANGE_BYTES = 32 * 1024 * 1024
"""Bytes per ranged request, and per chunk of a resumable upload: the most that a broken connection costs."""

STREAMS = 16
"""Parallel connections for one large object, or for many small ones."""

_BUFFER = 1024 * 1024

# None, which the client's pages name, and its types leave out.
_NO_RETRIES: Any = None
_NO_CHECKSUM: Any = None

log = logging.getLogger("paligemma.storage")


@dataclass(frozen=True)
class Object:
    """An object's metadata. `crc32c` is big-endian base64, as in the service's answers."""

    location: GcsLocation
    size: int
    crc32c: str
    generation: int
    created: float


def stat(location: GcsLocation) -> Object | None:
    """An object's metadata; None if there is no such object."""
    blob = call("read", location, lambda: _bucket(location).get_blob(location.name, retry=_NO_RETRIES, timeout=60))
    return None if blob is None else _object(blob)


def list_objects(prefix: GcsLocation) -> Iterator[Object]:
    """Every object whose name is `prefix/...`, sorted by name."""
    start = f"{prefix.name}/" if prefix.name else ""
    token: str | None = None
    while True:

        def page(token: str | None = token):
            listing = _client().list_blobs(prefix.bucket, prefix=start, page_token=token, retry=_NO_RETRIES, timeout=60)
            blobs = list(next(listing.pages, []))
            return blobs, listing.next_page_token

        blobs, token = call("list", prefix, page)
        yield from map(_object, blobs)
        if not token:
            return


def list_files(prefix: GcsLocation) -> Iterator[tuple[str, Object]]:
    """The objects below a prefix whose names can be file paths, with these relative paths, sorted by name.

    An object can have almost any name: `x/..`, `a//b`, or `ckpt/`, which the Cloud Console makes to show an empty folder. Skips
    names that cannot be a file's path, and warns about them, except for such folders.
    """
    start = f"{prefix.name}/" if prefix.name else ""
    for found in list_objects(prefix):
        path = found.location.name.removeprefix(start)
        if fault := relative_path_fault(path):
            if not found.location.name.endswith("/"):
                log.warning("the object %s is passed over, as it can be no file: %s", shown(str(found.location)), fault)
            continue
        yield path, found


def read_bytes(location: GcsLocation, generation: int | None = None, most: int | None = None) -> tuple[bytes, Object]:
    """A small object's contents, verified, and its metadata.

    Args:
        location: the object.
        generation: the required generation; None for the current one.
        most: maximum size in bytes; None for no limit.

    Raises:
        InputError: there is no such object.
        DamagedError: its bytes never matched its checksum, or exceed `most`.
    """
    while True:
        found = _existing(location, generation)
        if most is not None and found.size > most:
            raise DamagedError(f"{location} has {found.size:,} bytes.", expected=f"at most {most:,}")
        try:
            return call("read", location, lambda found=found: _checked(_fetch(found, 0, found.size), found)), found
        except InputError:
            # A pointer may move between reading its metadata and its contents.
            current = stat(location)
            if generation is not None or current is None or current.generation == found.generation:
                raise


def write_bytes(location: GcsLocation, data: bytes, if_generation: int | None = None) -> Object:
    """Writes an object atomically: readers see the old contents or the new.

    Args:
        location: the object.
        data: its contents.
        if_generation: write only if the object is at this generation (0: it does not exist).

    Raises:
        ChangedError: the object is at another generation.
    """
    checksum = crc32c_of(data)

    def send(blob: storage.Blob) -> None:
        blob.upload_from_string(data, if_generation_match=if_generation, retry=_NO_RETRIES, timeout=60, checksum=_NO_CHECKSUM)

    return _put(location, len(data), checksum, if_generation, send)


def delete(location: GcsLocation, if_generation: int | None = None) -> None:
    """Deletes an object; does nothing if it is missing.

    Args:
        location: the object.
        if_generation: delete only this generation, e.g. the one that was checked.

    Raises:
        ChangedError: the object is at another generation, and was kept.
    """

    def remove() -> None:
        try:
            blob = _bucket(location).blob(location.name)
            blob.delete(if_generation_match=if_generation, retry=_NO_RETRIES, timeout=60)
        except google_exceptions().NotFound:
            return
        except google_exceptions().PreconditionFailed:
            found = stat(location)
            if found is not None and found.generation == if_generation:
                raise BadBytesError("metadata that differs from one look to the next") from None
            if found is not None:
                raise ChangedError(
                    f"{location} was not deleted, as somebody else wrote it.", expected=f"generation {if_generation}"
                ) from None

    call("delete", location, remove)


def read_range(found: Object, start: int, stop: int, check: Callable[[bytes], None]) -> bytes:
    """Bytes `start` to `stop` of an object at its known generation.

    Args:
        found: the object, from `stat` or `list_objects`.
        start, stop: the range; the service has no checksum of it.
        check: raises `BadBytesError` if the bytes are not what they should be, so that they are fetched again.

    Raises:
        InputError: the object is gone, or another one has taken its place.
        DamagedError: the bytes were never right.
    """

    def fetch() -> bytes:
        data = _fetch(found, start, stop)
        check(data)
        return data

    return call("read", found.location, fetch)


def download(location: GcsLocation, path: Path, advance: Callable[[int], None] = lambda _: None) -> Object:
    """Downloads the object at a location; see `download_object`."""
    found = _existing(location, None)
    download_object(found, path, advance)
    return found


def download_object(found: Object, path: Path, advance: Callable[[int], None] = lambda _: None) -> None:
    """Downloads an object to a file, which appears complete or not at all.

    Ranges are fetched in parallel and retried separately. If the call is killed, finished ranges stay beside `path` for the
    next call. Memory is bounded for any size.

    It is not synced to the disk: `write_directory` syncs an artifact's folder as a whole, and `cache` compares the checksum of
    a copy at every use.

    Args:
        found: the object, from `stat` or `list_objects`.
        path: the file; replaced if it exists.
        advance: called with the size in bytes of every range that arrived.

    Raises:
        InputError: the object is gone.
        DamagedError: the received bytes do not match the object's checksum.
    """
    location = found.location
    path.parent.mkdir(parents=True, exist_ok=True)
    check_space(path.parent, found.size)
    # The name contains the generation, so that parts of different versions never mix.
    partial = hidden_beside(path, f".{found.generation}.partial")
    done_file = partial.with_suffix(".done")
    for left in (partial, done_file):
        expect_file(left)
    done = set(done_file.read_text().split()) if partial.exists() and done_file.exists() else set()
    starts = [start for start in range(0, found.size, RANGE_BYTES) if str(start) not in done]
    advance(sum(min(RANGE_BYTES, found.size - int(start)) for start in done))
    handle = os.open(partial, os.O_RDWR | os.O_CREAT)
    lock = threading.Lock()

    def get(start: int) -> None:
        stop = min(start + RANGE_BYTES, found.size)
        call("read", location, lambda: _fetch_to(found, start, stop, handle))
        with lock, done_file.open("a") as file:
            file.write(f"{start}\n")
        advance(stop - start)

    try:
        os.ftruncate(handle, found.size)
        if len(starts) > 1:
            with ThreadPoolExecutor(min(STREAMS, len(starts))) as pool:
                list(pool.map(get, starts))
        else:
            list(map(get, starts))
    finally:
        os.close(handle)
    if file_crc32c(partial) != found.crc32c:
        partial.unlink()
        done_file.unlink(missing_ok=True)
        raise DamagedError(
            f"The download of {location} does not match its checksum.",
            expected=f"crc32c {found.crc32c}",
            fix="run again; if it stays so, the object itself is damaged",
        )
    partial.replace(path)
    done_file.unlink(missing_ok=True)


def upload(
    path: Path, location: GcsLocation, advance: Callable[[int], None] = lambda _: None, if_generation: int | None = None
) -> Object:
    """Uploads a file as one object, which appears complete or not at all.

    Raises:
        ChangedError: the object is not at `if_generation`.
        DamagedError: the stored object does not match the file.
    """
    size, checksum = path.stat().st_size, file_crc32c(path)
    if size <= RANGE_BYTES:
        result = write_bytes(location, path.read_bytes(), if_generation)
    else:

        def send(blob: storage.Blob) -> None:
            # A resumable session; each chunk is retried separately.
            blob.chunk_size = RANGE_BYTES
            blob.upload_from_filename(
                str(path), if_generation_match=if_generation, retry=chunk_retry(), timeout=120, checksum=_NO_CHECKSUM
            )

        result = _put(location, size, checksum, if_generation, send)
    advance(size)
    return result


def crc32c_of(data: bytes) -> str:
    """crc32c of bytes, as the service writes it."""
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def file_crc32c(path: Path) -> str:
    """crc32c of a file, as the service writes it; reads in pieces."""
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while piece := file.read(_BUFFER):
            checksum.update(piece)
    return base64.b64encode(checksum.digest()).decode()


def _existing(location: GcsLocation, generation: int | None) -> Object:
    found = stat(location)
    if found is None or (generation is not None and found.generation != generation):
        raise InputError(f"There is no object {location}.", fix="check bucket and name, or run the step that writes it")
    return found


def _fetch(found: Object, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of an object at its known generation."""
    if start == stop:
        return b""
    blob = _bucket(found.location).blob(found.location.name, generation=found.generation)
    data = blob.download_as_bytes(
        start=start, end=stop - 1, raw_download=True, checksum=_NO_CHECKSUM, retry=_NO_RETRIES, timeout=60
    )
    if len(data) != stop - start:
        raise BadBytesError(f"{len(data)} bytes of {stop - start}")
    return data


def _fetch_to(found: Object, start: int, stop: int, handle: int) -> None:
    blob = _bucket(found.location).blob(found.location.name, generation=found.generation)
    writer = _RangeWriter(handle, start)
    # The client hands over 8 KiB at a time; written as they are, threads take turns more than they work.
    with io.BufferedWriter(writer, _BUFFER) as buffered:
        blob.download_to_file(
            buffered, start=start, end=stop - 1, raw_download=True, checksum=_NO_CHECKSUM, retry=_NO_RETRIES, timeout=60
        )
    if writer.position != stop:
        raise BadBytesError(f"{writer.position - start} bytes of {stop - start}")


class _RangeWriter(io.RawIOBase):
    """A file object with its own write position, so that ranges share one file descriptor."""

    def __init__(self, handle: int, position: int) -> None:
        self._handle, self.position = handle, position

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        count = os.pwrite(self._handle, data, self.position)
        self.position += count
        return count


def _checked(data: bytes, found: Object) -> bytes:
    if crc32c_of(data) != found.crc32c:
        raise BadBytesError(f"crc32c {crc32c_of(data)}, expected {found.crc32c}")
    return data


def _put(
    location: GcsLocation, size: int, checksum: str, if_generation: int | None, send: Callable[[storage.Blob], None]
) -> Object:
    """Sends an object's contents until the service holds exactly these."""

    def put() -> Object:
        blob = _bucket(location).blob(location.name)
        blob.crc32c = checksum  # the service refuses contents that do not match the checksum
        try:
            send(blob)
            stored = _object(blob)
        except google_exceptions().PreconditionFailed:
            # Our own earlier attempt may have succeeded although its answer was lost.
            found = stat(location)
            if found is None or (found.size, found.crc32c) != (size, checksum):
                if stat(location) != found:
                    raise BadBytesError("metadata that differs from one look to the next") from None
                raise ChangedError(
                    f"{location} was written by somebody else.", expected=f"generation {if_generation}", fix="run again"
                ) from None
            return found
        if (stored.size, stored.crc32c) != (size, checksum):
            raise BadBytesError(f"stored {stored.size} bytes, crc32c {stored.crc32c}; sent {size}, {checksum}")
        return stored

    return call("write", location, put)


def _object(blob: Any) -> Object:
    """What is known of a `storage.Blob` that the service described, so that it has all of it."""
    location = GcsLocation(blob.bucket.name, blob.name)
    created = blob.time_created.timestamp() if blob.time_created else 0.0
    return Object(location, int(blob.size), blob.crc32c, int(blob.generation), created)


def _bucket(location: GcsLocation) -> storage.Bucket:
    return _client().bucket(location.bucket)


def _client() -> storage.Client:
    return _client_for(os.environ.get("STORAGE_EMULATOR_HOST"))


@functools.cache
def _client_for(emulator: str | None) -> storage.Client:
    """One client for the process; anonymous against an emulator."""
    # Otherwise the first use of a bucket requests the bucket itself too, which takes an unneeded permission.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    import requests.adapters
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    client = storage.Client(project="emulated", credentials=AnonymousCredentials()) if emulator else storage.Client()
    # As many pooled connections as threads.
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=4 * STREAMS)
    for scheme in ("http://", "https://"):
        client._http.mount(scheme, adapter)
    return client
