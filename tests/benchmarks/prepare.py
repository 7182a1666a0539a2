"""Times data preparation against a plain loop and `datasets.map` over the same generated JPEGs, and takes peak memory.

PYTHONPATH=shared:. .venv/bin/python tests/benchmarks/prepare.py --rows 20000
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

CHECKPOINT = "embedded:tiny"
SIZE = 224
PEER = Path(__file__).parent / "prepare_workers/huggingface"
CASES = (  # name, kind, processes
    ("plain loop", "plain", 1),
    ("ours, 1", "ours", 1),
    ("ours, 2", "ours", 2),
    ("datasets.map, 1", "huggingface", 1),
    ("datasets.map, 2", "huggingface", 2),
)


def generate(folder: Path, rows: int) -> None:
    """Writes so many different 640 x 480 JPEGs of about 90 kB, and `rows.jsonl`."""
    with multiprocessing.get_context("spawn").Pool() as pool:
        lines = pool.starmap(generate_one, ((folder, number) for number in range(rows)), chunksize=64)
    (folder / "rows.jsonl").write_text("".join(lines))


def generate_one(folder: Path, number: int) -> str:
    """Writes the image with this number, and returns its row's line."""
    rng = np.random.default_rng(number)
    smooth = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(number % 16).integers(-8, 9, (480, 640, 3), np.int16)
    pixels = (np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{number:06d}.jpg", quality=90)
    suffix = f"a picture with the number {number} and {rng.integers(100)} more"
    return json.dumps({"image": f"{number:06d}.jpg", "prefix": "caption en", "suffix": suffix}) + "\n"


def plain_loop(folder: Path, output: Path) -> None:
    """What one would write in an afternoon: Pillow, sentencepiece and tf.io, one row after the other."""
    import sentencepiece
    import tensorflow as tf

    from paligemma.checkpoints.open_checkpoint import resolve_embedded

    model = sentencepiece.SentencePieceProcessor(str(resolve_embedded(CHECKPOINT) / "tokenizer.model"))

    def ints(values):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def blob(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    started, before, rows = time.perf_counter(), cpu_seconds(), 0
    with (folder / "rows.jsonl").open() as lines, tf.io.TFRecordWriter(str(output)) as writer:
        for rows, line in enumerate(lines, start=1):  # noqa: B007
            row = json.loads(line)
            image = Image.open(io.BytesIO((folder / row["image"]).read_bytes())).convert("RGB")
            image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            tokens = [2, *model.encode(row["prefix"]), *model.encode("\n"), *model.encode(row["suffix"]), 1]
            features = {"image": blob(image.tobytes()), "tokens": ints(tokens), "suffix": blob(row["suffix"].encode())}
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    print_rates(rows, started, before)


def print_rates(rows: int, started: float, before: float) -> None:
    """Prints CPU milliseconds a row, which say more on a busy machine, and rows a second."""
    print((cpu_seconds() - before) / rows * 1e3, rows / (time.perf_counter() - started))


def cpu_seconds() -> float:
    """Of this process and the children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def ours(folder: Path, output: Path, workers: int) -> None:
    """The ranges prepared by so many processes, started here; without the lineage record, as the plain loop has none."""
    from paligemma.checkpoints.open_checkpoint import resolve_embedded
    from paligemma.data.jsonl_files import split_lines
    from paligemma.data.prepare import Job
    from paligemma.data.row_sources import RowSource
    from paligemma.data.workers import prepare_parts
    from paligemma.progress import WorkProgress

    data = folder / "rows.jsonl"
    job = Job([RowSource(data, str(folder))], resolve_embedded(CHECKPOINT) / "tokenizer.model", SIZE, 128, "reject", "none")
    output.mkdir()
    started, before = time.perf_counter(), cpu_seconds()
    parts = split_lines(data, 200)
    with WorkProgress("ours", "rows") as progress:
        prepare_parts(job, parts, output, workers, progress)
    print_rates(sum(part.lines for part in parts), started, before)


def measure(kind: str, folder: Path, workers: int, python: Path, processor: Path) -> tuple[float, float, list[int]]:
    """CPU milliseconds a row and rows a second, of a process of its own, and the peak bytes of it and its children."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as output:
        if kind == "huggingface":
            command = [python, PEER.with_suffix(".py"), folder, processor, f"{output}/out", str(workers)]
        else:
            command = [sys.executable, __file__, "--kind", kind, "--folder", folder, "--workers", str(workers)]
            command += ["--output", f"{output}/out"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peaks: dict[int, int] = {}
        watcher = threading.Thread(target=_watch, args=(process.pid, peaks))
        watcher.start()
        text, _ = process.communicate()
        watcher.join()
    if process.returncode:
        raise SystemExit(process.returncode)
    cpu, rate = map(float, text.split())
    return cpu, rate, sorted(peaks.values(), reverse=True)


def _watch(pid: int, peaks: dict[int, int]) -> None:
    """Notes the largest resident size of a process and of its children, until it ends."""
    while True:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return
        for one in (pid, *map(int, children)):
            try:
                status = Path(f"/proc/{one}/status").read_text()
            except OSError:
                continue
            if found := [line for line in status.splitlines() if line.startswith("VmHWM:")]:
                peaks[one] = int(found[0].split()[1]) * 1024
            elif one == pid:
                return  # ended, and not waited for
        time.sleep(0.05)


def main() -> None:
    """Measures, or (with --kind) is what is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="Images to generate; memory is also taken for a 20th.")
    parser.add_argument("--rounds", type=int, default=1, help="How often each is measured; the fastest counts.")
    parser.add_argument("--kind", choices=["plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind == "plain":
        return plain_loop(options.folder, options.output)
    if options.kind == "ours":
        return ours(options.folder, options.output, options.workers)
    from peers import environment

    from paligemma.checkpoints.export import export
    from paligemma.storage.cache import cache_folder

    python = environment(cache_folder() / "benchmarks", PEER.with_suffix(".txt"))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as root:
        processor = Path(root) / "huggingface"
        export(CHECKPOINT, processor, "huggingface")
        for rows in (options.rows // 20, options.rows):
            folder = Path(root) / str(rows)
            folder.mkdir()
            generate(folder, rows)
            best: dict[str, float] = {}
            for _ in range(options.rounds):
                for name, kind, workers in CASES:
                    cpu, rate, peaks = measure(kind, folder, workers, python, processor)
                    best[name] = max(rate, best.get(name, 0))
                    memory = " + ".join(f"{peak / 2**20:.0f}" for peak in peaks)
                    print(f"{rows} rows, {name}: {rate:.0f} rows/s, {cpu:.2f} CPU ms a row, peak MiB {memory}", flush=True)
            for name, rate in best.items():
                print(f"  {name}: {rate:.0f} rows/s, {rate / best['plain loop']:.2f}x")
    return None


if __name__ == "__main__":
    main()
