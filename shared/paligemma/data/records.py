"""TFRecord shards of ready-made examples, and `dataset.json`, which describes them. The format, writing and opening."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, ValidationError

from paligemma.data.tensorflow import import_tensorflow
from paligemma.errors import DamagedError
from paligemma.lineage.artifact import localize
from paligemma.lineage.record import file_sha256, read_record

DATASET_FILE = "dataset.json"
ROWS_FILE = "rows.jsonl"
REJECTED_FILE = "rejected.jsonl"
ARTIFACT_TYPE = "records"
Compression = Literal["none", "gzip"]


@dataclass(frozen=True)
class Example:
    """One record: what the model is fed, and where it came from.

    Attributes:
        image: uint8 `[size, size, 3]`, already resized.
        prefix_ids: `[bos] prefix "\\n"`.
        suffix_ids: `suffix [eos]`.
        row_id: identity of the row's contents; see `rows.row_id`.
        line: its line in the source, from 1.
        answers: references for evaluation; none when the suffix is the only one.
    """

    image: np.ndarray
    prefix_ids: list[int]
    suffix_ids: list[int]
    prefix: str
    suffix: str
    image_file: str
    image_sha256: str
    row_id: str
    line: int
    answers: tuple[str, ...] = ()


class Shard(BaseModel):
    """One TFRecord file."""

    model_config = ConfigDict(frozen=True)

    file: str
    rows: int
    bytes: int
    sha256: str


class Dataset(BaseModel):
    """Contents of `dataset.json`. Histograms map a number of tokens (with bos, separator, eos) to a number of rows."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    split: str
    rows: int
    rejected: dict[str, int]
    truncated: int
    image_size: int
    max_text_tokens: int
    tokenizer_sha256: str
    compression: Compression
    prefix_tokens: dict[int, int]
    suffix_tokens: dict[int, int]
    text_tokens: dict[int, int]
    shards: list[Shard]


@dataclass(frozen=True)
class Records:
    """An opened records artifact."""

    folder: Path
    dataset: Dataset

    @property
    def shard_paths(self) -> list[Path]:
        """The shards, in order."""
        return [self.folder / shard.file for shard in self.dataset.shards]


def open_records(folder: str | Path) -> Records:
    """Opens a records artifact, local or on `gs://`.

    Raises:
        InputError: the folder is not one.
        DamagedError: it is not whole.
    """
    folder = localize(folder)
    read_record(folder, ARTIFACT_TYPE)
    try:
        return Records(folder, Dataset.model_validate_json((folder / DATASET_FILE).read_bytes()))
    except (OSError, ValidationError) as error:
        raise DamagedError(f"{DATASET_FILE} is damaged: {error}.", where=folder, fix="run prepare_data again") from None


def read_lengths(records: Records) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """Tokens of the prefix (with bos and separator) and of the suffix (with eos) of every row.

    Raises:
        DamagedError: `rows.jsonl` does not list them.
    """
    kind = np.dtype([("prefix", np.int32), ("suffix", np.int32)])
    try:
        with (records.folder / ROWS_FILE).open("rb") as file:
            entries = map(json.loads, file)
            lengths = np.fromiter(((entry["prefix_tokens"], entry["suffix_tokens"]) for entry in entries), kind)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged_index(records, f"it cannot be read: {error!r}") from None
    if len(lengths) != records.dataset.rows:
        raise _damaged_index(records, f"it lists {len(lengths)} rows of {records.dataset.rows}")
    return lengths["prefix"], lengths["suffix"]


