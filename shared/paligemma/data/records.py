"""Records: TFRecord shards of prepared examples, and `dataset.json`, which describes them. Defines and opens the format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from pydantic import BaseModel, ConfigDict, Field, model_validator

from paligemma.artifacts.record import ROWS_FILE, MadeRecord, each
from paligemma.artifacts.store import artifact_at, file_of, localize_recorded, record_of, small_files
from paligemma.choices import Compression
from paligemma.data.row_cache import Slot
from paligemma.data.rows import MOST_IMAGES
from paligemma.data.source_list import LEAST_WEIGHT, MOST_WEIGHT
from paligemma.errors import DamagedError, InputError
from paligemma.foreign_json import read_json_lines, read_model
from paligemma.safe_names import RelativePath, Sha256
from paligemma.storage.location import GcsLocation, Location

DATASET_FILE = "dataset.json"
WARNINGS_FILE = "warnings.jsonl"
IMAGES_FILE = "images.jsonl"
"""What was found under each image's name: `image_file`, and `image_sha256`, `bytes`, `crc32c`, or a `fault`; by range."""
PARTS_FILE = "parts.jsonl"
"""The facts of each range (`prepare.Facts`), in order."""
ARTIFACT_TYPE = "records"
RECORD_MARKS = 16
"""Bytes of a TFRecord besides its payload: length and two checksums."""
BLOCKS = 32 << 10
"""Bytes that a few files may take of a disk beyond their sizes."""


@dataclass(frozen=True)
class Example:
    """One record: the model's input, and its origin.

    Attributes:
        images: the pictures, already resized, as `stored_pictures.pack_picture` stores each.
        prefix_ids: `[bos] prefix "\\n"`.
        suffix_ids: `suffix [eos]`.
        image_files, image_sha256s: name and hash of each image.
        row_id: hash of the row's contents; see `rows.row_id`.
        line: the row's line in the source, from 1.
        answers: references for evaluation; empty if the suffix is the only one.
        masks: true masks for evaluation, as `seg_masks.masks_text` writes them; empty if the row keeps none.
    """

    images: tuple[bytes, ...]
    prefix_ids: list[int]
    suffix_ids: list[int]
    prefix: str
    suffix: str
    image_files: tuple[str, ...]
    image_sha256s: tuple[str, ...]
    row_id: str
    line: int
    answers: tuple[str, ...] = ()
    masks: str = ""


class Shard(BaseModel):
    """One TFRecord file."""

    model_config = ConfigDict(frozen=True)

    file: RelativePath
    rows: int
    bytes: int
    sha256: Sha256


class SourceRows(BaseModel):
    """What became of one file of a mixture. Its rows follow those of the files before it.

    Attributes:
        name: what tells it from the others, also in `rows.jsonl`, `rejected.jsonl` and `warnings.jsonl`.
        rows, rejected: number of its rows that were kept, and that were not.
        weight: its share of the training examples, relative to the others'; None: each row counts once.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    rows: Annotated[int, Field(ge=0)]
    rejected: int
    weight: Annotated[float, Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT)] | None = None


class Dataset(BaseModel):
    """Contents of `dataset.json`. Histograms map a number of tokens (with bos, separator, eos) to a number of rows.

    Attributes:
        warnings: number of rows with a warning, by code of `row_warnings.WARNINGS`.
        compression: how pictures are stored; see `stored_pictures`.
        images: number of different images, by their bytes.
        frequent_suffixes: the most frequent suffixes, and the number of rows of each.
        grey_range: samples of black and white in grey pictures, `LOW,HIGH`; empty: as stated in each file.
        images_per_example: number of images in every row; not in the file if it is 1.
        findings: details of oddities of the whole split, by code of `balance.FINDINGS`.
        sources: the files of a mixture, in the order of their rows; left out if there is one file.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    split: str
    rows: int
    rejected: dict[str, int]
    truncated: int
    image_size: int
    max_text_tokens: int
    tokenizer_sha256: Sha256
    compression: Compression
    prefix_tokens: dict[int, int]
    suffix_tokens: dict[int, int]
    text_tokens: dict[int, int]
    shards: list[Shard]
    warnings: dict[str, int] = {}
    images: int = 0
    frequent_suffixes: dict[str, int] = {}
    findings: dict[str, str] = {}
    grey_range: str = ""
    images_per_example: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 1
    sources: list[SourceRows] = Field(default=[], exclude_if=lambda sources: not sources)

    @model_validator(mode="after")
    def _sources_have_all_rows(self) -> Dataset:
        weighted = {source.weight is not None for source in self.sources}
        if self.sources and (sum(source.rows for source in self.sources) != self.rows or len(weighted) > 1):
            raise ValueError("the sources do not have all rows, or some have no weight")
        if weighted == {True} and not all(source.rows for source in self.sources):
            raise ValueError("a source with a weight has no rows")
        return self

    @property
    def shares(self) -> list[tuple[int, float]]:
        """Number of rows and weight of each source, for `batch_order.Plan`; none if each row counts once."""
        return [(source.rows, source.weight) for source in self.sources if source.weight is not None]

    def source_of(self, row: int) -> str:
        """The name of a row's source, by the row's number; empty if there is one file."""
        for source in self.sources:
            if row < source.rows:
                return source.name
            row -= source.rows
        return ""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of a row's `image`: `(size, size, 3)`, or `(n, size, size, 3)` if every row has several."""
        several = () if self.images_per_example == 1 else (self.images_per_example,)
        return (*several, self.image_size, self.image_size, 3)

    def as_json(self) -> dict:
        """The file's JSON value."""
        return self.model_dump(exclude={"images_per_example"} if self.images_per_example == 1 else None)


