"""Batches from records: endless and shuffled for training, once and in order for evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paligemma.data.batch import EvaluationBatch, TrainBatch, train_batch
from paligemma.data.records import Records
from paligemma.data.tensorflow import import_tensorflow
from paligemma.errors import DamagedError, InputError

SHUFFLE_WINDOW = 4096
"""Records held for shuffling: 0.6 GiB at 224 pixels. Shards are read in order, so order the rows of larger sets at random."""

TEXT_MULTIPLE = 16
"""Text is padded to a multiple of this many tokens."""


def training_batches(records: Records, batch_size: int, seed: int) -> Iterator[TrainBatch]:
    """Endless batches; every epoch in another order, which the seed determines.

    An epoch's last rows are filled up from the next, so that every batch is full.
    """
    tf = import_tensorflow()
    rows = records.dataset.rows
    if rows == 0:
        raise InputError(f"{records.folder} holds no rows.", expected="at least one")
    width = text_width(records)
    # Records are shuffled before they are parsed, within a window that bounds memory.
    shuffled = _shards(records).shuffle(min(rows, SHUFFLE_WINDOW), seed=seed, reshuffle_each_iteration=True)
    parsed = shuffled.repeat().map(_parser(records))
    shapes = {"image": [None] * 3, "tokens": [width], "row_id": [], "prefix": [], "suffix": [], "prefix_length": []}
    batched = parsed.map(lambda row: {**row, "suffix_mask": tf.ones_like(row["tokens"])})
    batched = batched.padded_batch(batch_size, {**shapes, "suffix_mask": [width]}).prefetch(2)
    for batch in _numpy(batched, records):
        suffix = (batch["suffix_mask"] == 1) & (np.arange(width) >= batch["prefix_length"][:, None])
        mask = suffix.astype(np.int32)
        yield train_batch(batch["image"], batch["tokens"], mask, mask, loss_width=width - 1)


def evaluation_batches(records: Records, batch_size: int) -> Iterator[EvaluationBatch]:
    """Every row once, in order; the last batch is filled up with masked copies of its first row."""
    width = _round_up(max(records.dataset.prefix_tokens, default=1))
    parsed = _shards(records).map(_parser(records))
    prompts = parsed.map(lambda row: {**row, "tokens": row["tokens"][: row["prefix_length"]]})
    shapes = {"image": [None] * 3, "tokens": [width], "row_id": [], "prefix": [], "suffix": [], "prefix_length": []}
    for batch in _numpy(prompts.padded_batch(batch_size, shapes).prefetch(2), records):
        real = len(batch["tokens"])
        source = np.concatenate([np.arange(real), np.zeros(batch_size - real, int)])
        yield EvaluationBatch(
            images=batch["image"][source],
            tokens=batch["tokens"][source].astype(np.int32),
            mask_input=(np.arange(width) < batch["prefix_length"][:, None])[source],
            row_mask=np.arange(batch_size) < real,
            row_ids=_text(batch["row_id"]),
            prefixes=_text(batch["prefix"]),
            suffixes=_text(batch["suffix"]),
        )


def text_width(records: Records) -> int:
    """Tokens that every training example is padded to: the longest, rounded up, and one more for the shifted target."""
    return _round_up(max(records.dataset.text_tokens, default=1) - 1) + 1


def _round_up(length: int) -> int:
    return -(-length // TEXT_MULTIPLE) * TEXT_MULTIPLE


def _shards(records: Records):
    tf = import_tensorflow()
    compression = "GZIP" if records.dataset.compression == "gzip" else None
    return tf.data.TFRecordDataset([str(path) for path in records.shard_paths], compression)


def _parser(records: Records):
    tf = import_tensorflow()
    size = records.dataset.image_size
    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "tokens": tf.io.VarLenFeature(tf.int64),
        "prefix_length": tf.io.FixedLenFeature([], tf.int64),
        "prefix": tf.io.FixedLenFeature([], tf.string),
        "suffix": tf.io.FixedLenFeature([], tf.string),
        "row_id": tf.io.FixedLenFeature([], tf.string),
    }

    def parse(record):
        row = tf.io.parse_single_example(record, features)
        row["image"] = tf.reshape(tf.io.decode_raw(row["image"], tf.uint8), [size, size, 3])
        row["tokens"] = tf.sparse.to_dense(row["tokens"])
        return row

    return parse


def _numpy(dataset, records: Records) -> Iterator[dict[str, np.ndarray]]:
    tf = import_tensorflow()
    try:
        yield from dataset.as_numpy_iterator()
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
        raise DamagedError(
            f"A record cannot be read: {error.message.splitlines()[0]}.",
            where=records.folder,
            fix="run prepare_data again",
        ) from None


def _text(values: np.ndarray) -> list[str]:
    return [value.decode() for value in values]
