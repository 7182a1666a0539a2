"""A proxy that breaks HTTP in the ways networks and Google's servers do, by a schedule that a test writes or draws.

It stands in front of any server that speaks HTTP; besides HTTP it knows the header x-goog-hash and the JSON of an object.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl

from servers.local_http import Exchange, Headers, LocalServer, Request, end_to_end, forward

TRICKLE = 8  # pieces of a slow body


@dataclass(frozen=True)
class Status:
    """Answers with this status; the server behind hears nothing."""

    code: int
    retry_after: int | None = None  # seconds


@dataclass(frozen=True)
class ResetBody:
    """Resets the connection after this many bytes of the answer's body, at the latest before its last byte."""

    after_bytes: int


@dataclass(frozen=True)
class ResetRequest:
    """Resets the connection after this many bytes of the request's body; the server behind hears nothing."""

    after_bytes: int


@dataclass(frozen=True)
class Truncate:
    """Ends the connection in order, but after this many bytes of the body, at the latest before its last byte."""

    after_bytes: int


@dataclass(frozen=True)
class Corrupt:
    """Flips a bit of one byte of the answer's body, counted modulo its length."""

    at_byte: int


@dataclass(frozen=True)
class WrongChecksum:
    """Makes the checksums wrong that the answer holds: those in x-goog-hash, and crc32c and md5Hash of an object's JSON."""


@dataclass(frozen=True)
class Slow:
    """Takes this long: half before the answer's head, half in the middle of its body."""

    seconds: float


@dataclass(frozen=True)
class LoseResponse:
    """Lets the server behind do what was asked, and resets the connection without an answer."""


Fault = Status | ResetBody | ResetRequest | Truncate | Corrupt | WrongChecksum | Slow | LoseResponse
Faults = Callable[[Request], Fault | None]