def as_image(pictures: Sequence[UInt8[np.ndarray, "size size 3"]]) -> UInt8[np.ndarray, "*n size size 3"]:
    """A row's `image`, of its pictures."""
    return pictures[0] if len(pictures) == 1 else np.stack(pictures)


def pictures_of(image: UInt8[np.ndarray, "*n size size 3"]) -> list[UInt8[np.ndarray, "size size 3"]]:
    """The pictures of a row's `image`: undoes `as_image`."""
    return [image] if image.ndim == 3 else list(image)


@dataclass(frozen=True)
class Records:
    """An opened records artifact. On `gs://`, its shards are fetched when one is first asked for, unless it is streamed.

    Attributes:
        location: where it is.
        record: its lineage record.
        disk_budget: bytes that an artifact on `gs://` may take of this machine's disk, as its rows are then fetched one by one
            (see `row_stream`); None: the whole artifact is fetched.
    """

    location: Location
    record: MadeRecord
    dataset: Dataset
    disk_budget: int | None = None

    @cached_property
    def folder(self) -> Path:
        """The artifact's local folder.

        Raises:
            DamagedError: the artifact was replaced since it was opened, or is damaged.
        """
        return localize_recorded(self.location, self.record)

    @property
    def streamed(self) -> bool:
        """Whether rows are fetched one by one."""
        return self.disk_budget is not None and isinstance(self.location, GcsLocation)

    @cached_property
    def slot(self) -> Slot:
        """Where streamed records have what is fetched of them."""
        return Slot(self.record.artifact.tree_sha256)

    @cached_property
    def rows_file(self) -> Path:
        """The local `rows.jsonl`; of streamed records, no other file is fetched.

        Raises:
            DamagedError: it is not what was recorded, or the artifact was replaced.
        """
        return file_of(self.record, ROWS_FILE, self.slot.folder) if self.streamed else self.folder / ROWS_FILE

    @property
    def shard_paths(self) -> list[Path]:
        """The shards, in order."""
        return [self.folder / shard.file for shard in self.dataset.shards]


def open_records(folder: str | Path) -> Records:
    """Opens a records artifact, local or on `gs://`.

    Raises:
        InputError: the folder is not a records artifact.
        DamagedError: the artifact is incomplete.
    """
    location = artifact_at(folder)
    record = record_of(location, ARTIFACT_TYPE)
    described = location if isinstance(location, Path) else small_files(location, record, [DATASET_FILE])
    return Records(location, record, read_model(described / DATASET_FILE, Dataset, DATASET_FILE, fix="run prepare_data again"))


def stream(records: Records, disk_budget: int) -> Records:
    """The records with a bound on the disk that they take; see `Records.disk_budget`. Local ones take none.

    Raises:
        InputError: their lists alone take more, or they cannot be streamed.
    """
    bounded = replace(records, disk_budget=disk_budget)
    if not bounded.streamed:
        return records
    if records.dataset.compression == "gzip":
        raise InputError(
            "Shards that gzip packs whole cannot be streamed.",
            where=records.location,
            fix="run prepare_data again with --compression webp, or leave out --disk-budget",
        )
    if (room := bytes_for_rows(bounded)) < 0:
        raise InputError(
            f"The lists of the records take more than the disk budget of {disk_budget:,} bytes.",
            where=records.location,
            expected=f"at least {disk_budget - room:,} bytes",
            fix="raise --disk-budget",
        )
    return bounded


def bytes_for_rows(records: Records) -> int:
    """What the budget of streamed records leaves for their rows, besides their lists and what whole blocks of files add."""
    lists = (records.record.artifact.file(name) for name in (DATASET_FILE, ROWS_FILE))
    places = 8 * records.dataset.rows
    return (records.disk_budget or 0) - sum(one.bytes for one in lists if one is not None) - places - BLOCKS


