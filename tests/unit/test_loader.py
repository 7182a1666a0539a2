"""Batches from records."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from paligemma.checkpoints.open import resolve_embedded
from paligemma.data.batch import TrainBatch
from paligemma.data.loader import evaluation_batches, text_width, training_batches
from paligemma.data.records import open_records
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
    batches = evaluation_batches(open_records(records), 4)
    return [pair for batch in batches for pair in zip(batch.prefixes, batch.suffixes, strict=True)]


def test_masks_cover_the_suffix_and_its_eos_only(records: Path) -> None:
    opened = open_records(records)
    rows = [row for batch in itertools.islice(training_batches(opened, 7, seed=0), 3) for row in texts(batch)]
    assert sorted(rows) == sorted(source(records))


def test_every_epoch_has_every_row_in_another_order(records: Path) -> None:
    batches = training_batches(open_records(records), 7, seed=3)
    first, second = ([row for batch in itertools.islice(batches, 3) for row in texts(batch)] for _ in range(2))
    assert sorted(first) == sorted(second)
    assert first != second


def test_the_seed_determines_the_order(records: Path) -> None:
    def first(seed: int) -> list:
        return texts(next(training_batches(open_records(records), 16, seed)))

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_batches_are_full_and_of_one_shape(records: Path) -> None:
    opened = open_records(records)
    shapes = {batch.tokens.shape for batch in itertools.islice(training_batches(opened, 8, seed=0), 9)}
    assert shapes == {(8, text_width(opened) - 1)}


@pytest.mark.parametrize("batch_size", [1, 4, 21, 64])
def test_evaluation_reads_every_row_once_in_order_and_masks_the_rest(records: Path, batch_size: int) -> None:
    batches = list(evaluation_batches(open_records(records), batch_size))
    assert {batch.tokens.shape[0] for batch in batches} == {batch_size}
    assert sum(int(batch.row_mask.sum()) for batch in batches) == 21
    entries = [json.loads(line) for line in (records / "rows.jsonl").read_text().splitlines()]
    assert [row for batch in batches for row in batch.row_ids] == [entry["row_id"] for entry in entries]
    for batch in batches:
        prompts = [TINY.decode(tokens[mask]) for tokens, mask in zip(batch.tokens, batch.mask_input, strict=True)]
        assert prompts[: len(batch.prefixes)] == [f"{prefix}\n" for prefix in batch.prefixes]


def test_a_damaged_record_is_an_error(records: Path, tmp_path: Path) -> None:
    broken = tmp_path / "records"
    shutil.copytree(records, broken)
    shard = next(broken.glob("*.tfrecord"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(DamagedError, match="record cannot be read"):
        list(evaluation_batches(open_records(broken), 4))


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


def test_tensorflow_sees_no_accelerator(records: Path) -> None:
    from paligemma.data.tensorflow import import_tensorflow

    assert {device.device_type for device in import_tensorflow().config.get_visible_devices()} == {"CPU"}


def test_images_are_what_was_prepared(records: Path) -> None:
    batch = next(evaluation_batches(open_records(records), 4))
    assert batch.images.dtype == np.uint8
    assert batch.images.shape == (4, 32, 32, 3)
    assert (batch.images[0] == batch.images[1]).all()  # three questions of each picture
    assert not (batch.images[0] == batch.images[3]).all()
