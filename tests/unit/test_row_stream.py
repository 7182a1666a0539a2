"""Records in Cloud Storage whose rows are fetched as they are needed: the same batches, on a bounded part of the disk."""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.finetune.job import within_budget
from components.prepare_data.__main__ import run as prepare_data
from conftest import ONE_DEVICE, SmallData
from paligemma import retry
from paligemma.artifacts.record import ROWS_FILE
from paligemma.artifacts.store import artifact_at
from paligemma.data import row_stream
from paligemma.data.augment import Augmentation, check_augmentation
from paligemma.data.batch import TrainBatch
from paligemma.data.loader import training_batches, validation_batches
from paligemma.data.records import Records, SourceRows, bytes_for_rows, open_records, row_ids, stream
from paligemma.data.row_stream import RANGE_BYTES, RowStream, open_rows
from paligemma.errors import DamagedError, InputError
from paligemma.retry import RetryPolicy
from paligemma.storage import gcs
from paligemma.storage.failures import StorageUnavailableError
from paligemma.storage.location import GcsLocation
from servers.fault_proxy import Fault, FaultProxy, Request, Status, random_schedule
from servers.gcs import GcsServer

PLACE = GcsLocation("bucket", "records")
ROWS, PER_SHARD = 60, 13
PLENTY = 10**9


@dataclass
class Place:
    """Records of 60 rows over 20 pictures in 5 shards: on the disk, and in a bucket behind a proxy."""

    local: Path
    proxy: FaultProxy
    server: GcsServer
    faults: Callable[[Request], Fault | None] = lambda request: None

    def streamed(self, budget: int = PLENTY) -> Records:
        return stream(open_records(PLACE), budget)

    def fetched(self) -> list[tuple[str, int, int]]:
        """The ranges `[begin, end)` of shards that were asked for since the last call."""
        found = []
        for request, _, _ in self.proxy.log:
            if ".tfrecord" in request.path:
                first, last = map(int, (request.range or "").removeprefix("bytes=").split("-"))
                found.append((request.path, first, last + 1))
        self.proxy.log.clear()
        return found

    @property
    def size(self) -> int:
        """Of all shards."""
        return sum(shard.bytes for shard in open_records(self.local).dataset.shards)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    data = SmallData(tmp_path_factory.mktemp("source"))
    rows = [
        {"image": data.add_image(f"{n % 20}.png", n % 20), "prefix": "ocr", "suffix": " ".join(["one"] * (n % 7 + 1))}
        for n in range(ROWS)
    ]
    jsonl, local = str(data.write(rows)), tmp_path_factory.mktemp("local") / "records"
    with GcsServer() as server, FaultProxy(server.url, lambda request: place.faults(request)) as proxy:
        place = Place(local, proxy, server)
        server.create_bucket("bucket")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", server.url)
            for output in (str(local), str(PLACE)):
                prepare_data(data=jsonl, checkpoint="embedded:tiny", output=output, rows_per_shard=PER_SHARD)
        yield place


@pytest.fixture
def place(made: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The same, from a machine with nothing in its cache; faults last for a test, and retries are quick."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", made.proxy.url)
    monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "RETRY", RetryPolicy(initial=0.01, maximum=0.05, timeout=2))
    made.proxy.log.clear()
    yield made
    made.faults = lambda request: None
    wait_for_threads()


def wait_for_threads() -> None:
    """Until nothing is fetched any more, and nobody holds what was."""
    for thread in threading.enumerate():
        if thread.name.startswith(("rows", "loader")):
            thread.join(20)
    gc.collect()


def take(records: Records, count: int, **options) -> list[tuple[np.ndarray, TrainBatch]]:
    batches = training_batches(records, 8, 3, **options)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_equal(ours: list[tuple[np.ndarray, TrainBatch]], theirs: list[tuple[np.ndarray, TrainBatch]]) -> None:
    assert len(ours) == len(theirs)
    for (rows, batch), (other_rows, other) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(rows, other_rows)
        for mine, its in zip(batch, other, strict=True):
            np.testing.assert_array_equal(mine, its)


def bytes_of(ranges: list[tuple[str, int, int]]) -> int:
    return sum(end - begin for _, begin, end in ranges)


def on_disk(tmp_path: Path) -> int:
    """Bytes of whole blocks."""
    return sum(path.stat().st_blocks * 512 for path in (tmp_path / "cache").rglob("*") if path.is_file())


