"""Training on records in a bucket that are larger than the disk budget, against copying them first.

    .venv/bin/python tests/benchmarks/streaming.py

A server in a process of its own makes the shards' bytes when it is asked for them: valid records of pictures that pack like
photographs, the same whenever asked, with the right size, crc32c and generation in the listing. So 20 GB take no disk here. The
relay adds a round trip to every request, and limits the bandwidth of each connection.

1. `finetune`, the medium configuration of the training step's benchmark, in a process of its own: seconds to its first step,
   share of its time that it waits for data, and the most that its cache ever takes of the disk.
2. The loader alone, as fast as it can, until it has gone through more than the budget: rows a second, and the disk.
3. Some shards copied as training without a budget copies them: MB/s, and what all of them would take.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, unquote

os.environ.pop("XLA_FLAGS", None)  # simulated devices would share this machine's cores
sys.path.insert(0, str(Path(__file__).parents[1]))

import google_crc32c
import numpy as np
import typer
from loader import photograph
from step import MEDIUM, write_case

from paligemma.artifacts import store
from paligemma.artifacts.record import MadeRecord, render_record
from paligemma.artifacts.recording import attempt
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.data.loader import training_batches
from paligemma.data.records import ARTIFACT_TYPE, DATASET_FILE, RECORD_MARKS, Dataset, Example, Shard, open_records, stream
from paligemma.data.shards import serialize
from paligemma.data.stored_pictures import pack_picture
from paligemma.data.tfrecord import FOOTER, HEADER, mask
from paligemma.data.tokenizer import Tokenizer
from paligemma.storage import gcs
from paligemma.storage.disk_space import parse_bytes
from paligemma.storage.location import GcsLocation
from servers.local_http import Exchange, LocalServer
from servers.relay import Relay

PLACE = GcsLocation("bucket-of-benchmarks", "records")
VERSION = "0123456789abcdef"
GENERATION = 1
PER_SHARD = 2000
PICTURES = 32
BATCH = 4


class Records:
    """Valid records of any number of rows, of which only sizes and checksums are kept."""

    def __init__(self, total: int, tokenizer: Tokenizer) -> None:
        """Makes rows until their shards have so many bytes."""
        rng = np.random.default_rng(0)
        size = MEDIUM.img.image_size
        self._pictures = [pack_picture(photograph(rng, size), "webp") for _ in range(PICTURES)]
        self._prefix = tokenizer.with_prefix_marks(tokenizer.encode_batch(["which digits are these?"])[0])
        digits = [" ".join(f"{number:015}") for number in range(1000)]
        self._suffixes = [tokenizer.with_suffix_marks(ids) for ids in tokenizer.encode_batch(digits)]
        self.sizes: list[int] = []
        self.checksums: list[int] = []
        self.of_shards: list[str] = []
        checksum, done = 0, 0
        while done < total or len(self.sizes) % PER_SHARD:
            record = self.record(len(self.sizes))
            self.sizes.append(len(record) - RECORD_MARKS)
            self.checksums.append(google_crc32c.value(record[HEADER.size : -FOOTER.size]))
            checksum = google_crc32c.extend(checksum, record)
            done += len(record)
            if len(self.sizes) % PER_SHARD == 0:
                self.of_shards.append(f"{checksum:08x}")
                checksum = 0
        self.stops = np.cumsum(np.array(self.sizes) + RECORD_MARKS).tolist()
        count = len(self.of_shards)
        self.names = [f"train-{number:05d}-of-{count:05d}.tfrecord" for number in range(count)]

    def record(self, row: int) -> bytes:
        """A row's record. The rows differ in their picture, suffix and identity."""
        identity = hashlib.sha256(row.to_bytes(8, "big")).hexdigest()
        suffix = self._suffixes[row % len(self._suffixes)]
        pictures, names = (self._pictures[row % PICTURES],), (("a.png",), ("0" * 64,))
        example = Example(pictures, self._prefix, suffix, "p", "s", *names, identity, row + 1)
        payload = serialize(example)
        length = HEADER.pack(len(payload), 0)[:8]
        header = HEADER.pack(len(payload), mask(google_crc32c.value(length)))
        return b"".join((header, payload, FOOTER.pack(mask(google_crc32c.value(payload)))))

    def shard_bytes(self, shard: int) -> int:
        """The size of a shard."""
        return self.stops[(shard + 1) * PER_SHARD - 1] - self._base(shard)

    def read(self, shard: int, begin: int, end: int) -> bytes:
        """Bytes of a shard."""
        base = self._base(shard)
        first = bisect_right(self.stops, base + begin)
        stop = bisect_right(self.stops, base + end - 1) + 1
        start = (self.stops[first - 1] if first else 0) - base
        return b"".join(map(self.record, range(first, stop)))[begin - start : end - start]

    def _base(self, shard: int) -> int:
        return self.stops[shard * PER_SHARD - 1] if shard else 0

    def describe(self, folder: Path, tokenizer: Tokenizer) -> dict[str, Path]:
        """Writes the artifact's other files, and returns all by name; the shards' are empty, as nobody reads them here."""
        suffixes = [len(ids) for ids in self._suffixes]
        rows = folder / "rows.jsonl"
        with rows.open("w") as file:
            for row, (size, checksum) in enumerate(zip(self.sizes, self.checksums, strict=True)):
                identity = hashlib.sha256(row.to_bytes(8, "big")).hexdigest()
                entry = {"row_id": identity, "image_sha256": "0" * 64, "image_dhash": "0" * 32, "image_file": "a.png"}
                entry |= {"line": row + 1, "prefix_tokens": len(self._prefix), "suffix_tokens": suffixes[row % len(suffixes)]}
                entry |= {"shard": row // PER_SHARD, "position": row % PER_SHARD, "bytes": size, "crc32c": f"{checksum:08x}"}
                file.write(json.dumps(entry) + "\n")
        shards = []
        for number, name in enumerate(self.names):
            (folder / name).touch()
            os.truncate(folder / name, self.shard_bytes(number))  # takes no room
            shards.append(Shard(file=name, rows=PER_SHARD, bytes=self.shard_bytes(number), sha256="0" * 64))
        nothing: dict[int, int] = {}
        dataset = Dataset(split="train", rows=len(self.sizes), rejected={}, truncated=0, image_size=MEDIUM.img.image_size,
                          max_text_tokens=128, tokenizer_sha256=tokenizer.sha256, compression="webp", prefix_tokens=nothing,
                          suffix_tokens=nothing, text_tokens=nothing, shards=shards)  # fmt: skip
        (folder / DATASET_FILE).write_text(dataset.model_dump_json())
        with attempt("prepare_data", folder.parent / "attempt/records", {}) as current:
            draft = store.Draft(folder, rows=len(self.sizes), hashes={name: "0" * 64 for name in self.names})
            record: MadeRecord = store._write_record(current, draft, ARTIFACT_TYPE, "prepare_data", PLACE, VERSION)
        (folder / "lineage.json").write_bytes(render_record(record))
        version = f"{PLACE.name}/version-{VERSION}"
        return {f"{version}/{path.name}": path for path in folder.iterdir()} | {
            f"{PLACE.name}/lineage.json": folder / "lineage.json"
        }


@dataclass
class Bucket:
    """What Cloud Storage answers about the records: metadata, listings, and ranges of contents."""

    records: Records
    files: dict[str, Path]

    def serve(self, exchange: Exchange) -> None:
        """Answers a request."""
        path, _, query = exchange.target.partition("?")
        asked = {key: values[0] for key, values in parse_qs(query).items()}
        name = unquote(path.partition("/o/")[2])
        if path.endswith("/o"):
            found = sorted(one for one in self.files if one.startswith(asked.get("prefix", "")))
            return self._json(exchange, {"kind": "storage#objects", "items": [self._described(one) for one in found]})
        if name not in self.files:
            return exchange.answer(404, [("Content-Type", "application/json")], b'{"error": {"code": 404}}')
        if "/download/" not in path and asked.get("alt") != "media":
            return self._json(exchange, self._described(name))
        begin, end = 0, self._size(name)
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", exchange.headers.get("Range", "")):
            begin, end = int(span[1]), min(int(span[2]) + 1, end) if span[2] else end
        if (shard := self._shard(name)) is not None:
            data = self.records.read(shard, begin, end)
        else:
            with self.files[name].open("rb") as file:
                file.seek(begin)
                data = file.read(end - begin)
        headers = [("Content-Type", "application/octet-stream"), ("x-goog-generation", str(GENERATION))]
        headers += [("Content-Range", f"bytes {begin}-{end - 1}/{self._size(name)}")] if span else []
        return exchange.answer(206 if span else 200, headers, data)

    def _json(self, exchange: Exchange, value: dict) -> None:
        exchange.answer(200, [("Content-Type", "application/json")], json.dumps(value).encode())

    def _shard(self, name: str) -> int | None:
        file = name.rpartition("/")[2]
        return int(file.split("-")[1]) if file.endswith(".tfrecord") else None

    def _size(self, name: str) -> int:
        return self.files[name].stat().st_size

    def _described(self, name: str) -> dict:
        shard = self._shard(name)
        if shard is None:
            checksum = gcs.file_crc32c(self.files[name])
        else:
            checksum = gcs.base64.b64encode(bytes.fromhex(self.records.of_shards[shard])).decode()
        return {"kind": "storage#object", "name": name, "bucket": PLACE.bucket, "size": str(self._size(name)),
                "crc32c": checksum, "generation": str(GENERATION), "timeCreated": "2026-11-28T00:00:00.000Z"}  # fmt: skip


@contextmanager
def serving(bucket: Bucket) -> Iterator[str]:
    """The bucket's server in a process of its own, so that it takes no turns with the training; yields its URL."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def serve() -> None:
        with LocalServer(bucket.serve) as server:
            theirs.send(server.url)
            threading.Event().wait()

    process = context.Process(target=serve, daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


class Disk(threading.Thread):
    """Watches what a folder takes of the disk: allocated blocks, every 50 ms."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder, self.most, self._over = folder, 0, threading.Event()

    def run(self) -> None:
        """Watches until it is stopped."""
        while not self._over.wait(0.05):
            taken = 0
            for path in self._folder.rglob("*"):
                try:
                    taken += path.stat().st_blocks * 512
                except OSError:  # gone meanwhile
                    continue
            self.most = max(self.most, taken)

    def stop(self) -> int:
        """The most bytes that were taken."""
        self._over.set()
        self.join()
        return self.most


def tune(folder: Path, environment: dict[str, str], budget: str, steps: int) -> tuple[float, float, float, list[dict]]:
    """Seconds to the first step's end, of processors until then, in all; and the entries of `metrics.jsonl`."""
    output = folder / "tuned"
    settings = ["frozen_dtype=float32", f"batch_size={BATCH}", f"steps={steps}", "remat=dots", "buckets=1"]
    command = [sys.executable, "-m", "components.finetune", "--checkpoint", str(folder / "checkpoint.npz")]
    command += ["--records", str(PLACE), "--output", str(output), "--disk-budget", budget]
    command += [part for setting in settings for part in ("--set", setting)]
    started, first = time.monotonic(), 0.0
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if not first and any(path.stat().st_size for path in folder.glob("*/metrics.jsonl")):
                first = time.monotonic() - started
                spent = processor_seconds(process.pid)
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(process.returncode)
    entries = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return first, spent, time.monotonic() - started, entries


def processor_seconds(pid: int) -> float:
    """What a process has used of the processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(budget: int, most: float) -> tuple[int, float, float, float]:
    """Rows that the loader alone gave in batches of 32, seconds to the first and in all, and processor time in seconds."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    records = stream(open_records(PLACE), budget)
    rows, first, wanted = 0, 0.0, set()
    batches = training_batches(records, 32, 1)
    size = sum(shard.bytes for shard in records.dataset.shards) / records.dataset.rows
    for numbers, batch in batches:
        first = first or time.monotonic() - started
        rows += len(batch.images)
        wanted |= set(numbers.tolist())
        if rows * size > most:
            break
    batches.close()
    assert len(wanted) == rows  # it is less than an epoch, in which every row comes once
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return rows, first, time.monotonic() - started, spent


def copy(folder: Path, count: int) -> tuple[int, float]:
    """Bytes and seconds of copying some shards as a whole, and of the hashes by which a copy is known to be whole."""
    records = open_records(PLACE)
    found = [one for _, one in gcs.list_files(PLACE) if one.location.name.endswith(".tfrecord")][:count]
    started = time.monotonic()
    with ThreadPoolExecutor(gcs.STREAMS) as pool:
        list(pool.map(gcs.download_object, found, [folder / one.location.name.rpartition("/")[2] for one in found]))
    for path in folder.iterdir():
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
    assert records.dataset.rows
    return sum(one.size for one in found), time.monotonic() - started


def main(
    gigabytes: Annotated[float, typer.Option(help="GB of records.")] = 20.0,
    disk_budget: Annotated[str, typer.Option(help="As finetune has it.")] = "1GB",
    steps: Annotated[int, typer.Option(help="Steps of finetune.")] = 30,
    load_gb: Annotated[float, typer.Option(help="GB of rows that the loader alone goes through.")] = 2.0,
    copied: Annotated[int, typer.Option(help="Shards that are copied.")] = 16,
    round_trip_ms: Annotated[float, typer.Option(help="Round trip of a request.")] = 20.0,
    mb_per_second: Annotated[float, typer.Option(help="Bandwidth of one connection.")] = 80.0,
) -> None:
    """Prints what was measured."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_case(folder, MEDIUM, (64,) * BATCH)
        tokenizer_file = open_checkpoint("embedded:tiny").tokenizer
        (folder / "tokenizer.model").write_bytes(Path(str(tokenizer_file)).read_bytes())
        tokenizer = Tokenizer(folder / "tokenizer.model")
        began = time.monotonic()
        records = Records(int(gigabytes * 1e9), tokenizer)
        (folder / "bucket").mkdir()
        files = records.describe(folder / "bucket", tokenizer)
        total, rows = records.stops[-1], len(records.sizes)
        lists = (folder / "bucket/rows.jsonl").stat().st_size
        print(f"{total / 1e9:.2f} GB, {rows:,} rows of {total / rows / 1e3:.1f} kB in {len(records.names)} shards; rows.jsonl "
              f"{lists / 1e6:.0f} MB; described in {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
        upstream = stack.enter_context(serving(Bucket(records, files)))
        relay = stack.enter_context(Relay(upstream, round_trip_ms / 1e3, mb_per_second * 1e6))
        os.environ["STORAGE_EMULATOR_HOST"] = relay.url

        def with_cache(name: str) -> tuple[dict[str, str], Disk]:
            cache = folder / name
            cache.mkdir()
            os.environ["PALIGEMMA_CACHE"] = str(cache)
            watch = Disk(cache)
            watch.start()
            return dict(os.environ), watch

        environment, disk = with_cache("cache-of-finetune")
        carried = relay.carried().down
        first, spent, whole, entries = tune(folder, environment, disk_budget, steps)
        later = entries[3:]
        waited, stepped = (sum(entry.get(f"seconds_{phase}", 0.0) for entry in later) for phase in ("data", "step"))
        medium = sorted(entry["seconds_step"] for entry in later)[len(later) // 2]
        print(f"finetune: first step after {first:.1f} s ({spent:.1f} s of processors), all {steps} after {whole:.1f} s; "
              f"waited {waited / (waited + stepped):.3%} of the time for data; a step took {medium * 1e3:.0f} ms; disk at most "
              f"{disk.stop() / 1e6:.0f} MB; {(relay.carried().down - carried) / 1e6:.0f} MB came", flush=True)  # fmt: skip

        _, disk = with_cache("cache-of-loader")
        got, first, seconds, spent = load(parse_bytes(disk_budget, "--disk-budget"), load_gb * 1e9)
        print(f"loader alone: first batch after {first:.1f} s; {got:,} rows in {seconds:.1f} s, {got / (seconds - first):.0f} "
              f"rows/s, {spent / got * 1e3:.2f} ms of processors a row; disk at most {disk.stop() / 1e6:.0f} MB",
              flush=True)  # fmt: skip

        (folder / "copies").mkdir()
        size, seconds = copy(folder / "copies", copied)
        print(f"copying: {size / 1e9:.2f} GB in {seconds:.1f} s, {size / seconds / 1e6:.0f} MB/s, which is "
              f"{total / size * seconds:.0f} s for {total / 1e9:.1f} GB; load {os.getloadavg()[0]:.1f}")  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
