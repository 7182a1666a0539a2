"""Times the input pipeline against tf.data on the same records, and the plan of a million rows.

PYTHONPATH=shared:. .venv/bin/python tests/benchmarks/loader.py
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from paligemma.artifacts.record import ROWS_FILE
from paligemma.artifacts.store import produce
from paligemma.choices import Compression
from paligemma.data.augment import Augmentation
from paligemma.data.batch_order import Plan
from paligemma.data.loader import training_batches
from paligemma.data.records import ARTIFACT_TYPE, DATASET_FILE, Dataset, Example, Records, open_records
from paligemma.data.shards import ShardWriter
from paligemma.data.stored_pictures import pack_picture
from paligemma.data.tf_dataset import import_tensorflow
from paligemma.data.tfrecord import RowReader

BATCHES = 100
GRAIN = 0.4
"""Standard deviation of the grain of pictures, in levels."""


def make_records(folder: Path, rows: int, size: int, compression: Compression = "none") -> Records:
    """Records of pictures that pack like photographs, with 10 tokens of prefix and 4 of suffix."""
    rng = np.random.default_rng(0)
    stored = [pack_picture(photograph(rng, size), compression) for _ in range(16)]
    shards = []
    with produce(folder / "records", ARTIFACT_TYPE, "prepare_data", {}, []) as draft:
        for first in range(0, rows, 500):
            with ShardWriter(draft.folder / f"train-{first}.tfrecord", compression) as shard:
                for row in range(first, min(rows, first + 500)):
                    names = (("a.png",), ("0" * 64,))
                    shard.write(Example((stored[row % 16],), [5] * 10, [6] * 4, "p", "s", *names, f"{row:064}", row))
            shards.append(shard.shard)
        (draft.folder / ROWS_FILE).write_text((json.dumps({"prefix_tokens": 10, "suffix_tokens": 4}) + "\n") * rows)
        histograms = {"prefix_tokens": {10: rows}, "suffix_tokens": {4: rows}, "text_tokens": {14: rows}}
        dataset = Dataset(split="train", rows=rows, rejected={}, truncated=0, image_size=size, max_text_tokens=128,
                          tokenizer_sha256="0" * 64, compression=compression, shards=shards, **histograms)  # fmt: skip
        (draft.folder / DATASET_FILE).write_text(dataset.model_dump_json())
    return open_records(folder / "records")


def photograph(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth shapes with grain. WebP leaves 42, 34 and 29 % at 224, 448 and 896 pixels; of photographs 41, 36 and 29."""
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.int16)
    return (smooth + np.rint(rng.normal(0, GRAIN, (size, size, 3))).astype(np.int16)).clip(0, 255).astype(np.uint8)


def tf_data(records: Records, batch_size: int) -> Iterator:
    """The same records through tf.data with its window of shuffling, its usual settings, and masks made in NumPy."""
    tf = import_tensorflow()
    size = records.dataset.image_size
    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "tokens": tf.io.VarLenFeature(tf.int64),
        "prefix_length": tf.io.FixedLenFeature([], tf.int64),
    }

    def parse(record):
        row = tf.io.parse_single_example(record, features)
        packed = records.dataset.compression == "webp"
        image = tf.io.decode_webp(row["image"], channels=3) if packed else tf.io.decode_raw(row["image"], tf.uint8)
        row["image"] = tf.reshape(image, [size, size, 3])
        row["tokens"] = tf.sparse.to_dense(row["tokens"])
        return row

    dataset = tf.data.TFRecordDataset([str(path) for path in records.shard_paths]).shuffle(1000, seed=0).repeat()
    dataset = dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    shapes = {"image": [size, size, 3], "tokens": [17], "prefix_length": []}
    return dataset.padded_batch(batch_size, shapes).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def bare_read(records: Records, batch_size: int) -> Iterator:
    """The records' bytes in the order they are stored, and nothing else: as fast as TensorFlow reads."""
    tf = import_tensorflow()
    dataset = tf.data.TFRecordDataset([str(path) for path in records.shard_paths]).repeat().batch(batch_size)
    return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def milliseconds(batches: Iterable) -> tuple[float, float]:
    """Of one batch, after the first ten: on the clock, and of all processors."""
    iterator = iter(batches)
    next(itertools.islice(iterator, 10, 11))
    started, before = time.perf_counter(), time.process_time()
    for _ in itertools.islice(iterator, BATCHES):
        pass
    return (time.perf_counter() - started) / BATCHES * 1e3, (time.process_time() - before) / BATCHES * 1e3


def measure_batches(rows: int, size: int, batch_size: int) -> None:
    """Prints how long a batch takes when nothing else runs: with tf.data, ours, and ours with every augmentation."""
    everything = Augmentation(flip=True, crop=0.5, colour=0.3)
    for compression in ("none", "webp"):
        with tempfile.TemporaryDirectory() as folder:
            records = make_records(Path(folder), rows, size, compression)
            bytes_a_row = sum(shard.bytes for shard in records.dataset.shards) / rows
            print(f"{compression}: {bytes_a_row / 1e3:.1f} kB a row, {bytes_a_row / (3 * size**2):.1%} of raw")
            for name, batches in (
                ("bare read", bare_read(records, batch_size)),
                ("tf.data", tf_data(records, batch_size)),
                ("ours", training_batches(records, batch_size, 0)),
                ("ours, augmented", training_batches(records, batch_size, 0, augment=everything)),
            ):
                took, cpu = milliseconds(batches)
                print(f"{batch_size} x {size} px, {compression}, {name}: {took:.2f} ms a batch, {cpu:.2f} of processors, "
                      f"{batch_size / took * 1e3:.0f} images/s", flush=True)  # fmt: skip
            reader = RowReader(records)
            started = time.perf_counter()
            for row in range(0, rows, 500):
                reader.read(row)
            print(f"  index: {(time.perf_counter() - started) / rows * 1e6:.2f} us a row")
            some = np.random.default_rng(0).permutation(rows)[:1000].tolist()
            for name, read in (("row", reader.read), ("row without its picture", reader.read_texts)):
                started = time.process_time()
                for row in some:
                    read(row)
                print(f"  one {name}, one thread: {(time.process_time() - started) / len(some) * 1e6:.0f} us")


def measure_plan(rows: int = 1_000_000, batch_size: int = 8) -> None:
    """Prints how long planning takes, and what buckets save of padding, for texts of widely different lengths."""
    rng = np.random.default_rng(0)
    suffix = rng.geometric(0.08, rows).clip(2, 100)
    text = suffix + rng.integers(5, 28, rows)
    started = time.perf_counter()
    plan = Plan(text, suffix, batch_size, 0)
    print(f"{rows:,} rows: plan in {time.perf_counter() - started:.3f} s, buckets {[tuple(b) for b in plan.buckets]}")
    started = time.perf_counter()
    for _ in itertools.islice(plan.batches(), 10 * rows // batch_size):
        pass
    print(f"  the batches of 10 epochs in {time.perf_counter() - started:.2f} s")
    started = time.perf_counter()
    next(plan.batches(10 * rows // batch_size))
    print(f"  starting after 10 epochs in {time.perf_counter() - started:.2f} s")
    widths = np.array([bucket.text_width for bucket in plan.buckets])[plan.bucket_of]
    print(f"  text positions a row: {widths.mean():.1f} in buckets, {widths.max()} in one width, {text.mean() - 1:.1f} real")


if __name__ == "__main__":
    measure_plan()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    measure_batches(2000, 224, 8)
    measure_batches(500, 448, 8)
    measure_batches(200, 896, 8)
    measure_batches(10_000, 32, 64)