def least(place: Place) -> int:
    """The budget that leaves nothing for rows."""
    return PLENTY - bytes_for_rows(place.streamed())


@pytest.mark.parametrize("share", [0, 0.4, 1, 10])
def test_batches_are_those_of_records_that_were_fetched_first(place: Place, tmp_path: Path, share: float) -> None:
    records = open_records(place.local)
    budget = least(place) + int(share * place.size)
    streamed = place.streamed(budget)
    augment = Augmentation(colour=0.5)
    assert_equal(take(streamed, 30, augment=augment), take(records, 30, augment=augment))
    assert_equal(take(streamed, 9, start_step=11), take(records, 9, start_step=11))
    shares = [take(streamed, 5, process_index=index, process_count=2) for index in (0, 1)]
    assert_equal(shares[1], take(records, 5, process_index=1, process_count=2))
    assert_equal(list(validation_batches(streamed, 7)), list(validation_batches(records, 7)))
    assert row_ids(streamed, [5, 59]) == row_ids(records, [5, 59])
    assert on_disk(tmp_path) <= budget
    assert not list((tmp_path / "cache").rglob("*.tfrecord"))


@pytest.mark.parametrize("share", [0, 10])
def test_rows_of_a_mixture_that_come_again_within_an_epoch_are_the_same(place: Place, share: float) -> None:
    sources = [SourceRows(name="few", rows=5, rejected=0, weight=9.0), SourceRows(name="rest", rows=55, rejected=0, weight=1.0)]
    local = open_records(place.local)
    mixed = local.dataset.model_copy(update={"sources": sources})
    streamed = replace(place.streamed(least(place) + int(share * place.size)), dataset=mixed)
    ours = take(streamed, 20)
    assert any(len(set(rows.tolist())) < len(rows) for rows, _ in ours)
    assert_equal(ours, take(replace(local, dataset=mixed), 20))


def test_a_set_that_fits_is_fetched_once_in_many_epochs_and_by_the_next_run(place: Place) -> None:
    for _ in range(2):
        records = place.streamed()
        take(records, 40)
        del records
        wait_for_threads()
    assert bytes_of(place.fetched()) == place.size


