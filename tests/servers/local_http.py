"""HTTP/1.1 on 127.0.0.1 for the servers of this folder: listening in threads, bodies, forwarding, and breaking a connection.

It knows nothing about Cloud Storage or Kaggle.
"""

from __future__ import annotations

import fcntl
import socket
import ssl
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

BLOCK = 64 * 1024
PROXY_HEADERS = ("proxy-authenticate", "proxy-authorization", "proxy-connection")
HOP_BY_HOP = {"connection", "expect", "keep-alive", *PROXY_HEADERS, "te", "trailer", "transfer-encoding", "upgrade"}

Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Request:
    """What a server's log keeps of a request."""

    number: int  # counting from 0
    method: str
    path: str  # percent-encoded, without the query
    query: str
    range: str | None  # the bytes asked for, or those sent: the header Range, or Content-Range


class Exchange(BaseHTTPRequestHandler):
    """One request on a kept-alive connection, and the means to answer it, or not to."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are separate writes: Nagle would add 40 ms between them

    def setup(self) -> None:
        super().setup()
        self._listener.connections.add(self.connection)

    def finish(self) -> None:
        self._listener.connections.discard(self.connection)
        super().finish()

    def serve(self) -> None:
        self._listener.serve(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_CONNECT = serve  # noqa: N815

    @property
    def _listener(self) -> _Listener:
        assert isinstance(self.server, _Listener)
        return self.server

    @property
    def target(self) -> str:
        """Path and query, also when the client takes this server for its forward proxy and sends a whole URL."""
        if not self.path.startswith("http://"):
            return self.path
        url = urlsplit(self.path)
        return (url.path or "/") + (f"?{url.query}" if url.query else "")

    def logged(self, numbers: Iterator[int]) -> Request:
        """This request as a log keeps it, with the next of `numbers`."""
        path, _, query = self.target.partition("?")
        span = self.headers.get("Range") or self.headers.get("Content-Range")
        return Request(next(numbers), self.command, path, query, span)

    def read_body(self, limit: int | None = None) -> bytes:
        """The request's body, or its first `limit` bytes. Raises ConnectionError if the client stops before that."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self._chunks())[:limit]
        length = int(self.headers.get("Content-Length", 0))
        wanted = length if limit is None else min(limit, length)
        body = self.rfile.read(wanted)
        if len(body) < wanted:
            raise ConnectionError(f"the client sent {len(body)} of {wanted} bytes")
        return body

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().partition(b";")[0] or b"0", 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers

    def send_head(self, status: int, headers: Iterable[tuple[str, str]], reason: str | None = None) -> None:
        """Writes the status line and exactly these headers."""
        self.send_response_only(status, reason)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def answer(self, status: int, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> None:
        """Writes a whole answer; its Content-Length is that of `body`."""
        self.send_head(status, [*headers, ("Content-Length", str(len(body)))])
        if self.command != "HEAD":
            self.wfile.write(body)

    def relay(self, response: HTTPResponse, headers: Headers) -> None:
        """Streams an upstream's answer; if the upstream breaks off, so does this."""
        has_body = self.command != "HEAD" and response.status not in (204, 304)
        chunked = has_body and response.length is None
        self.send_head(response.status, [*headers, *([("Transfer-Encoding", "chunked")] if chunked else [])], response.reason)
        if not has_body:
            return
        while block := response.read1(BLOCK) if chunked else response.read(BLOCK):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        elif response.length:
            self.close_connection = True

    def reset(self) -> None:
        """Breaks the connection by a TCP reset, when the client's side has all that was written: a reset discards the rest."""
        deadline = time.monotonic() + 1
        while self._unacknowledged() and time.monotonic() < deadline:
            time.sleep(0.001)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()  # it holds the socket open
        self.connection.close()

    def _unacknowledged(self) -> int:
        return struct.unpack("i", fcntl.ioctl(self.connection, termios.TIOCOUTQ, b"\0" * 4))[0]

    def log_message(self, format: str, *args: object) -> None:
        pass  # tests read the servers' own logs


def end_to_end(headers: Iterable[tuple[str, str]]) -> Headers:
    """The headers that a proxy passes on."""
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]


@contextmanager
def send(upstream: str, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes) -> Iterator[HTTPResponse]:
    """Sends a request to the server at the URL `upstream`; `headers` must hold Host, not Content-Length."""
    connection = HTTPConnection(urlsplit(upstream).netloc, timeout=60)
    try:
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        if body or method in ("POST", "PUT", "PATCH"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        yield connection.getresponse()
    finally:
        connection.close()


@contextmanager
def forward(exchange: Exchange, upstream: str, body: bytes) -> Iterator[HTTPResponse]:
    """Sends the request on with the client's own Host: a server that builds links from it sends the client back this way."""
    headers = [(name, value) for name, value in end_to_end(exchange.headers.items()) if name.lower() != "content-length"]
    with send(upstream, exchange.command, exchange.target, headers, body) as response:
        yield response


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, serve: Callable[[Exchange], None]) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.serve = serve
        self.connections: set[socket.socket] = set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):  # a client may leave when it likes
            super().handle_error(request, client_address)


class LocalServer:
    """Calls `serve` for every request, each connection in a thread of its own, for the length of a `with`."""

    url: str
    """http://127.0.0.1:PORT, without a slash at the end."""
    tls: ssl.SSLContext | None = None

    def __init__(self, serve: Callable[[Exchange], None]) -> None:
        self._serve = serve

    def __enter__(self) -> Self:
        self._listener = _Listener(self._serve)
        if self.tls is not None:
            # The handshake is the connection's thread's: a client that does not shake hands holds up no other.
            self._listener.socket = self.tls.wrap_socket(self._listener.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"http://127.0.0.1:{self._listener.server_port}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        for connection in tuple(self._listener.connections):  # a kept-alive connection must not outlive its server
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