def image_numbers(records: Records) -> Int[np.ndarray, " rows"]:
    """A number for the image of every row, from 0: rows with the same image have the same one.

    Raises:
        DamagedError: `rows.jsonl` does not list them.
    """
    numbers: dict[str, int] = {}
    try:
        with (records.folder / ROWS_FILE).open("rb") as file:
            hashes = (json.loads(line)["image_sha256"] for line in file)
            found = np.fromiter((numbers.setdefault(image, len(numbers)) for image in hashes), np.int64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged_index(records, f"it cannot be read: {error!r}") from None
    if len(found) != records.dataset.rows:
        raise _damaged_index(records, f"it lists {len(found)} rows of {records.dataset.rows}")
    return found


def row_ids(records: Records, rows: Iterable[int]) -> list[str]:
    """The `row_id` of rows by number, for a report of an error. Reads through `rows.jsonl`: seconds for millions of rows.

    Raises:
        DamagedError: `rows.jsonl` does not list them.
    """
    wanted = [int(row) for row in rows]
    found: dict[int, str] = dict.fromkeys(wanted, "")
    try:
        with (records.folder / ROWS_FILE).open("rb") as file:
            for number, line in enumerate(file):
                if number in found:
                    found[number] = json.loads(line)["row_id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged_index(records, f"it cannot be read: {error!r}") from None
    if "" in found.values():
        raise _damaged_index(records, "it ends too early")
    return [found[row] for row in wanted]


def _damaged_index(records: Records, why: str) -> DamagedError:
    return DamagedError(f"{ROWS_FILE} is damaged: {why}.", where=records.folder, fix="run prepare_data again")


def write_shards(
    folder: Path, split: str, examples: Iterable[Example], rows_per_shard: int, compression: Compression
) -> list[Shard]:
    """Writes examples to `SPLIT-00000-of-000NN.tfrecord[.gz]`, in order, and one line each to `rows.jsonl`."""
    tf = import_tensorflow()
    options = tf.io.TFRecordOptions(compression_type="GZIP" if compression == "gzip" else "")
    counts: list[int] = []
    with (folder / ROWS_FILE).open("w") as index:
        for shard, rows in enumerate(_grouped(examples, rows_per_shard)):
            with tf.io.TFRecordWriter(str(folder / f"{shard}.unnamed"), options) as writer:
                count = 0
                for example in rows:
                    writer.write(serialize(example))
                    index.write(json.dumps(_index_entry(example, shard, count)) + "\n")
                    count += 1
            counts.append(count)
    suffix = ".tfrecord.gz" if compression == "gzip" else ".tfrecord"
    shards = []
    for shard, count in enumerate(counts):  # the number of shards is part of every name, and known only now
        path = folder / f"{split}-{shard:05d}-of-{len(counts):05d}{suffix}"
        (folder / f"{shard}.unnamed").rename(path)
        shards.append(Shard(file=path.name, rows=count, bytes=path.stat().st_size, sha256=file_sha256(path)))
    return shards


def serialize(example: Example) -> bytes:
    """An example as a `tf.train.Example`."""
    tf = import_tensorflow()

    def ints(values: list[int]):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def blob(value: bytes | str):
        value = value.encode() if isinstance(value, str) else value
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {
        "image": blob(np.ascontiguousarray(example.image).tobytes()),
        "tokens": ints(example.prefix_ids + example.suffix_ids),
        "prefix_length": ints([len(example.prefix_ids)]),
        "suffix_length": ints([len(example.suffix_ids)]),
        "prefix": blob(example.prefix),
        "suffix": blob(example.suffix),
        "image_file": blob(example.image_file),
        "image_sha256": blob(example.image_sha256),
        "row_id": blob(example.row_id),
        "line": ints([example.line]),
    }
    if example.answers:
        values = [answer.encode() for answer in example.answers]
        features["answers"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _index_entry(example: Example, shard: int, position: int) -> dict:
    return {
        "row_id": example.row_id,
        "image_sha256": example.image_sha256,
        "image_file": example.image_file,
        "line": example.line,
        "prefix_tokens": len(example.prefix_ids),
        "suffix_tokens": len(example.suffix_ids),
        "shard": shard,
        "position": position,
    }


def _grouped(examples: Iterable[Example], size: int) -> Iterator[Iterator[Example]]:
    """Consecutive groups of `size`, without holding one in memory."""
    iterator = iter(examples)
    for first in iterator:

        def group(first: Example = first) -> Iterator[Example]:
            yield first
            for _ in range(size - 1):
                try:
                    yield next(iterator)
                except StopIteration:
                    return

        yield group()
