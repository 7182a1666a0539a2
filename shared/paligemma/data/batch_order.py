"""The order of training: decides from lengths alone which rows make up each batch, without reading data.

Every row belongs to a bucket of rows of similar text length, and a batch holds rows of one bucket, so that a jitted step
compiles once per bucket. Every epoch is a permutation of all rows; of a mixture with weights, it has as many draws as there
are rows (`mixture_order`). In that order, rows join their bucket's queue; as soon as a
queue holds a full batch, it is the next batch. Queues carry over to the next epoch, so batches are always full and no row is
left out. The rows of a step follow by arithmetic, so any step can be reached without replaying earlier ones.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from paligemma.data.mixture_order import Mixture
from paligemma.errors import InputError

TEXT_MULTIPLE = 16
"""Text is padded to a multiple of this many tokens."""

LOSS_MULTIPLE = 8
"""Losses are padded to a multiple of this many tokens."""

BATCHES_PER_BUCKET = 16
"""Minimum number of batches in a bucket. Each bucket costs a compilation, which fewer batches do not repay. Small data has one
bucket.
"""


class Bucket(NamedTuple):
    """The widths of a batch in tokens: input text, and losses."""

    text_width: int
    loss_width: int


class PlannedBatch(NamedTuple):
    """A batch: its step (from 0), bucket and rows."""

    step: int
    bucket: Bucket
    rows: Int[np.ndarray, " b"]


class Plan:
    """An endless sequence of batches, the same on every machine.

    Attributes:
        buckets: narrowest first.
        bucket_of: number of each row's bucket.
    """

    def __init__(
        self,
        text_tokens: Int[np.ndarray, " rows"],
        suffix_tokens: Int[np.ndarray, " rows"],
        batch_size: int,
        seed: int,
        buckets: int = 4,
        shares: Sequence[tuple[int, float]] = (),
    ) -> None:
        """Plans batches of at least one row.

        Args:
            text_tokens: number of tokens of each row's whole text, including the last, which is not an input.
            suffix_tokens: number of each row's tokens that have a loss.
            batch_size: rows in a batch, over all processes.
            seed: determines the order.
            buckets: maximum number of buckets; 1 pads every batch to one width.
            shares: of a mixture with weights: number of rows and weight of each source, whose rows follow one another.
        """
        self._mixture = Mixture(shares, seed) if shares else None
        drawn = np.repeat(self._mixture.draws_per_epoch, [rows for rows, _ in shares]) if self._mixture else None
        widths = round_up(text_tokens - 1, TEXT_MULTIPLE)
        chosen = bucket_widths(text_tokens - 1, buckets, BATCHES_PER_BUCKET * batch_size, drawn)
        self.bucket_of = np.searchsorted(chosen, widths).astype(np.int8)
        self._members = np.bincount(self.bucket_of, minlength=len(chosen))
        self.buckets = []
        for number, width in enumerate(chosen):
            longest = suffix_tokens[self.bucket_of == number].max()
            self.buckets.append(Bucket(int(width), int(min(width, round_up(longest, LOSS_MULTIPLE)))))
        self._batch_size, self._seed = batch_size, seed
        self._members_drawn = lru_cache(16)(self._count_members_drawn)

    def batches(self, start_step: int = 0) -> Iterator[PlannedBatch]:
        """The batches from a step (counted from 0) on: exactly those of a run without interruption."""
        epoch = self._epoch_of(start_step)
        step, queues = self._steps_before(epoch), self._queues_before(epoch)
        while True:
            order = self._order(epoch)
            planned: list[tuple[int, int, np.ndarray]] = []
            for number, queue in enumerate(queues):
                places = np.flatnonzero(self.bucket_of[order] == number)
                rows = np.concatenate([queue, order[places]])
                whole = len(rows) // self._batch_size
                # A batch is ready when its last row arrives. That is in this epoch, since a queue is shorter than a batch.
                ready = places[np.arange(1, whole + 1) * self._batch_size - 1 - len(queue)]
                of_bucket = rows[: whole * self._batch_size].reshape(whole, self._batch_size)
                planned += zip(ready.tolist(), [number] * whole, of_bucket, strict=True)
                queues[number] = rows[whole * self._batch_size :]
            planned.sort(key=lambda batch: batch[0])
            for _, number, rows in planned:
                if step >= start_step:
                    yield PlannedBatch(step, self.buckets[number], rows)
                step += 1
            epoch += 1

    def _order(self, epoch: int) -> Int[np.ndarray, " rows"]:
        """The rows of an epoch, in order."""
        return permutation(len(self.bucket_of), self._seed, epoch) if self._mixture is None else self._mixture.order(epoch)

    def _count_members_drawn(self, epoch: int) -> Int[np.ndarray, " buckets"]:
        """Number of rows of each bucket in earlier epochs."""
        if self._mixture is None:
            return epoch * self._members
        times = self._mixture.times_drawn(epoch)
        return np.array([times[self.bucket_of == number].sum() for number in range(len(self.buckets))])

    def _steps_before(self, epoch: int) -> int:
        """Number of batches made up by the rows of earlier epochs."""
        return int((self._members_drawn(epoch) // self._batch_size).sum())

    def _epoch_of(self, step: int) -> int:
        """The epoch in which a step's batch becomes ready."""
        # Each bucket's queue holds back less than a batch.
        rows = len(self.bucket_of)
        earliest, latest = step * self._batch_size // rows, (step + 1 + len(self.buckets)) * self._batch_size // rows + 1
        return earliest + bisect_right(range(earliest, latest + 1), step, key=self._steps_before) - 1

    def _queues_before(self, epoch: int) -> list[np.ndarray]:
        """The contents of each bucket's queue when an epoch begins: the last rows of earlier epochs."""
        queues = [np.empty(0, np.int64) for _ in self.buckets]
        wanted = self._members_drawn(epoch) % self._batch_size
        while any(len(queue) < count for queue, count in zip(queues, wanted, strict=True)):
            epoch -= 1
            order = self._order(epoch)
            for number, queue in enumerate(queues):
                if missing := wanted[number] - len(queue):
                    queues[number] = np.concatenate([order[self.bucket_of[order] == number][-missing:], queue])
        return queues


