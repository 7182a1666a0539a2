"""Random access to the rows of TFRecord shards. Indexes offsets from record headers alone, and checks every payload.

The format, little-endian: length (uint64), masked crc32c of it (uint32), payload, masked crc32c of it (uint32); after
tensorflow/core/lib/io/record_writer.h.
"""

from __future__ import annotations

import gzip
import math
import os
import shutil
import struct
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol, TypeVar

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError
from jaxtyping import Int, UInt8

from paligemma.artifacts.record import file_sha256
from paligemma.data.records import Records, Shard, as_image
from paligemma.data.stored_pictures import unpack_picture
from paligemma.data.tf_example import TFExample
from paligemma.errors import DamagedError
from paligemma.progress import WorkProgress
from paligemma.storage.cache import cache_folder, exclusive
from paligemma.storage.disk_space import check_space

HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_PIECE = 1 << 20

_NO_IMAGE = np.empty((0, 0, 3), np.uint8)

Item = TypeVar("Item")


@dataclass(frozen=True)
class StoredRow:
    """A row of a record; see `records.Example`. Its picture is unpacked, or `[0, 0, 3]` if only the texts were asked for."""

    image: UInt8[np.ndarray, "*n size size 3"]
    tokens: Int[np.ndarray, " t"]
    prefix_length: int
    prefix: str
    suffix: str
    row_id: str
    line: int
    answers: tuple[str, ...] = ()
    masks: str = ""


class Payloads(Protocol):
    """Where the payloads of rows come from, by number, from any thread."""

    def __len__(self) -> int: ...

    def payload(self, row: int) -> bytes:
        """A row's payload."""
        ...

    def ahead(self, items: Iterable[Item], rows_of: Callable[[Item], Sequence[int]]) -> Iterable[Item]:
        """The items, each of which reads these rows once; they may be fetched before an item is yielded."""
        ...

    def where(self, row: int) -> str:
        """Names a row's record, for messages."""
        ...

    def close(self) -> None:
        """Ends what was begun ahead."""
        ...


class RowReader:
    """Reads rows of records by number, from any thread."""

    def __init__(self, records: Records, payloads: Payloads | None = None) -> None:
        """Unpacks gzip shards into the cache folder, unless they are there already.

        Args:
            records: the records.
            payloads: where the payloads come from; None: the shards' files.

        Raises:
            DamagedError: a gzip shard is damaged.
        """
        self._payloads = ShardFiles(records) if payloads is None else payloads
        self._dataset = records.dataset

    def __len__(self) -> int:
        return len(self._payloads)

    def read(self, row: int) -> StoredRow:
        """The row with this number, from 0, in the order of the shards.

        Raises:
            IndexError: there is no such row.
            DamagedError: its record, or the shard, is damaged.
        """
        return self._parse(row, with_image=True)

    def read_texts(self, row: int) -> StoredRow:
        """`read` without the picture, whose unpacking takes most of the time."""
        return self._parse(row, with_image=False)

    def ahead(self, items: Iterable[Item], rows_of: Callable[[Item], Sequence[int]]) -> Iterable[Item]:
        """The items, whose rows are about to be read; see `Payloads.ahead`."""
        return self._payloads.ahead(items, rows_of)

    def close(self) -> None:
        """Ends what was begun ahead."""
        self._payloads.close()

    def _parse(self, row: int, *, with_image: bool) -> StoredRow:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        payload = self._payloads.payload(row)
        try:
            feature = TFExample.FromString(payload).features.feature
            stored, wanted = feature["image"].bytes_list.value, self._dataset.images_per_example
            if len(stored) != wanted:
                raise ValueError(f"it has {len(stored)} images, each has {wanted}")
            size, compression = self._dataset.image_size, self._dataset.compression
            pixels = [unpack_picture(one, size, compression) for one in stored] if with_image else [_NO_IMAGE]

            def text(name: str) -> str:
                return feature[name].bytes_list.value[0].decode()

            return StoredRow(
                image=as_image(pixels),
                tokens=np.array(feature["tokens"].int64_list.value, np.int32),
                prefix_length=feature["prefix_length"].int64_list.value[0],
                prefix=text("prefix"),
                suffix=text("suffix"),
                row_id=text("row_id"),
                line=feature["line"].int64_list.value[0],
                answers=tuple(answer.decode() for answer in feature["answers"].bytes_list.value),
                masks=text("masks") if feature["masks"].bytes_list.value else "",
            )
        except (DecodeError, ValueError, IndexError, OverflowError) as error:
            raise DamagedError(
                f"A record is not a row: {error}.", where=self._payloads.where(row), fix="run prepare_data again"
            ) from None


