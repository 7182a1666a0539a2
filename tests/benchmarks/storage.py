"""Our storage layer against the plain Google client and its transfer_manager, over a connection like one to a real bucket.

    .venv/bin/python tests/benchmarks/storage.py

One large object and many small ones, up and down, each way in turn in one run; prints seconds, MB/s, and how many times as long
as ours another way takes. transfer_manager works with as many processes (its default) or threads as ours has streams, and with
ranges of the same size. Up, it splits large objects by XML multipart uploads only, which the emulator lacks. The server is a
real fake-gcs-server; between lies a relay process that adds a round trip to every request and limits each one's bandwidth,
because on a bare loopback there is no distance to hide, which is what parallel transfers are for.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from google.cloud.storage import transfer_manager

sys.path.insert(0, str(Path(__file__).parents[1]))

from paligemma.storage import gcs
from paligemma.storage.location import GcsLocation
from servers.gcs import GcsServer
from servers.relay import Relay

BUCKET = "bucket-of-benchmarks"


WAYS = ("plain client", "its processes", "its threads", "ours")


def measure(what: str, size: int, ways: dict[str, Callable[[], object]], repeat: int) -> None:
    """Runs all ways in turn, and prints the round of which the ratio of ours to the plain client is the median."""
    rounds = []
    for _ in range(repeat):
        seconds = {}
        for name, action in ways.items():
            started = time.monotonic()
            action()
            seconds[name] = time.monotonic() - started
        rounds.append(seconds)
    middle = sorted(rounds, key=lambda one: one["plain client"] / one["ours"])[len(rounds) // 2]
    ratios = {name: f", {middle[name] / middle['ours']:.1f}x" if name != "ours" else "" for name in middle}
    cells = [
        f"{middle[name]:.1f} s, {size / middle[name] / 1e6:.1f} MB/s{ratios[name]}" if name in middle else "-" for name in WAYS
    ]
    print(f"| {what} | {' | '.join(cells)} |", flush=True)


def main(
    large_mib: Annotated[int, typer.Option(help="MiB of the large object.")] = 1024,
    small: Annotated[int, typer.Option(help="How many small objects of 20 kB.")] = 2000,
    round_trip_ms: Annotated[float, typer.Option(help="Round trip of a request.")] = 20.0,
    mb_per_second: Annotated[float, typer.Option(help="Bandwidth of one connection.")] = 80.0,
    repeat: Annotated[int, typer.Option(help="Measurements, of which the median is shown.")] = 1,
) -> None:
    """Prints a table."""
    with (
        GcsServer() as server,
        Relay(server.url, round_trip_ms / 1000, mb_per_second * 1e6) as relay,
        tempfile.TemporaryDirectory() as folder,
    ):
        server.create_bucket(BUCKET)
        os.environ["STORAGE_EMULATOR_HOST"] = relay.url
        transfer(Path(folder), server.client(relay.url).bucket(BUCKET), large_mib, small, repeat)


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
    names = [path.name for path in files]

    def by_workers(transfer: Callable[..., object]) -> dict[str, Callable[[], object]]:
        kinds = {"its processes": transfer_manager.PROCESS, "its threads": transfer_manager.THREAD}
        return {name: lambda kind=kind: transfer(worker_type=kind, max_workers=gcs.STREAMS) for name, kind in kinds.items()}

    print(f"| transfer | {' | '.join(WAYS)} |\n|{' --- |' * (1 + len(WAYS))}")
    measure(
        f"{large_mib} MiB up",
        size,
        {
            "plain client": lambda: bucket.blob("plain").upload_from_filename(str(folder / "large")),
            "ours": lambda: gcs.upload(folder / "large", place / f"large{next(attempt)}"),
        },
        repeat,
    )
    measure(
        f"{large_mib} MiB down",
        size,
        {
            "plain client": lambda: bucket.blob("plain").download_to_filename(str(down / "plain")),
            **by_workers(
                lambda **how: transfer_manager.download_chunks_concurrently(
                    bucket.blob("plain"), str(down / "chunks"), chunk_size=gcs.RANGE_BYTES, **how
                )
            ),
            "ours": lambda: gcs.download(GcsLocation(BUCKET, "plain"), down / "ours"),
        },
        repeat,
    )
    measure(
        f"{small} x 20 kB up",
        small * 20_000,
        {
            "plain client": lambda: [bucket.blob(f"small/{path.name}").upload_from_filename(str(path)) for path in files],
            **by_workers(
                lambda **how: transfer_manager.upload_many_from_filenames(
                    bucket, names, str(folder), blob_name_prefix=f"{next(attempt)}/", raise_exception=True, **how
                )
            ),
            "ours": lambda: many(lambda path: gcs.upload(path, place / f"{next(attempt)}" / path.name), files),
        },
        repeat,
    )
    measure(
        f"{small} x 20 kB down",
        small * 20_000,
        {
            "plain client": lambda: [bucket.blob(f"small/{name}").download_to_filename(str(down / name)) for name in names],
            **by_workers(
                lambda **how: transfer_manager.download_many_to_path(
                    bucket, names, str(down), blob_name_prefix="small/", raise_exception=True, **how
                )
            ),
            "ours": lambda: many(lambda found: gcs.download_object(found, down / found.location.name), gcs.list_objects(plain)),
        },
        repeat,
    )


if __name__ == "__main__":
    typer.run(main)
