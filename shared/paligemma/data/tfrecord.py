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
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import google_crc32c
import numpy as np
from jaxtyping import Int, UInt8

from paligemma.artifacts.record import file_sha256
from paligemma.data.records import Records, Shard, as_image
from paligemma.data.tf_example import TFExample
from paligemma.errors import DamagedError
from paligemma.progress import WorkProgress
from paligemma.storage.cache import cache_folder, exclusive
from paligemma.storage.disk_space import check_space

HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_PIECE = 1 << 20


@dataclass(frozen=True)
class StoredRow:
    """A row as stored in a record; see `records.Example`."""

    image: UInt8[np.ndarray, "*n size size 3"]
    tokens: Int[np.ndarray, " t"]
    prefix_length: int
    prefix: str
    suffix: str
    row_id: str
    line: int
    answers: tuple[str, ...] = ()
    masks: str = ""


class RowReader:
    """Reads rows of records by number, from any thread. Indexes a shard when one of its rows is first read."""

    def __init__(self, records: Records) -> None:
        """Unpacks gzip shards into the cache folder, unless they are there already.

        Raises:
            DamagedError: a gzip shard is damaged.
        """
        shards = records.dataset.shards
        packed = records.dataset.compression == "gzip"
        paths = _unpack(records) if packed else records.shard_paths
        fix = "remove this file: it is unpacked again" if packed else "run prepare_data again"
        self._files = [TFRecordFile(path, shard.rows, fix) for path, shard in zip(paths, shards, strict=True)]
        self._ends = list(accumulate(shard.rows for shard in shards))
        self._size, self._images = records.dataset.image_size, records.dataset.images_per_example

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, row: int) -> StoredRow:
        """The row with this number, from 0, in the order of the shards.

        Raises:
            IndexError: there is no such row.
            DamagedError: its record, or the shard, is damaged.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        shard = bisect_right(self._ends, row)
        file = self._files[shard]
        position = row - (self._ends[shard] - file.rows)
        feature = TFExample.FromString(file.read(position)).features.feature
        stored = feature["image"].bytes_list.value
        if len(stored) != self._images:
            raise DamagedError(
                f"A record has {len(stored)} images, each has {self._images}.",
                where=f"{file.path}, row {position}",
                fix="run prepare_data again",
            )

        def text(name: str) -> str:
            return feature[name].bytes_list.value[0].decode()

        return StoredRow(
            image=as_image([np.frombuffer(one, np.uint8).reshape(self._size, self._size, 3) for one in stored]),
            tokens=np.array(feature["tokens"].int64_list.value, np.int32),
            prefix_length=feature["prefix_length"].int64_list.value[0],
            prefix=text("prefix"),
            suffix=text("suffix"),
            row_id=text("row_id"),
            line=feature["line"].int64_list.value[0],
            answers=tuple(answer.decode() for answer in feature["answers"].bytes_list.value),
            masks=text("masks") if feature["masks"].bytes_list.value else "",
        )


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
    value = google_crc32c.value(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


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
