"""Images that rows name by `https://` addresses: fetched before rows are prepared, into a cache below `$PALIGEMMA_CACHE`.

CACHE/web/objects/AB/ABCD...    an image file, named by its sha256
CACHE/web/addresses/EF/EF01...  what an address gave last: a JSON file, named by the sha256 of the address

Both are written atomically, so that processes may share them, and an image is hashed again whenever it is read. An address
that was asked before is asked whether its image has changed (RFC 9110, 13.1: If-None-Match, If-Modified-Since), and fetched
again if its server does not say how to ask. Nothing is asked if the row has the sha256 of an image that is there.

Addresses are a stranger's. `web_client` decides which hosts are contacted; here are the limits of size and time.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import google_crc32c
import requests
from pydantic import BaseModel, ConfigDict, Field

from paligemma.data.images import MAX_BYTES, ImageError, read_image_file
from paligemma.data.rows import Row, RowError
from paligemma.errors import DamagedError
from paligemma.foreign_json import SMALL_BYTES, read_model
from paligemma.progress import WorkProgress
from paligemma.retry import RETRYABLE, BadBytesError, is_transient, retrying, status_of
from paligemma.safe_names import Sha256
from paligemma.storage.access import explain_refusal
from paligemma.storage.cache import CACHE_VARIABLE, cache_folder
from paligemma.storage.disk_space import explain_full_disk
from paligemma.storage.gcs import crc32c_of
from paligemma.web_address import RefusedError, WebAddress, parse_web_address
from paligemma.web_client import Connections, TooSlowError, get_file

THREADS = 16
"""Images fetched at once."""

SILENCE = 30.0
"""Seconds to wait for a connection, and from one byte to the next."""

WHOLE = 120.0
"""Seconds for an image in all, in each try."""

TRYING = 60.0
"""Seconds in which a request is sent again."""

MOST_FAILURES = 3
"""Images of a host that are tried for `TRYING` in vain, one after the other. Then no other is asked of it."""

_PIECE = 64 * 1024
_LONGEST = 1000  # characters of a validator
_OLD = 24 * 3600  # seconds after which an unfinished file is nobody's
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))

log = logging.getLogger("paligemma.data")


@dataclass(frozen=True)
class WebImage:
    """What an address gave: a file in the cache, or why there is none.

    Attributes:
        sha256, bytes, crc32c: of the file; the checksum is as Cloud Storage writes it.
        code, message: why there is none, see `rows.REASONS`; empty if there is one.
    """

    sha256: str = ""
    bytes: int = 0
    crc32c: str = ""
    code: str = ""
    message: str = ""

    @property
    def error(self) -> RowError:
        """The error of rows whose address gave none."""
        return RowError(self.code, self.message)

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            RowError: there is none.
            DamagedError: the file in the cache was changed or removed since it was fetched.
        """
        if self.code:
            raise self.error
        path = _object(self.sha256)
        try:
            data = read_image_file(path)
        except ImageError as error:
            raise _changed(path) from error
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise _changed(path)
        return data


def _changed(path: Path) -> DamagedError:
    return DamagedError("A fetched image was changed or removed.", where=path, fix="run again, which fetches it again")