class FaultProxy:
    """Stands in front of the server at the URL `upstream` for the length of a `with`; by default it breaks nothing.

    `faults` is asked once for each request, one at a time, in the order of their numbers. A client may name the proxy as its
    server or as its forward proxy (HTTP_PROXY); either way, requests go to `upstream`.
    """

    url: str

    def __init__(self, upstream: str, faults: Faults = lambda request: None) -> None:
        self._upstream = upstream
        self._faults = faults
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._server = LocalServer(self._serve)
        self.log: list[tuple[Request, Fault | None, int]] = []
        """Request, fault and status, before the answer leaves; 0 where the server behind was not asked or did not answer."""

    def __enter__(self) -> Self:
        self._server.__enter__()
        self.url = self._server.url
        self._closing = threading.Event()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.set()
        self._server.__exit__(kind, error, trace)

    def _serve(self, exchange: Exchange) -> None:
        with self._lock:
            request = exchange.logged(self._numbers)
            fault = self._faults(request)
        if isinstance(fault, ResetRequest):
            exchange.read_body(fault.after_bytes)
            self.log.append((request, fault, 0))
            exchange.reset()
            return
        body = exchange.read_body()
        if isinstance(fault, Status):
            self.log.append((request, fault, fault.code))
            exchange.answer(fault.code, _status_headers(fault), json.dumps({"error": {"code": fault.code}}).encode())
            return
        with ExitStack() as stack:
            try:
                response = stack.enter_context(forward(exchange, self._upstream, body))
            except (ConnectionError, HTTPException):
                self.log.append((request, fault, 0))
                exchange.close_connection = True
                return
            self.log.append((request, fault, response.status))
            self._answer(exchange, response, fault)

    def _answer(self, exchange: Exchange, response: HTTPResponse, fault: Fault | None) -> None:
        headers = [(name, self._local(value) if name.lower() == "location" else value) for name, value in response.getheaders()]
        headers = end_to_end(headers)
        if fault is None:
            exchange.relay(response, headers)
            return
        body = response.read()
        match fault:
            case LoseResponse():
                exchange.reset()
            case ResetBody(after_bytes):
                self._break_off(exchange, response, headers, body, after_bytes)
                exchange.reset()
            case Truncate(after_bytes):
                self._break_off(exchange, response, headers, body, after_bytes)
            case Corrupt(at_byte):
                self._write(exchange, response, headers, _flip(body, at_byte) if body else body)
            case WrongChecksum():
                self._write(exchange, response, *_wrong_checksums(headers, body))
            case Slow(seconds):
                self._closing.wait(seconds / 2)
                self._write(exchange, response, headers, body, seconds / 2)

    def _local(self, location: str) -> str:
        """The way to `location` through this proxy."""
        return self.url + location.removeprefix(self._upstream) if location.startswith(self._upstream) else location

    def _write(self, exchange: Exchange, response: HTTPResponse, headers: Headers, body: bytes, seconds: float = 0) -> None:
        """Writes a whole answer, its body trickling for `seconds`."""
        exchange.send_head(response.status, _with_length(headers, body, exchange), response.reason)
        step = -(-len(body) // (TRICKLE if seconds else 1)) or 1
        for start in range(0, len(body), step):
            self._closing.wait(seconds / TRICKLE)
            exchange.wfile.write(body[start : start + step])

    def _break_off(self, exchange: Exchange, response: HTTPResponse, headers: Headers, body: bytes, after_bytes: int) -> None:
        """Writes the head and the beginning of the body, or nothing if there is no body that could be cut."""
        exchange.close_connection = True
        if body:
            exchange.send_head(response.status, _with_length(headers, body, exchange), response.reason)
            exchange.wfile.write(body[: min(after_bytes, len(body) - 1)])


def _status_headers(fault: Status) -> Headers:
    retry_after = [] if fault.retry_after is None else [("Retry-After", str(fault.retry_after))]
    return [("Content-Type", "application/json"), *retry_after]


def _with_length(headers: Headers, body: bytes, exchange: Exchange) -> Headers:
    """The headers with the body's true length; an answer to HEAD keeps the length it announces."""
    if exchange.command == "HEAD":
        return headers
    return [(name, value) for name, value in headers if name.lower() != "content-length"] + [("Content-Length", str(len(body)))]


def _flip(content: bytes, at_byte: int) -> bytes:
    at_byte %= len(content)
    return content[:at_byte] + bytes([content[at_byte] ^ 1]) + content[at_byte + 1 :]


def _wrong(checksum: str) -> str:
    """Another checksum of the same length, both in base64."""
    try:
        return base64.b64encode(_flip(base64.b64decode(checksum), 0)).decode()
    except binascii.Error:
        return checksum


def _wrong_checksums(headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    def wrong_hash(value: str) -> str:
        parts = (part.partition("=") for part in value.split(","))
        return ",".join(f"{kind}={_wrong(checksum)}" for kind, _, checksum in parts)

    headers = [(name, wrong_hash(value) if name.lower() == "x-goog-hash" else value) for name, value in headers]
    if body.startswith(b"{"):
        try:
            resource = json.loads(body)
        except ValueError:
            return headers, body
        if resource.get("kind") == "storage#object":
            resource |= {key: _wrong(resource[key]) for key in ("crc32c", "md5Hash") if key in resource}
            body = json.dumps(resource).encode()
    return headers, body


class RandomSchedule:
    """Faults drawn from a seed for a share of requests.

    What a request meets depends on the seed, on the request and on how often it came before, not on the order of requests from
    several threads. No request meets more than three faults, so that a client that tries on succeeds, however much of its work
    it does again for one bad answer. But for one seed in ten the fault is permanent: every request is answered 503.
    """

    def __init__(self, seed: int, share: float) -> None:
        self.permanent = random.Random(f"{seed} permanent").random() < 0.1
        self._seed = seed
        self._share = share
        self._seen: Counter[tuple[object, ...]] = Counter()
        self._faults: Counter[tuple[object, ...]] = Counter()

    def __call__(self, request: Request) -> Fault | None:
        if self.permanent:
            return Status(503)
        # What servers make up, a session or a generation, differs between two runs of one test.
        query = tuple(sorted(pair for pair in parse_qsl(request.query) if pair[0] not in ("upload_id", "generation")))
        key = (request.method, request.path, query, request.range)
        draw = random.Random(f"{self._seed} {key} {self._seen[key]}")
        self._seen[key] += 1
        if draw.random() >= self._share or self._faults[key] == 3:
            return None
        self._faults[key] += 1
        return _draw(draw, request)


def random_schedule(seed: int, share: float = 0.3) -> RandomSchedule:
    """Faults of all kinds for `share` of the requests; `permanent` of the schedule says that no client can succeed."""
    return RandomSchedule(seed, share)


def _draw(draw: random.Random, request: Request) -> Fault:
    place = int(2 ** draw.uniform(0, 20)) - 1  # bytes, of any order of magnitude up to 1 MiB
    faults: list[Fault] = [
        Status(draw.choice((408, 429, 500, 502, 503, 504)), draw.choice((None, 0))),
        ResetBody(place),
        ResetRequest(place),
        Truncate(place),
        WrongChecksum(),
        Slow(draw.uniform(0.01, 0.1)),
        LoseResponse(),
    ]
    if request.method == "GET" and ("alt=media" in request.query or not request.path.startswith("/storage/v1/")):
        faults.append(Corrupt(place))  # of content only: no client can tell a wrong digit in JSON, which has no checksum
    return draw.choice(faults)
