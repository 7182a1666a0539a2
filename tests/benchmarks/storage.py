"""Our storage layer against the plain Google client, over a connection like one to a real bucket.

    .venv/bin/python tests/benchmarks/storage.py

One large object and many small ones, up and down, each way in turn in one run; prints seconds, MB/s and the ratio. The server
is a real fake-gcs-server; between lies a relay process that adds a round trip to every request and limits every connection's
bandwidth, because on a bare loopback there is no distance to hide, which is what parallel transfers are for.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import selectors
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from paligemma.storage import gcs
from paligemma.storage.location import GcsLocation
from servers.gcs import GcsServer

BUCKET = "bucket-of-benchmarks"


def relay(listener: socket.socket, upstream: tuple[str, int], round_trip: float, bandwidth: float) -> None:
    """Forwards connections; each request waits `round_trip` seconds, each direction carries `bandwidth` bytes a second."""

    def carry(client: socket.socket) -> None:
        with client, socket.create_connection(upstream) as server, selectors.DefaultSelector() as ready:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            free = {client: 0.0, server: 0.0}
            answered = True
            while True:
                for key, _ in ready.select():
                    data = key.fileobj.recv(256 * 1024)
                    if not data:
                        return
                    if key.fileobj is client and answered:
                        time.sleep(round_trip)
                    answered = key.fileobj is server
                    free[key.fileobj] = max(free[key.fileobj], time.monotonic()) + len(data) / bandwidth
                    key.data.sendall(data)
                    time.sleep(max(0.0, free[key.fileobj] - time.monotonic()))

    while True:
        client, _ = listener.accept()
        threading.Thread(target=carry, args=(client,), daemon=True).start()


def measure(what: str, size: int, plain: Callable[[], object], ours: Callable[[], object], repeat: int) -> None:
    """Runs both in turn and prints medians and the median ratio."""
    pairs = []
    for _ in range(repeat):
        times = []
        for action in (plain, ours):
            started = time.monotonic()
            action()
            times.append(time.monotonic() - started)
        pairs.append(times)
    middle = sorted(pairs, key=lambda pair: pair[0] / pair[1])[len(pairs) // 2]
    rates = " | ".join(f"{seconds:.1f} s, {size / seconds / 1e6:.0f} MB/s" for seconds in middle)
    print(f"| {what} | {rates} | {middle[0] / middle[1]:.1f}x |", flush=True)


def main(
    large_mib: Annotated[int, typer.Option(help="MiB of the large object.")] = 1024,
    small: Annotated[int, typer.Option(help="How many small objects of 20 kB.")] = 2000,
    round_trip_ms: Annotated[float, typer.Option(help="Round trip of a request.")] = 20.0,
    mb_per_second: Annotated[float, typer.Option(help="Bandwidth of one connection.")] = 80.0,
    repeat: Annotated[int, typer.Option(help="Measurements, of which the median is shown.")] = 1,
) -> None:
    """Prints a table."""
    with GcsServer() as server, tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        server.create_bucket(BUCKET)
        host, _, port = server.url.removeprefix("http://").partition(":")
        arguments = (listener, (host, int(port)), round_trip_ms / 1000, mb_per_second * 1e6)
        process = multiprocessing.get_context("fork").Process(target=relay, args=arguments, daemon=True)
        process.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        os.environ["STORAGE_EMULATOR_HOST"] = url
        try:
            transfer(Path(folder), server.client(url).bucket(BUCKET), large_mib, small, repeat)
        finally:
            process.kill()


def transfer(folder: Path, bucket, large_mib: int, small: int, repeat: int) -> None:
    place, plain, size = GcsLocation(BUCKET, "ours"), GcsLocation(BUCKET, "small"), large_mib << 20
    noise = random.Random(0).randbytes(1 << 20)
    with (folder / "large").open("wb") as file:
        for part in range(large_mib):
            file.write(part.to_bytes(8, "big") + noise[8:])
    files = []
    for number in range(small):
        path = folder / f"small{number}"
        path.write_bytes(number.to_bytes(8, "big") + noise[8:20_000])
        files.append(path)

    def many(action: Callable, items: Iterable) -> None:
        with ThreadPoolExecutor(gcs.STREAMS) as pool:
            list(pool.map(action, items))

    attempt = iter(range(10**6))
    down = folder / "down"
    down.mkdir()
    print("| transfer | plain client | ours | ratio |\n| --- | --- | --- | --- |")
    measure(
        f"{large_mib} MiB up",
        size,
        lambda: bucket.blob("plain").upload_from_filename(str(folder / "large")),
        lambda: gcs.upload(folder / "large", place / f"large{next(attempt)}"),
        repeat,
    )
    newest = max(gcs.list_objects(place), key=lambda found: found.generation).location
    measure(
        f"{large_mib} MiB down",
        size,
        lambda: bucket.blob("plain").download_to_filename(str(down / "plain")),
        lambda: gcs.download(newest, down / "ours"),
        repeat,
    )
    measure(
        f"{small} x 20 kB up",
        small * 20_000,
        lambda: [bucket.blob(f"small/{path.name}").upload_from_filename(str(path)) for path in files],
        lambda: many(lambda path: gcs.upload(path, place / f"{next(attempt)}" / path.name), files),
        repeat,
    )
    measure(
        f"{small} x 20 kB down",
        small * 20_000,
        lambda: [bucket.blob(f"small/{path.name}").download_to_filename(str(down / path.name)) for path in files],
        lambda: many(lambda found: gcs.download_object(found, down / found.location.name), gcs.list_objects(plain)),
        repeat,
    )


if __name__ == "__main__":
    typer.run(main)