class _Known(BaseModel):
    """What an address gave last, and how to ask whether that has changed. Without `etag` and `modified`, nothing tells."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]
    crc32c: str
    etag: str = ""
    modified: str = ""

    @property
    def image(self) -> WebImage:
        return WebImage(self.sha256, self.bytes, self.crc32c)

    @property
    def conditions(self) -> dict[str, str]:
        """The headers of a request that is answered with 304 if the image is the same."""
        headers = {"If-None-Match": self.etag, "If-Modified-Since": self.modified}
        return {name: value for name, value in headers.items() if value}


def fetch_images(rows: Iterable[Row]) -> dict[str, WebImage]:
    """Fetches the images of all rows with an address, each once, and shows how far it is.

    Returns:
        What each address gave, by the image's name.

    Raises:
        InputError: the cache is not writable, or its disk is full.
    """
    wanted: dict[str, tuple[str, set[str]]] = {}
    for image in (image for row in rows for image in row.images):
        if image.address:
            wanted.setdefault(image.name, (image.address, set()))[1].add(image.sha256)
    if not wanted:
        return {}
    folder = cache_folder() / "web"
    fetcher = _Fetcher(folder)
    found: dict[str, WebImage] = {}
    pool = ThreadPoolExecutor(THREADS, "fetch")
    with (
        explain_refusal(folder, fix=f"point ${CACHE_VARIABLE} to a folder of yours"),
        explain_full_disk(folder),
        WorkProgress("fetching images", "images", len(wanted)) as progress,
    ):
        try:
            fetcher.begin()
            for name, image in _in_threads(pool, fetcher, wanted):
                found[name] = image
                progress.advance(1, fetcher.facts())
        finally:
            fetcher.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    refused = Counter(image.code for image in found.values() if image.code)
    log.info("images on the web: %s%s", fetcher.facts(), "".join(f", {count} {code}" for code, count in refused.most_common()))
    return found


def _in_threads(
    pool: ThreadPoolExecutor, fetcher: _Fetcher, wanted: Mapping[str, tuple[str, set[str]]]
) -> Iterator[tuple[str, WebImage]]:
    """Yields what each address gave, as soon as it did."""
    coming: dict[Future[WebImage], str] = {}
    left = iter(wanted.items())
    while True:
        for name, (address, hashes) in islice(left, 4 * THREADS - len(coming)):
            sha256 = next(iter(hashes)) if len(hashes) == 1 else ""  # of two rows that contradict each other, one is wrong
            coming[pool.submit(fetcher.image, name, address, sha256)] = name
        if not coming:
            return
        for future in wait(coming, return_when=FIRST_COMPLETED).done:
            yield coming.pop(future), future.result()


class _Fetcher:
    """Fetches single images; its methods may be called in many threads."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.stop = folder, threading.Event()
        self._own = secrets.token_hex(8)  # processes of two containers may share the cache, and have the same number
        self._lock = threading.Lock()
        self._own_connections = threading.local()  # which end with their threads
        self._failures: Counter[str] = Counter()  # in a row, by host
        self._fetched, self._bytes, self._unchanged = 0, 0, 0

    def begin(self) -> None:
        """Makes the folder, and removes what killed processes left unfinished there."""
        partial = self._folder / "partial"
        partial.mkdir(parents=True, exist_ok=True)
        for left in partial.iterdir():
            try:
                if time.time() - left.stat().st_mtime > _OLD:
                    left.unlink()
            except FileNotFoundError:
                continue  # another process has removed it

    def facts(self) -> str:
        """What was fetched, for people."""
        with self._lock:
            return f"{self._fetched} fetched ({self._bytes / 1e6:.1f} MB), {self._unchanged} unchanged"

    def image(self, name: str, text: str, sha256: str) -> WebImage:
        """What an address gives.

        Args:
            name: the address as it may be shown.
            text: the address as the row has it.
            sha256: what the rows say that the image's sha256 is; empty if they do not.
        """
        try:
            return self._image(name, text, sha256)
        except RowError as error:
            return WebImage(code=error.code, message=f"{name!r}: {error.message}")

    def _image(self, name: str, text: str, sha256: str) -> WebImage:
        if sha256 and (image := _stored(sha256)) is not None:
            self._count_unchanged()
            return image
        try:
            # What is no ASCII is written as its UTF-8 in percent escapes, as browsers do (RFC 3987, 3.1).
            address = parse_web_address(quote(text.strip(), safe=_PRINTABLE), "The address")
        except RefusedError as error:
            raise RowError("image_address_unsafe", error.what) from None
        place = self._folder / "addresses" / _below(hashlib.sha256(address.url.encode()).hexdigest())
        known = _read_known(place)
        try:
            self._expect_answers(address.host)
            found = retrying(lambda: self._ask(address, known), TRYING)
        except RefusedError as error:
            clear = "; what comes over plain http may be changed on its way" if address.scheme == "http" else ""
            raise RowError("image_address_unsafe", error.what.removesuffix(".") + clear) from None
        except RowError:
            self._answered(address.host)
            raise
        except Exception as error:  # each client has exceptions of its own
            raise self._failure(address.host, error) from None
        self._answered(address.host)
        if found is known:
            self._count_unchanged()
        elif found != known:
            self._put(place, found.model_dump_json().encode())
        return found.image

    def _ask(self, address: WebAddress, known: _Known | None) -> _Known:
        """What the address gives: `known` itself if that has not changed."""
        headers = {"Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "paligemma-prepare-data"}
        kept = self._connections()
        with get_file(address, headers | (known.conditions if known else {}), SILENCE, WHOLE, kept) as response:
            if response.status_code == 304 and known is not None:
                return known
            if response.status_code in RETRYABLE:
                response.raise_for_status()
            fault = _fault_of(response)
            if fault is None:
                return self._store(response)
        raise fault  # after the connection was put back: a missing image costs the next no handshake

    def _connections(self) -> Connections:
        found = getattr(self._own_connections, "found", None)
        if found is None:
            found = self._own_connections.found = Connections()
        return found

    def _store(self, response: requests.Response) -> _Known:
        """Reads an answer into the cache, bounded in size."""
        said = response.headers.get("Content-Length", "")
        length = int(said) if said.isascii() and said.isdigit() and len(said) < 20 else None
        sha256, crc32c, size = hashlib.sha256(), google_crc32c.Checksum(), 0
        partial = self._folder / "partial" / f"{self._own}-{threading.get_ident()}"
        try:
            with partial.open("wb") as file:
                while piece := response.raw.read1(_PIECE, decode_content=False):  # `read` waits until a piece is full
                    size += len(piece)
                    if max(size, length or 0) > MAX_BYTES:
                        raise RowError("image_too_large", f"it has more than {MAX_BYTES} bytes")
                    if self.stop.is_set():
                        raise InterruptedError("nobody waits for it any more")
                    sha256.update(piece)
                    crc32c.update(piece)
                    file.write(piece)
            if length is not None and size != length:
                raise BadBytesError(f"{size} bytes of {length}")
            path = _object(sha256.hexdigest())
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        with self._lock:
            self._fetched, self._bytes = self._fetched + 1, self._bytes + size
        checksum = base64.b64encode(crc32c.digest()).decode()
        return _Known(sha256=sha256.hexdigest(), bytes=size, crc32c=checksum, **_validators(response.headers))

    def _put(self, path: Path, data: bytes) -> None:
        """Replaces a file atomically. It need not be synced, because whatever is read here is checked."""
        partial = self._folder / "partial" / f"{self._own}-{threading.get_ident()}"
        partial.write_bytes(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(path)

    def _expect_answers(self, host: str) -> None:
        with self._lock:
            failures = self._failures[host]
        if failures >= MOST_FAILURES:
            raise RowError(
                "image_unavailable", f"{host} did not answer for {MOST_FAILURES} other images, and is not asked again"
            )

    def _answered(self, host: str) -> None:
        with self._lock:
            if self._failures[host] < MOST_FAILURES:
                self._failures[host] = 0

    def _failure(self, host: str, error: Exception) -> Exception:
        """The row's error after the last try; the error itself if it has nothing to do with the server."""
        if not isinstance(error, requests.RequestException) and not is_transient(error):
            return error
        with self._lock:
            self._failures[host] += 1
        if (status := status_of(error)) is not None:
            what = f"the server answers with HTTP {status}"
        elif isinstance(error, requests.exceptions.SSLError):
            what = f"there is no safe connection to {host}: its certificate is not valid, or it breaks off"
        elif isinstance(error, TooSlowError):
            what = f"it takes more than {WHOLE:.0f} s"
        elif isinstance(error, requests.TooManyRedirects):
            what = "it is redirected again and again"
        else:
            what = f"{host} does not answer ({type(error).__name__})"
        return RowError("image_unavailable", what)

    def _count_unchanged(self) -> None:
        with self._lock:
            self._unchanged += 1


def _fault_of(response: requests.Response) -> RowError | None:
    """Why an answer holds no image; None if it does, as far as its head tells."""
    if response.status_code in (404, 410):
        return RowError("image_missing", f"the server has no such file (HTTP {response.status_code})")
    if response.status_code != 200:
        return RowError("image_forbidden", f"the server answers with HTTP {response.status_code}")
    if (packed := response.headers.get("Content-Encoding", "identity").lower()) != "identity":
        return RowError("image_unreadable", f"the server packs it ({packed[:40]}), which it was not asked to do")
    return None


def _object(sha256: str) -> Path:
    return cache_folder() / "web" / "objects" / _below(sha256)


def _below(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"


def _stored(sha256: str) -> WebImage | None:
    """The image in the cache that has this hash; None if there is none, or a damaged one."""
    try:
        data = WebImage(sha256).read()
    except DamagedError:
        return None
    return WebImage(sha256, len(data), crc32c_of(data))


def _read_known(place: Path) -> _Known | None:
    """What an address gave last, if that is in the cache, and was not changed there."""
    if not place.is_file():
        return None
    try:
        known = read_model(place, _Known, "What is known of an address", most=SMALL_BYTES)
    except DamagedError:
        return None
    return known if known.image == _stored(known.sha256) else None


def _validators(headers: Mapping[str, str]) -> dict[str, str]:
    """How to ask whether an image has changed, as far as its server says.

    A date tells only if it is at least a second before that of the answer: in the same second, it may change again (RFC 9110,
    8.8.2.2).
    """
    etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
    try:
        ages = (parsedate_to_datetime(headers.get("Date", "")) - parsedate_to_datetime(modified)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        ages = 0.0
    found = {"etag": etag, "modified": modified if ages >= 1 else ""}
    return {name: value for name, value in found.items() if value.isascii() and value.isprintable() and len(value) <= _LONGEST}