def permutation(rows: int, seed: int, epoch: int) -> Int[np.ndarray, " rows"]:
    """The order of the rows in an epoch.

    Sorts the raw output of Philox, which NumPy promises never to change. It does not promise that for `Generator.permutation`.
    So a run can be resumed on another machine with another NumPy.
    """
    keys = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(0, epoch))).random_raw(rows)
    return np.argsort(keys, kind="stable")


def bucket_widths(
    input_tokens: Int[np.ndarray, " rows"], buckets: int, smallest: int, drawn: Float[np.ndarray, " rows"] | None = None
) -> Int[np.ndarray, " k"]:
    """The text widths, ascending, with the least padding: at most `buckets`, each with `smallest` rows or more unless it is the
    only one. `drawn` is how often each row counts; None: once.

    Dynamic programming over the histogram of widths. The least padding in k buckets, up to some width, is a minimum over the
    start of the last bucket: the least padding of the rows before it in k - 1 buckets, plus its own padding.
    """
    widths, which = np.unique(round_up(input_tokens, TEXT_MULTIPLE), return_inverse=True)
    rows = np.concatenate([[0], np.bincount(which, drawn).cumsum()])
    size = len(widths)
    # padded[i, j]: tokens with padding if rows of widths[i] to widths[j] share a bucket; infinite for too few rows.
    together = rows[1:] - rows[:-1, None]
    padded = np.where(together >= max(smallest, 1), together * widths.astype(np.float64), np.inf)
    least, begins = [padded[0]], []
    for _ in range(min(buckets, size) - 1):
        # joined[i, j]: the rows before widths[i] at their best, then one bucket up to widths[j].
        joined = np.full((size, size), np.inf)
        joined[1:] = least[-1][:-1, None] + padded[1:]
        begins.append(joined.argmin(axis=0))
        least.append(joined.min(axis=0))
    count = int(np.argmin([costs[-1] for costs in least]))
    chosen = [size - 1]
    for begin in reversed(begins[:count]):
        chosen.append(int(begin[chosen[-1]]) - 1)
    return widths[chosen[::-1]]


def process_share(batch_size: int, process_index: int, process_count: int) -> slice:
    """The slice of every batch that belongs to a process; shares are equal and in the order of the processes.

    Raises:
        InputError: the batch does not split evenly.
    """
    if batch_size % process_count:
        raise InputError(
            f"A batch of {batch_size} does not split over {process_count} processes.",
            expected=f"a multiple of {process_count}",
            fix=f"set batch_size={round_up(batch_size, process_count)}",
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def round_up(length, multiple: int):
    """The least multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple
