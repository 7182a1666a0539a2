"""Rows of records in Cloud Storage, fetched one by one ahead of their use, on a bounded part of the disk.

Training reads rows in an order over all shards, so a row is what is fetched: of a shard, all but one row would be thrown away.
`rows.jsonl` lists the size and the crc32c of each row's payload. So it says where each row is, and the order stays what it is
without streaming.

What is checked, as a shard's own hash cannot be:

- `rows.jsonl`, by its sha256 in the lineage record;
- each object's size, against the shard's in `dataset.json`; and its generation, so that an object that replaces it is not read;
- each row: its header, and the crc32c of its payload, against those in `rows.jsonl`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import google_crc32c
import numpy as np
from jaxtyping import Int

from paligemma.data.records import RECORD_MARKS, Records, bytes_for_rows, read_places
from paligemma.data.row_cache import RowCache
from paligemma.data.tfrecord import FOOTER, HEADER, RowReader, mask
from paligemma.errors import DamagedError, InputError
from paligemma.retry import BadBytesError
from paligemma.storage import gcs, versions
from paligemma.storage.disk_space import check_space
from paligemma.storage.location import GcsLocation

CONNECTIONS = 16
"""Ranges that are fetched at the same time. At 20 ms a request, 16 bring 700 rows of 60 kB a second."""

WINDOW_BYTES = 64 << 20
"""Payloads that are fetched ahead of the batches that are being assembled; they are in memory."""

LEAST_AHEAD = 2
"""Batches that are fetched ahead whatever their size."""

RANGE_BYTES = 4 << 20
"""Rows that follow one another are fetched together, up to this size."""

Item = TypeVar("Item")


def open_rows(records: Records) -> RowReader:
    """A reader of the records' rows: of files on this machine, or of a stream."""
    return RowReader(records, RowStream(records) if records.streamed else None)


class RowStream:
    """The payloads of rows by number, from any thread; see `tfrecord.Payloads`."""

    def __init__(self, records: Records) -> None:
        """Looks at the shards' objects, and at what the disk has of their rows.

        Raises:
            InputError: the records list no sizes of rows, or there is not enough room on the disk.
            DamagedError: a shard is gone, or has another size than was recorded.
        """
        places = read_places(records)
        self._sizes, self._checksums = places.sizes, places.checksums
        shards = records.dataset.shards
        self._rows = [shard.rows for shard in shards]
        self._ends = np.cumsum(self._rows)
        self._firsts = {0, *self._ends.tolist()}
        # Where each row's record ends, counted through all shards; and where each shard begins.
        self._stops = np.cumsum(self._sizes + RECORD_MARKS)
        self._bases = np.cumsum([0] + [shard.bytes for shard in shards])
        self._objects = _objects(records)
        room = bytes_for_rows(records)
        self._cache = RowCache(records.slot, self._sizes, self._checksums, room)
        check_space(records.slot.folder, min(room, int(self._sizes.sum())) - self._cache.bytes)
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="rows")
        self._guard = threading.Lock()
        self._coming: dict[int, _Coming] = {}

    def __len__(self) -> int:
        return len(self._sizes)

    def expect(self, rows: Sequence[int]) -> int:
        """Begins to fetch rows that will be read once each, in this order. Returns their size in bytes."""
        with self._guard:
            missing = []
            for row in rows:
                known = self._coming.get(row)
                if known is not None:
                    known.reads += 1
                elif row not in self._cache:
                    self._coming[row] = _Coming()
                    missing.append(row)
            for first, stop in _runs(missing, self._sizes, self._firsts):
                future = self._pool.submit(self._fetch, first, stop)
                for row in range(first, stop):
                    self._coming[row].future = future
        return int(self._sizes[np.asarray(rows, np.int64)].sum())

    def payload(self, row: int) -> bytes:
        """A row's payload, when it has come; one that was not expected is fetched at once.

        Raises:
            DamagedError: it is not what was prepared, or its shard was replaced meanwhile.
            StorageUnavailableError: the service did not answer.
        """
        with self._guard:
            coming = self._coming.get(row)
        if coming is None:
            return self._cache.read(row) or self._fetch(row, row + 1)[row]
        assert coming.future is not None
        payload = coming.future.result()[row]
        with self._guard:
            coming.reads -= 1
            if not coming.reads:
                self._coming.pop(row, None)
        return payload

    def ahead(self, items: Iterable[Item], rows_of: Callable[[Item], Sequence[int]]) -> Iterator[Item]:
        """The items, whose rows are being fetched by the time that each is yielded."""
        coming: deque[tuple[Item, int]] = deque()
        expected = 0
        for item in items:
            size = self.expect(rows_of(item))
            coming.append((item, size))
            expected += size
            while len(coming) > LEAST_AHEAD and expected > WINDOW_BYTES:
                item, size = coming.popleft()
                expected -= size
                yield item
        for item, _ in coming:
            yield item

    def where(self, row: int) -> str:
        """Names a row's record, for messages."""
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return f"{self._objects[shard].location}, row {row - int(self._ends[shard]) + self._rows[shard]}"

    def close(self) -> None:
        """Ends fetching; who waits for a row gets an error."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, first: int, stop: int) -> dict[int, bytes]:
        """The payloads of rows that follow one another in a shard."""
        shard = int(np.searchsorted(self._ends, first, side="right"))
        base = int(self._bases[shard])
        # The headers and footers are part of the range.
        starts = [int(self._stops[row] - self._sizes[row]) - RECORD_MARKS - base for row in range(first, stop)]
        end, found = int(self._stops[stop - 1]) - base, {}

        def check(data: bytes) -> None:
            found.clear()
            for row, (begin, after) in zip(range(first, stop), pairwise([*starts, end]), strict=True):
                found[row] = self._checked(row, data[begin - starts[0] : after - starts[0]])

        try:
            gcs.read_range(self._objects[shard], starts[0], end, check)
        except InputError as error:
            if (now := gcs.stat(self._objects[shard].location)) is None or now.generation != self._objects[shard].generation:
                raise DamagedError(
                    "The records were replaced, or removed, while they were in use.",
                    where=self._objects[shard].location,
                    fix="run the step again",
                ) from None
            raise error
        for row, payload in found.items():
            self._cache.write(row, payload)
        return found

    def _checked(self, row: int, record: bytes) -> bytes:
        """The payload of a row's record.

        Raises:
            BadBytesError: the record is not the row's.
        """
        payload = record[HEADER.size : -FOOTER.size]
        length, of_length = HEADER.unpack_from(record)
        checksum = google_crc32c.value(payload)
        if (length, of_length) != (len(payload), mask(google_crc32c.value(record[:8]))):
            raise BadBytesError(f"row {row} begins with another header")
        if checksum != self._checksums[row] or mask(checksum) != FOOTER.unpack(record[-FOOTER.size :])[0]:
            raise BadBytesError(f"the crc32c of row {row} is {checksum:08x}, expected {int(self._checksums[row]):08x}")
        return payload


class _Coming:
    """A row that is being fetched, and how often it will be read."""

    def __init__(self) -> None:
        self.future: Future[dict[int, bytes]] | None = None
        self.reads = 1


def _runs(rows: Sequence[int], sizes: Int[np.ndarray, " rows"], firsts: Set[int]) -> Iterator[tuple[int, int]]:
    """Rows as ranges `[first, stop)` of rows that follow one another in `rows` and in a shard, each to be fetched at once.

    Args:
        firsts: the first row of each shard.
    """
    if not rows:
        return
    first, stop, total = rows[0], rows[0], 0
    for row in rows:
        if row != stop or (row != first and row in firsts) or (row != first and total + sizes[row] > RANGE_BYTES):
            yield first, stop
            first, total = row, 0
        stop, total = row + 1, total + int(sizes[row])
    yield first, stop


def _objects(records: Records) -> list[gcs.Object]:
    """The object of each shard.

    Raises:
        DamagedError: one is gone, or has another size.
    """
    location, version = records.location, records.record.artifact.version
    assert isinstance(location, GcsLocation)
    assert version is not None
    place = versions.folder_of(location, version)
    found = dict(gcs.list_files(place))
    for shard in records.dataset.shards:
        one = found.get(shard.file)
        if one is None or one.size != shard.bytes:
            size = "is gone" if one is None else f"has {one.size:,} bytes"
            raise DamagedError(
                f"The shard {shard.file} {size}.",
                where=place,
                expected=f"the {shard.bytes:,} bytes that were recorded",
                fix="run prepare_data again",
            )
    return [found[shard.file] for shard in records.dataset.shards]