def test_of_a_set_that_does_not_fit_the_rows_that_came_first_stay(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_stream, "WINDOW_BYTES", 1)
    records = place.streamed(least(place) + place.size // 2)
    place.fetched()
    batches = training_batches(records, 6, 0, buckets=1)
    list(itertools.islice(batches, 40))  # four epochs, and up to eight batches ahead
    batches.close()
    wait_for_threads()
    assert 1.9 < bytes_of(place.fetched()) / place.size < 3.1  # of the later epochs half; without keeping any, 4 to 4.8


def test_nothing_is_fetched_but_lists_and_rows_that_are_needed_soon(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_stream, "WINDOW_BYTES", 1)
    records = place.streamed()
    batches = training_batches(records, 2, 0)
    next(batches)
    batches.close()
    names = {request.path.rpartition("%2F")[2] for request, _, _ in place.proxy.log if "/download/" in request.path}
    assert {name for name in names if ".tfrecord" not in name} == {"dataset.json", ROWS_FILE, "lineage.json"}
    # One batch in use, four that threads assemble, and two or three that are fetched ahead.
    assert len(place.fetched()) <= 2 * 8


def test_rows_that_follow_one_another_come_together(place: Place) -> None:
    records = place.streamed()
    check_augmentation(Augmentation(flip=True), records)
    assert len(place.fetched()) == len(records.dataset.shards)
    check_augmentation(Augmentation(flip=True), records)
    assert place.fetched() == []


@given(st.lists(st.integers(0, 30), unique=True), st.sets(st.integers(1, 29)))
def test_ranges_are_the_rows_in_order_within_a_shard_and_a_size(rows: list[int], firsts: set[int]) -> None:
    sizes = np.full(31, RANGE_BYTES // 3)
    runs = list(row_stream._runs(rows, sizes, firsts))
    assert [row for first, stop in runs for row in range(first, stop)] == rows
    assert all(0 < stop - first <= 3 for first, stop in runs)
    assert not any(firsts & set(range(first + 1, stop)) for first, stop in runs)


@pytest.mark.parametrize("seed", range(4))
def test_a_network_that_breaks_changes_no_bit(place: Place, seed: int) -> None:
    schedule = random_schedule(seed, 0.3)
    schedule.permanent = False
    place.faults = lambda request: schedule(request) if ".tfrecord" in request.path else None
    assert_equal(take(place.streamed(least(place) + 5000), 24), take(open_records(place.local), 24))
    assert sum(fault is not None for _, fault, _ in place.proxy.log) > 10


def test_a_server_that_is_gone_is_an_error_that_says_what_to_do(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_stream, "WINDOW_BYTES", 1)
    batches = training_batches(place.streamed(least(place)), 8, 3)
    next(batches)
    place.faults = lambda request: Status(503)
    with pytest.raises(
        StorageUnavailableError, match=r"did not answer: read gs://bucket(.|\n)*run the same command again"
    ) as met:
        list(itertools.islice(batches, 200))
    assert met.value.exit_code == 4
    batches.close()


def shards() -> list[gcs.Object]:
    return [one for one in gcs.list_objects(PLACE) if one.location.name.endswith(".tfrecord")]


@pytest.fixture
def restored(place: Place) -> Iterator[None]:
    """Puts the shards back after a test."""
    kept = {one.location: gcs.read_bytes(one.location)[0] for one in shards()}
    yield
    for location, data in kept.items():
        gcs.write_bytes(location, data)


def test_a_shard_that_is_replaced_while_it_is_in_use_is_not_read(place: Place, restored: None) -> None:
    reader = open_rows(place.streamed())
    reader.read(0)
    first = shards()[0]
    gcs.write_bytes(first.location, gcs.read_bytes(first.location)[0])  # the same bytes, but nobody checks that
    with pytest.raises(DamagedError, match=r"were replaced, or removed(.|\n)*run the step again"):
        reader.read(1)
    gcs.delete(shards()[1].location)
    with pytest.raises(DamagedError, match="were replaced, or removed"):
        reader.read(PER_SHARD)


@pytest.mark.parametrize(
    ("change", "words"), [("payload", "never matched their checksum"), ("size", "has .* bytes"), ("gone", "is gone")]
)
def test_a_shard_that_is_not_what_was_written_is_found(place: Place, restored: None, change: str, words: str) -> None:
    first = shards()[0]
    data = bytearray(gcs.read_bytes(first.location)[0])
    if change == "gone":
        gcs.delete(first.location)
    else:
        data[100] ^= 1
        gcs.write_bytes(first.location, bytes(data) + b"x" * (change == "size"))
    with pytest.raises(DamagedError, match=words):
        open_rows(place.streamed()).read(0)


def test_a_row_of_another_data_set_with_a_right_checksum_is_found(place: Place, restored: None) -> None:
    """Two rows of equal size change places: each is whole, so only the list of rows says so."""
    sizes = RowStream(place.streamed())._sizes[:PER_SHARD]
    one, other = next((a, b) for a, b in itertools.combinations(range(PER_SHARD), 2) if sizes[a] == sizes[b])
    first = shards()[0]
    data = bytearray(gcs.read_bytes(first.location)[0])
    begins = np.concatenate([[0], np.cumsum(sizes + 16)])
    parts = [slice(begins[row], begins[row + 1]) for row in (one, other)]
    data[parts[0]], data[parts[1]] = data[parts[1]], data[parts[0]]
    gcs.write_bytes(first.location, bytes(data))
    with pytest.raises(DamagedError, match=rf"crc32c of row {one}"):
        open_rows(place.streamed()).read(one)


def lists_of(edit: Callable[[dict], object], place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Records:
    """Records whose `rows.jsonl` was edited, and whose hash nobody looked at."""
    entries = [json.loads(line) for line in (place.local / ROWS_FILE).read_text().splitlines()]
    for entry in entries:
        edit(entry)
    edited = tmp_path / "rows.jsonl"
    edited.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    monkeypatch.setattr("paligemma.data.records.file_of", lambda *_: edited)
    return place.streamed()


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (lambda row: row.pop("bytes"), InputError, "An earlier version prepared the records(.|\n)*leave out --disk-budget"),
        (lambda row: row.update(bytes=row["bytes"] + 1), DamagedError, "not as long as the shards"),
        (lambda row: row.update(bytes=-1), DamagedError, "longer than a shard"),
        (lambda row: row.update(bytes=2**62), DamagedError, "longer than a shard"),
        (lambda row: row.update(bytes=2**63), DamagedError, "cannot be read"),
        (lambda row: row.update(bytes="x"), DamagedError, "cannot be read"),
        (lambda row: row.update(crc32c="no"), DamagedError, "cannot be read"),
        (lambda row: row.update(crc32c=1), DamagedError, "cannot be read"),
    ],
)
def test_a_list_of_rows_that_is_not_of_the_shards_is_refused_in_words(
    edit: Callable[[dict], object], error: type[Exception], words: str, place: Place, monkeypatch, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        RowStream(lists_of(edit, place, monkeypatch, tmp_path))


@pytest.mark.parametrize("rows", [[], [60], [-1, 61, 0, 0, 0], [2**62, 2**62, 2**62, 2**62, 60], [13, 13, 13, 13, 9]])
def test_shards_that_do_not_have_the_rows_are_refused_in_words(place: Place, rows: list[int]) -> None:
    records = place.streamed()
    shards = [shard.model_copy(update={"rows": count}) for shard, count in zip(records.dataset.shards, rows, strict=False)]
    wrong = replace(records, dataset=records.dataset.model_copy(update={"shards": shards}))
    with pytest.raises(DamagedError, match=r"rows\.jsonl is damaged"):
        RowStream(wrong)


def test_a_list_of_rows_that_was_altered_is_not_used(place: Place) -> None:
    (rows,) = (one for one in gcs.list_objects(PLACE) if one.location.name.endswith(ROWS_FILE))
    before = gcs.read_bytes(rows.location)[0]
    gcs.write_bytes(rows.location, before.replace(b'"line": 1,', b'"line": 2,'))
    with pytest.raises(DamagedError, match="does not match the artifact's record"):
        open_rows(place.streamed())
    gcs.write_bytes(rows.location, before)


def test_what_cannot_be_streamed_is_refused_before_anything_is_fetched(place: Place, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"lists of the records take more(.|\n)*at least {least(place):,} bytes"):
        place.streamed(least(place) - 1)
    packed = GcsLocation("bucket", "packed")
    data = SmallData(tmp_path)
    rows = [{"image": data.add_image("a.png"), "prefix": "p", "suffix": "s"}]
    prepare_data(data=str(data.write(rows)), checkpoint="embedded:tiny", output=str(packed), compression="gzip")
    with pytest.raises(InputError, match=r"gzip packs whole(.|\n)*--compression webp"):
        stream(open_records(packed), PLENTY)
    assert place.fetched() == []


def test_validation_records_count_and_local_ones_do_not(place: Place) -> None:
    train, local = open_records(PLACE), open_records(place.local)
    size = train.record.artifact.bytes
    assert within_budget(train, None, PLENTY).disk_budget == PLENTY
    assert within_budget(train, train, PLENTY).disk_budget == PLENTY - size
    assert within_budget(train, local, PLENTY).disk_budget == PLENTY
    assert within_budget(local, None, 1) is local
    with pytest.raises(InputError, match=rf"validation records have {size:,} bytes(.|\n)*raise --disk-budget"):
        within_budget(train, train, size - 1)
    assert artifact_at(PLACE) == PLACE


def test_a_process_that_was_killed_leaves_its_rows_to_the_next(place: Place, tmp_path: Path) -> None:
    code = """
    import itertools, os, signal, sys
    from paligemma.data.loader import training_batches
    from paligemma.data.records import open_records, stream
    batches = training_batches(stream(open_records(sys.argv[1]), 10**9), 8, 3)
    list(itertools.islice(batches, 15))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = {**ONE_DEVICE, "STORAGE_EMULATOR_HOST": place.proxy.url, "PALIGEMMA_CACHE": str(tmp_path / "cache")}
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(PLACE)], env=environment, timeout=120)
    assert killed.returncode == -9
    first = bytes_of(place.fetched())
    assert 0.9 * place.size < first <= place.size
    assert_equal(take(place.streamed(), 20, start_step=15), take(open_records(place.local), 20, start_step=15))
    assert bytes_of(place.fetched()) <= place.size - first + 16 * place.size / ROWS  # what was on its way comes again


def test_fetching_ends_with_the_iterator(place: Place) -> None:
    before = set(threading.enumerate())
    batches = training_batches(place.streamed(), 4, 0)
    next(batches)
    assert any(thread.name.startswith("rows") for thread in set(threading.enumerate()) - before)
    batches.close()
    wait_for_threads()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("rows")]
