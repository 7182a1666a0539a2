"""A relay in a process of its own, between a client and an HTTP server, that makes loopback like the way to a real bucket.

It adds a round trip to every request, limits the bandwidth of each connection, and counts bytes. It breaks nothing: for that
there is `fault_proxy`.
"""

from __future__ import annotations

import multiprocessing
import selectors
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Carried:
    """Bytes since the start, with HTTP's headers: up from clients, down from the server."""

    up: int
    down: int

    def __sub__(self, earlier: Carried) -> Carried:
        return Carried(self.up - earlier.up, self.down - earlier.down)


class Relay:
    """Forwards connections to a server for the length of a `with`.

    Args:
        upstream: the server's URL, http://HOST:PORT.
        round_trip: seconds that each request waits.
        bandwidth: bytes a second that each direction of a connection carries.
    """

    url: str
    """What clients talk to instead of the server."""

    def __init__(self, upstream: str, round_trip: float, bandwidth: float) -> None:
        host, _, port = upstream.removeprefix("http://").partition(":")
        self._upstream = (host, int(port))
        self._round_trip, self._bandwidth = round_trip, bandwidth

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("fork")
        self._up, self._down = context.Value("Q"), context.Value("Q")
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            arguments = (listener, self._upstream, self._round_trip, self._bandwidth, self._up, self._down)
            self._process = context.Process(target=_relay, args=arguments, daemon=True)
            self._process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.join()

    def carried(self) -> Carried:
        """What went through until now."""
        return Carried(self._up.value, self._down.value)


def _relay(
    listener: socket.socket,
    upstream: tuple[str, int],
    round_trip: float,
    bandwidth: float,
    up: Synchronized[int],
    down: Synchronized[int],
) -> None:
    def carry(client: socket.socket) -> None:
        # Either side may leave when it likes, which is no fault of the relay's.
        with (
            suppress(ConnectionError),
            client,
            socket.create_connection(upstream) as server,
            selectors.DefaultSelector() as ready,
        ):
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            free, counters = {client: 0.0, server: 0.0}, {client: up, server: down}
            answered = True
            while True:
                for key, _ in ready.select():
                    data = key.fileobj.recv(256 * 1024)
                    if not data:
                        return
                    with counters[key.fileobj].get_lock():
                        counters[key.fileobj].value += len(data)
                    if key.fileobj is client and answered:
                        time.sleep(round_trip)
                    answered = key.fileobj is server
                    free[key.fileobj] = max(free[key.fileobj], time.monotonic()) + len(data) / bandwidth
                    key.data.sendall(data)
                    time.sleep(max(0.0, free[key.fileobj] - time.monotonic()))

    while True:
        client, _ = listener.accept()
        threading.Thread(target=carry, args=(client,), daemon=True).start()