class Places(NamedTuple):
    """Of every row's payload: its size in bytes, and its crc32c. Payloads follow one another, shard by shard."""

    sizes: Int[np.ndarray, " rows"]
    checksums: Int[np.ndarray, " rows"]


def read_places(records: Records) -> Places:
    """Where the payload of every row is.

    Raises:
        InputError: an earlier version prepared the records, and listed no sizes.
        DamagedError: `rows.jsonl` is damaged, or of other shards.
    """
    kind = np.dtype([("bytes", np.int64), ("crc32c", np.int64)])
    shards = records.dataset.shards
    try:
        table = np.fromiter(((entry["bytes"], int(entry["crc32c"], 16)) for entry in _rows(records)), kind)
        counts = np.array([shard.rows for shard in shards], np.int64)
        wanted = np.array([shard.bytes for shard in shards], np.int64)
    except KeyError:
        raise InputError(
            f"An earlier version prepared the records: {ROWS_FILE} does not list how long each row is.",
            where=records.location,
            fix="run prepare_data again, or leave out --disk-budget",
        ) from None
    except (ValueError, TypeError, OverflowError) as error:
        raise _damaged_index(records, f"it cannot be read: {error!r}") from None
    if ((counts < 0) | (counts > len(table))).any() or not len(table) == counts.sum() == records.dataset.rows:
        raise _damaged_index(records, f"it lists {len(table)} rows of {records.dataset.rows}")
    if (table["bytes"] < 0).any() or (table["bytes"] > wanted.max(initial=0)).any():
        raise _damaged_index(records, "a row is longer than a shard")
    ends = np.concatenate([[0], np.cumsum(counts)])
    sums = np.concatenate([[0], np.cumsum(table["bytes"] + RECORD_MARKS)])
    if (np.diff(sums[ends]) != wanted).any():
        raise _damaged_index(records, "its rows are not as long as the shards")
    return Places(table["bytes"].copy(), table["crc32c"].copy())


def read_lengths(records: Records) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """Number of tokens of every row's prefix (with bos and separator) and suffix (with eos).

    Raises:
        DamagedError: `rows.jsonl` lacks them.
    """
    kind = np.dtype([("prefix", np.int32), ("suffix", np.int32)])
    try:
        entries = _rows(records)
        lengths = np.fromiter(((entry["prefix_tokens"], entry["suffix_tokens"]) for entry in entries), kind)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise _damaged_index(records, f"it cannot be read: {error!r}") from None
    if len(lengths) != records.dataset.rows:
        raise _damaged_index(records, f"it lists {len(lengths)} rows of {records.dataset.rows}")
    return lengths["prefix"], lengths["suffix"]


def image_numbers(records: Records) -> Int[np.ndarray, "rows images"]:
    """A number for every image of every row, from 0: the same images have the same number.

    Raises:
        DamagedError: `rows.jsonl` lacks them.
    """
    numbers: dict[str, int] = {}
    wanted = records.dataset.rows * records.dataset.images_per_example
    try:
        hashes = (image for entry in _rows(records) for image in each(entry["image_sha256"]))
        found = np.fromiter((numbers.setdefault(image, len(numbers)) for image in hashes), np.int64)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged_index(records, f"it cannot be read: {error!r}") from None
    if len(found) != wanted:
        raise _damaged_index(records, f"it lists {len(found)} images of {wanted}")
    return found.reshape(records.dataset.rows, records.dataset.images_per_example)


def row_ids(records: Records, rows: Iterable[int]) -> list[str]:
    """The `row_id` of rows by number, for error reports. Reads through `rows.jsonl`, which takes seconds for millions of rows.

    Raises:
        DamagedError: `rows.jsonl` lacks them.
    """
    wanted = [int(row) for row in rows]
    found: dict[int, str] = dict.fromkeys(wanted, "")
    try:
        for number, entry in enumerate(_rows(records)):
            if number in found:
                found[number] = entry["row_id"]
    except (KeyError, TypeError) as error:
        raise _damaged_index(records, f"it cannot be read: {error!r}") from None
    if "" in found.values():
        raise _damaged_index(records, "it ends too early")
    return [found[row] for row in wanted]


def _rows(records: Records) -> Iterator[dict]:
    return read_json_lines(records.rows_file, ROWS_FILE, fix="run prepare_data again")


def _damaged_index(records: Records, why: str) -> DamagedError:
    return DamagedError(f"{ROWS_FILE} is damaged: {why}.", where=records.location, fix="run prepare_data again")
