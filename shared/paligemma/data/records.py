"""Records: TFRecord shards of prepared examples, and `dataset.json`, which describes them. Defines and opens the format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, model_validator

from paligemma.artifacts.record import ROWS_FILE, MadeRecord
from paligemma.artifacts.store import artifact_at, localize_recorded, record_of, small_files
from paligemma.choices import Compression
from paligemma.data.source_list import LEAST_WEIGHT, MOST_WEIGHT
from paligemma.errors import DamagedError
from paligemma.foreign_json import read_json_lines, read_model
from paligemma.safe_names import RelativePath, Sha256
from paligemma.storage.location import Location

DATASET_FILE = "dataset.json"
WARNINGS_FILE = "warnings.jsonl"
IMAGES_FILE = "images.jsonl"
"""What was found under each image's name: `image_file`, and `image_sha256`, `bytes`, `crc32c`, or a `fault`; by range."""
PARTS_FILE = "parts.jsonl"
"""The facts of each range (`prepare.Facts`), in order."""
ARTIFACT_TYPE = "records"


@dataclass(frozen=True)
class Example:
    """One record: the model's input, and its origin.

    Attributes:
        image: uint8 `[size, size, 3]`, already resized.
        prefix_ids: `[bos] prefix "\\n"`.
        suffix_ids: `suffix [eos]`.
        row_id: hash of the row's contents; see `rows.row_id`.
        line: the row's line in the source, from 1.
        answers: references for evaluation; empty if the suffix is the only one.
        masks: true masks for evaluation, as `seg_masks.masks_text` writes them; empty if the row keeps none.
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
        images: number of different images, by their bytes.
        frequent_suffixes: the most frequent suffixes, and the number of rows of each.
        grey_range: samples of black and white in grey pictures, `LOW,HIGH`; empty: as stated in each file.
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


@dataclass(frozen=True)
class Records:
    """An opened records artifact. On `gs://`, its shards are fetched when one is first asked for.

    Attributes:
        location: where it is.
        record: its lineage record.
    """

    location: Location
    record: MadeRecord
    dataset: Dataset

    @cached_property
    def folder(self) -> Path:
        """The artifact's local folder.

        Raises:
            DamagedError: the artifact was replaced since it was opened, or is damaged.
        """
        return localize_recorded(self.location, self.record)

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


def image_numbers(records: Records) -> Int[np.ndarray, " rows"]:
    """An image number for every row, from 0: rows with the same image have the same number.

    Raises:
        DamagedError: `rows.jsonl` lacks them.
    """
    numbers: dict[str, int] = {}
    try:
        hashes = (entry["image_sha256"] for entry in _rows(records))
        found = np.fromiter((numbers.setdefault(image, len(numbers)) for image in hashes), np.int64)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged_index(records, f"it cannot be read: {error!r}") from None
    if len(found) != records.dataset.rows:
        raise _damaged_index(records, f"it lists {len(found)} rows of {records.dataset.rows}")
    return found


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
    return read_json_lines(records.folder / ROWS_FILE, ROWS_FILE, fix="run prepare_data again")


def _damaged_index(records: Records, why: str) -> DamagedError:
    return DamagedError(f"{ROWS_FILE} is damaged: {why}.", where=records.location, fix="run prepare_data again")
