"""Batches from records: endless and in the plan's order for training, once and in order for evaluation. Prefetches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from paligemma.data.augment import Augmentation
from paligemma.data.augment import augment as augmented
from paligemma.data.batch import TrainBatch, train_batch
from paligemma.data.batch_order import LOSS_MULTIPLE, TEXT_MULTIPLE, Plan, PlannedBatch, process_share, round_up
from paligemma.data.records import Records, as_image, pictures_of, read_lengths
from paligemma.data.row_stream import open_rows
from paligemma.errors import DamagedError, InputError

LOOK_AHEAD = 4
"""Batches that threads assemble, one each, while the batch before them is used."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def training_batches(
    records: Records,
    batch_size: int,
    seed: int,
    *,
    start_step: int = 0,
    buckets: int = 4,
    augment: Augmentation | None = None,
    process_index: int = 0,
    process_count: int = 1,
    with_images: bool = True,
) -> Generator[tuple[Int[np.ndarray, " b"], TrainBatch]]:
    """Endless batches with their row numbers, in the order of a `Plan`; equal arguments give equal bits.

    Args:
        records: the data.
        batch_size: rows in a batch over all processes; each gets an equal share of every batch.
        seed: determines the order and the augmentation.
        start_step: first step, from 0; its batches equal those of a run that began at step 0.
        buckets: maximum number of text widths, and so of batch shapes.
        augment: random changes to images; check them first with `check_augmentation`.
        process_index: which process this is, from 0.
        process_count: number of processes.
        with_images: False leaves images `[b, 0]`, for steps that already have their rows' vision features.

    Raises:
        InputError: there are no rows, or a batch does not split over the processes.
        DamagedError: `rows.jsonl` is damaged, or a record is, which shows when its batch is read.
    """
    if records.dataset.rows == 0:
        raise InputError(f"{records.location} holds no rows.", expected="at least one")
    share = process_share(batch_size, process_index, process_count)
    prefix_tokens, suffix_tokens = read_lengths(records)
    plan = Plan(prefix_tokens + suffix_tokens, suffix_tokens, batch_size, seed, buckets, records.dataset.shares)
    reader, shape = open_rows(records), records.dataset.image_shape

    def assemble(planned: PlannedBatch) -> tuple[np.ndarray, TrainBatch]:
        rows = planned.rows[share]
        tokens, suffix = np.zeros((2, len(rows), planned.bucket.text_width + 1), np.int32)
        images = np.empty((len(rows), *shape) if with_images else (len(rows), 0), np.uint8)
        for place, number in enumerate(rows.tolist()):
            row = reader.read(number) if with_images else reader.read_texts(number)
            length = len(row.tokens)
            if (row.prefix_length, length - row.prefix_length) != (prefix_tokens[number], suffix_tokens[number]):
                raise DamagedError(
                    f"Row {number} has other numbers of tokens than rows.jsonl lists.",
                    where=records.location,
                    fix="run prepare_data again",
                )
            tokens[place, :length] = row.tokens
            suffix[place, row.prefix_length : length] = 1
            if with_images and augment is not None:
                # Keyed by position in the whole batch: the number of processes must not change the training data. All images
                # of a row have one key: the frames of a video are mirrored and cropped alike.
                key = seed, planned.step, share.start + place
                images[place] = as_image([augmented(picture, augment, key) for picture in pictures_of(row.image)])
            elif with_images:
                images[place] = row.image
        return rows, train_batch(images, tokens, suffix, suffix, planned.bucket.loss_width)

    planned = reader.ahead(plan.batches(start_step), lambda planned: planned.rows[share].tolist())
    return _ahead(assemble, planned, reader.close)


def validation_batches(
    records: Records, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Generator[tuple[Int[np.ndarray, " b"], TrainBatch]]:
    """Every row once, in order, as training batches of one shape; rows without loss fill up the last.

    Args:
        records: the data.
        batch_size: rows in a batch over all processes.
        process_index: which process this is, from 0.
        process_count: number of processes.
    """
    share = process_share(batch_size, process_index, process_count)
    prefix_tokens, suffix_tokens = read_lengths(records)
    width = round_up(int((prefix_tokens + suffix_tokens).max()) - 1, TEXT_MULTIPLE)
    loss_width = min(width, round_up(int(suffix_tokens.max()), LOSS_MULTIPLE))
    reader = open_rows(records)

    def rows_of(start: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.arange(start, start + batch_size)[share]
        real = numbers < len(reader)
        return np.where(real, numbers, 0), real

    def assemble(start: int) -> tuple[np.ndarray, TrainBatch]:
        numbers, real = rows_of(start)
        tokens, suffix = np.zeros((2, len(numbers), width + 1), np.int32)
        rows = [reader.read(number) for number in numbers.tolist()]
        for place, row in enumerate(rows):
            tokens[place, : len(row.tokens)] = row.tokens
            suffix[place, row.prefix_length : len(row.tokens)] = 1
        batch = train_batch(np.stack([row.image for row in rows]), tokens, suffix, suffix, loss_width)
        return numbers, batch._replace(mask_loss=batch.mask_loss * real[:, None])

    starts = reader.ahead(range(0, len(reader), batch_size), lambda start: rows_of(start)[0].tolist())
    return _ahead(assemble, starts, reader.close)


def _ahead(assemble: Callable[[Item], Result], items: Iterable[Item], close: Callable[[], None]) -> Generator[Result]:
    """`map(assemble, items)`, computed ahead in threads, which end with the iterator; it calls `close` then."""
    pool = ThreadPoolExecutor(LOOK_AHEAD, thread_name_prefix="loader")
    coming: deque[Future[Result]] = deque()
    try:
        for item in items:
            coming.append(pool.submit(assemble, item))
            if len(coming) > LOOK_AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        close()