class ShardFiles:
    """The payloads in files. Indexes a shard when one of its rows is first read."""

    def __init__(self, records: Records) -> None:
        """Unpacks gzip shards; see `RowReader`."""
        shards = records.dataset.shards
        packed = records.dataset.compression == "gzip"
        paths = _unpack(records) if packed else records.shard_paths
        fix = "remove this file: it is unpacked again" if packed else "run prepare_data again"
        self._files = [TFRecordFile(path, shard.rows, fix) for path, shard in zip(paths, shards, strict=True)]
        self._ends = list(accumulate(shard.rows for shard in shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def payload(self, row: int) -> bytes:
        file, position = self._place(row)
        return file.read(position)

    def ahead(self, items: Iterable[Item], rows_of: Callable[[Item], Sequence[int]]) -> Iterable[Item]:
        return items

    def where(self, row: int) -> str:
        file, position = self._place(row)
        return f"{file.path}, row {position}"

    def close(self) -> None:
        pass

    def _place(self, row: int) -> tuple[TFRecordFile, int]:
        shard = bisect_right(self._ends, row)
        file = self._files[shard]
        return file, row - (self._ends[shard] - file.rows)


class TFRecordFile:
    """One uncompressed TFRecord file of a known number of rows.

    Opens the file for each read, which costs 3 microseconds, so thousands of shards need not stay open. Reads rather than maps
    the file, so a file that is cut short during a job gives an error, not a crash (SIGBUS).
    """

    def __init__(self, path: Path, rows: int, fix: str) -> None:
        """Args: `fix` tells the user what to do about a damaged file."""
        self.path, self.rows, self._fix = path, rows, fix
        self._offsets: np.ndarray | None = None
        self._lock = threading.Lock()

    def read(self, row: int) -> bytes:
        """The payload of a row, by number from 0.

        Raises:
            DamagedError: the payload does not match its checksum, or the file's headers are damaged.
        """
        offsets = self._index()
        begin, stop = int(offsets[row]), int(offsets[row + 1])
        start = begin + HEADER.size
        handle = self._open()
        try:
            data = os.pread(handle, stop - start, start)
        except OSError as error:
            raise self._damaged(row, begin, f"the file cannot be read: {error.strerror}") from None
        finally:
            os.close(handle)
        if len(data) < stop - start:
            raise self._damaged(row, begin, "the file ends within it")
        payload = data[: -FOOTER.size]
        if masked_crc32c(payload) != FOOTER.unpack_from(data, len(payload))[0]:
            raise self._damaged(row, begin, "its payload does not match its checksum")
        return payload

    def _index(self) -> Int[np.ndarray, " rows+1"]:
        """The start of each record, and the end of the last."""
        with self._lock:
            if self._offsets is None:
                self._offsets = self._scan()
            return self._offsets

    def _scan(self) -> Int[np.ndarray, " rows+1"]:
        offsets = np.zeros(self.rows + 1, np.int64)
        handle = self._open()
        try:
            size, end = os.fstat(handle).st_size, 0
            for row in range(self.rows):
                header = os.pread(handle, HEADER.size, end)
                if len(header) < HEADER.size:
                    raise self._damaged(row, end, f"the file ends before it, {self.rows} rows were written")
                length, checksum = HEADER.unpack(header)
                if masked_crc32c(header[:8]) != checksum:
                    raise self._damaged(row, end, "its length does not match its checksum")
                end += HEADER.size + length + FOOTER.size
                if end > size:
                    raise self._damaged(row, int(offsets[row]), "the file ends within it")
                offsets[row + 1] = end
        except OSError as error:
            raise self._damaged(0, 0, f"the file cannot be read: {error.strerror}") from None
        finally:
            os.close(handle)
        if end != size:
            raise self._damaged(self.rows, end, f"there are {size - end} bytes after the last row")
        return offsets

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise self._damaged(0, 0, f"the file cannot be opened: {error.strerror}") from None

    def _damaged(self, row: int, offset: int, why: str) -> DamagedError:
        return DamagedError(f"A record cannot be read: {why}.", where=f"{self.path}, row {row}, byte {offset}", fix=self._fix)


def masked_crc32c(data: bytes) -> int:
    """The checksum of a TFRecord: crc32c, rotated and offset, so that it stays sound over data that contain checksums."""
    return mask(google_crc32c.value(data))


def mask(crc32c: int) -> int:
    """A crc32c as TFRecord files have it."""
    return ((crc32c >> 15 | crc32c << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _unpack(records: Records) -> list[Path]:
    """Unpacks gzip shards into the cache folder, named by the sha256 of the shards."""
    shards, row_bytes = records.dataset.shards, math.prod(records.dataset.image_shape)
    folder = cache_folder() / "shards"
    paths = [folder / f"{shard.sha256}.tfrecord" for shard in shards]
    missing = [unpack for unpack in zip(records.shard_paths, shards, paths, strict=True) if not unpack[-1].is_file()]
    if missing:
        rows = sum(shard.rows for _, shard, _ in missing)
        folder.mkdir(parents=True, exist_ok=True)
        check_space(folder, rows * row_bytes)  # the images, which make up nearly all of the size
        with WorkProgress("unpacking shards", "rows", rows) as progress:
            for source, shard, path in missing:
                with exclusive(path):
                    if not path.is_file():
                        _unpack_one(source, shard, path)
                progress.advance(shard.rows)
    return paths


def _unpack_one(source: Path, shard: Shard, path: Path) -> None:
    if file_sha256(source) != shard.sha256:
        raise DamagedError("A shard is not what was written.", where=source, fix="run prepare_data again")
    partial = path.with_name(f".{path.name}.partial")  # one writer at a time: the caller holds the lock
    with gzip.open(source) as packed, partial.open("wb") as file:
        shutil.copyfileobj(packed, file, _PIECE)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
