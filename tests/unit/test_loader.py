"""Batches from records."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import SmallData
from paligemma.checkpoints.open_checkpoint import resolve_embedded
from paligemma.data.augment import Augmentation
from paligemma.data.batch import TrainBatch
from paligemma.data.loader import LOOK_AHEAD, training_batches
from paligemma.data.records import open_records, row_ids
from paligemma.data.tfrecord import RowReader, StoredRow
from paligemma.data.tokenizer import Tokenizer
from paligemma.errors import DamagedError, InputError

TINY = Tokenizer(resolve_embedded("embedded:tiny") / "tokenizer.model")


def texts(batch: TrainBatch) -> list[tuple[str, str]]:
    """Prefix and suffix of each row, read back from its tokens and masks."""
    result = []
    for tokens, mask_ar, targets, mask_loss in zip(batch.tokens, batch.mask_ar, batch.targets, batch.mask_loss, strict=True):
        before, after = tokens[(mask_ar == 0) & (tokens != 0)], targets[mask_loss == 1]
        assert before[0] == TINY.bos_id
        assert after[-1] == TINY.eos_id
        assert list(after[:-1]) == list(tokens[mask_ar == 1])[: len(after) - 1]
        prefix = TINY.decode(before)
        assert prefix.endswith("\n")
        result.append((prefix[:-1], TINY.decode(after)))
    return result


def source(records: Path) -> list[tuple[str, str]]:
    return [(row.prefix, row.suffix) for row in all_rows(records)]


def all_rows(records: Path) -> list[StoredRow]:
    reader = RowReader(open_records(records))
    return [reader.read(number) for number in range(len(reader))]


def take(records: Path, count: int, batch_size: int = 7, seed: int = 0, **options) -> list[tuple[np.ndarray, TrainBatch]]:
    return list(itertools.islice(training_batches(open_records(records), batch_size, seed, **options), count))


def assert_equal(ours: list, theirs: list) -> None:
    assert len(ours) == len(theirs)
    for (rows, batch), (other_rows, other) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(rows, other_rows)
        for name, mine, its in zip(batch._fields, batch, other, strict=True):
            np.testing.assert_array_equal(mine, its, err_msg=name)


@pytest.fixture(scope="session")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of 80 rows in shards of 30: 40 of few tokens, 40 of many. Each has a picture of one level, its number."""
    from components.prepare_data.__main__ import run

    data = SmallData(tmp_path_factory.mktemp("varied-source"))
    for number in range(80):
        Image.new("RGB", (32, 32), (number, number, number)).save(data.folder / f"{number}.png")
    rows = [{"image": f"{n}.png", "prefix": "a" * (1 + n % 2 * 30), "suffix": str(n)} for n in range(80)]
    output = tmp_path_factory.mktemp("varied") / "train"
    run(data=data.write(rows), checkpoint="embedded:tiny", output=output, rows_per_shard=30)
    return output


def test_tokens_and_targets_are_those_of_the_rows(records: Path) -> None:
    rows = [row for _, batch in take(records, 3) for row in texts(batch)]
    assert sorted(rows) == sorted(source(records))


def test_a_batch_is_the_rows_it_says(varied: Path) -> None:
    pairs = source(varied)
    for rows, batch in take(varied, 12, batch_size=2):
        assert texts(batch) == [pairs[row] for row in rows]
        assert batch.images.dtype == np.uint8
        assert batch.images.shape == (2, 32, 32, 3)
        assert [set(image.flat) for image in batch.images] == [{row} for row in rows]
        assert {array.dtype for array in batch[1:]} == {np.dtype("int32")}


def test_every_epoch_has_every_row_in_another_order(records: Path) -> None:
    batches = take(records, 6, seed=3)
    first, second = (np.concatenate([rows for rows, _ in half]).tolist() for half in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == list(range(21))
    assert first != second


def test_the_seed_determines_the_order(records: Path) -> None:
    assert_equal(take(records, 2, 16, seed=1), take(records, 2, 16, seed=1))
    assert take(records, 1, 16, seed=1)[0][0].tolist() != take(records, 1, 16, seed=2)[0][0].tolist()


def test_batches_have_the_shape_of_their_bucket(varied: Path) -> None:
    shapes = {(batch.tokens.shape, batch.targets.shape) for _, batch in take(varied, 40, batch_size=2)}
    assert shapes == {((2, 16), (2, 8)), ((2, 48), (2, 8))}
    shapes = {(batch.tokens.shape, batch.targets.shape) for _, batch in take(varied, 40, batch_size=2, buckets=1)}
    assert shapes == {((2, 48), (2, 8))}


AUGMENTATION = Augmentation(flip=True, crop=0.5, colour=0.3)


@pytest.mark.parametrize("augment", [None, AUGMENTATION])
def test_starting_at_a_step_is_continuing(varied: Path, augment: Augmentation | None) -> None:
    whole = take(varied, 50, batch_size=2, augment=augment)
    assert_equal(take(varied, 7, batch_size=2, augment=augment, start_step=43), whole[43:])


def test_timing_does_not_show(varied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = take(varied, 12, batch_size=4, augment=AUGMENTATION)
    read, random = RowReader.read, np.random.default_rng(0)

    def slowly(self: RowReader, row: int):
        time.sleep(random.uniform(0, 0.004))
        return read(self, row)

    monkeypatch.setattr(RowReader, "read", slowly)
    assert_equal(take(varied, 12, batch_size=4, augment=AUGMENTATION), expected)


def test_processes_read_their_shares_of_the_same_batches(varied: Path) -> None:
    whole = take(varied, 8, batch_size=4, augment=AUGMENTATION)
    parts = [take(varied, 8, batch_size=4, augment=AUGMENTATION, process_index=n, process_count=2) for n in range(2)]
    joined = [
        (np.concatenate([rows, others]), TrainBatch(*(np.concatenate(pair) for pair in zip(batch, other, strict=True))))
        for (rows, batch), (others, other) in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


def test_a_row_is_changed_in_another_way_in_every_epoch(varied: Path) -> None:
    seen: dict[int, set[bytes]] = {}
    for rows, batch in take(varied, 60, batch_size=4, augment=Augmentation(colour=0.9)):
        for row, image in zip(rows.tolist(), batch.images, strict=True):
            seen.setdefault(row, set()).add(image.tobytes())
    # Each row is met three times. Dark ones, all of one level, may round to what they were before.
    assert {len(images) for row, images in seen.items() if row >= 40} <= {2, 3}


def test_images_can_be_left_out(varied: Path) -> None:
    with_images, without = take(varied, 3), take(varied, 3, with_images=False)
    assert {batch.images.shape for _, batch in without} == {(7, 0)}
    assert_equal([(rows, batch._replace(images=0)) for rows, batch in without],
                 [(rows, batch._replace(images=0)) for rows, batch in with_images])  # fmt: skip


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120  # only a thread that never ends reaches it
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("end", ["closed", "forgotten", "failed"])
def test_threads_end_with_the_iterator(varied: Path, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    batches = training_batches(open_records(varied), 2, 0)
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    if end == "closed":
        batches.close()
    elif end == "forgotten":
        del batches
    else:
        monkeypatch.setattr(RowReader, "read", lambda self, row: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(batches)
    wait_until(lambda: not any(thread.is_alive() for thread in started))


def test_no_more_than_a_few_batches_are_assembled_ahead(varied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, read = [], RowReader.read
    monkeypatch.setattr(RowReader, "read", lambda self, row: reads.append(row) or read(self, row))
    batches = training_batches(open_records(varied), 2, 0)
    for used in (1, 2, 3):
        next(batches)
        wait_until(lambda used=used: len(reads) >= 2 * (used + LOOK_AHEAD))
        time.sleep(0.02)
        assert len(reads) == 2 * (used + LOOK_AHEAD)


def test_a_damaged_record_is_an_error_when_its_batch_comes(varied: Path, tmp_path: Path) -> None:
    broken = tmp_path / "records"
    shutil.copytree(varied, broken)
    shard = broken / "train-00001-of-00003.tfrecord"
    data = bytearray(shard.read_bytes())
    data[200] ^= 1  # in the first record: row 30
    shard.write_bytes(data)
    batches, seen = training_batches(open_records(broken), 2, 0), []
    with pytest.raises(DamagedError, match=r"payload does not match(?s:.)*train-00001-of-00003\.tfrecord, row 0"):
        seen += (rows.tolist() for rows, _ in batches)
    order = [rows.tolist() for rows, _ in take(varied, 40, 2)]
    assert seen == order[: next(step for step, rows in enumerate(order) if 30 in rows)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "lists 79 rows of 80"),
        (lambda lines: [*lines[:-1], "{}"], "KeyError"),
        (lambda lines: [*lines[:-1], lines[-1][:40]], "is not JSON"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "other numbers of tokens"),
    ],
)
def test_a_damaged_index_is_an_error(varied: Path, tmp_path: Path, change: Callable, message: str) -> None:
    broken = tmp_path / "records"
    shutil.copytree(varied, broken)
    opened = open_records(broken)
    lines = (broken / "rows.jsonl").read_text().splitlines()
    (broken / "rows.jsonl").write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(DamagedError, match=message):
        list(itertools.islice(training_batches(opened, 2, 0), 40))


def test_row_ids_are_found_by_number(records: Path) -> None:
    opened = open_records(records)
    ids = [row.row_id for row in all_rows(records)]
    assert row_ids(opened, np.array([20, 0, 7, 0])) == [ids[20], ids[0], ids[7], ids[0]]


def test_a_damaged_record_is_an_error(records: Path, tmp_path: Path) -> None:
    broken = tmp_path / "records"
    shutil.copytree(records, broken)
    shard = next(broken.glob("*.tfrecord"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(DamagedError, match="record cannot be read"):
        all_rows(broken)


def test_a_missing_or_short_shard_is_found_on_opening(records: Path, tmp_path: Path) -> None:
    broken = tmp_path / "records"
    shutil.copytree(records, broken)
    shard = next(broken.glob("*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="changed its size"):
        open_records(broken)
    shard.unlink()
    with pytest.raises(DamagedError, match="missing"):
        open_records(broken)


def test_a_folder_without_its_record_is_not_whole(records: Path, tmp_path: Path) -> None:
    broken = tmp_path / "records"
    shutil.copytree(records, broken)
    (broken / "lineage.json").unlink()
    with pytest.raises(InputError, match="not a whole artifact"):
        open_records(broken)


def test_images_are_what_was_prepared(records: Path) -> None:
    images = [row.image for row in all_rows(records)]
    assert {(image.dtype, image.shape) for image in images} == {(np.dtype(np.uint8), (32, 32, 3))}
    assert (images[0] == images[1]).all()  # three questions of each picture
    assert not (images[0] == images[3]).all()
