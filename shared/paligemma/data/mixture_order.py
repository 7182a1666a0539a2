"""The order in which a mixture's rows are drawn, from numbers of rows and weights alone.

Sources take turns as evenly as their weights allow: the draw k of a source (from 0) comes at the time (k + 1/2) / weight, and
draws are in the order of their times. That is Webster's and Sainte-Lague's method of sharing out seats. So at every moment, a
source has had its share of the draws to within 1/2 + share x sources / 2. A source's draws go through all its rows, in an order
that is another one each time. An epoch is as many draws as there are rows; any epoch follows by arithmetic.

Others draw sources at random with the weights as probabilities: `tf.data.Dataset.sample_from_datasets`, as big_vision and seqio
use it. Shares then hold on average only, and there is no way to a later draw but through all earlier ones.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int

_RAW = 4  # raw numbers of 64 bits that Philox makes for each value of its counter


class Mixture:
    """Sources with their weights; the rows of each follow those of the sources before it."""

    def __init__(self, shares: Sequence[tuple[int, float]], seed: int) -> None:
        """Takes the number of rows (1 at least) and the weight (above 0) of each source, and what determines the order."""
        self._rows = [rows for rows, _ in shares]
        self._weights = [weight for _, weight in shares]
        self._firsts = np.cumsum([0, *self._rows])
        self._keys = [
            np.random.SeedSequence(seed, spawn_key=(2, number)).generate_state(2, np.uint64) for number in range(len(shares))
        ]

    @property
    def draws_per_epoch(self) -> Sequence[float]:
        """How often each source's rows are drawn in an epoch, on average."""
        rows, weights = sum(self._rows), sum(self._weights)
        return [rows * weight / weights / own for own, weight in zip(self._rows, self._weights, strict=True)]

    def order(self, epoch: int) -> Int[np.ndarray, " rows"]:
        """The rows that an epoch draws, in order."""
        size = sum(self._rows)
        before, after = (draws_by_source(self._weights, size * number) for number in (epoch, epoch + 1))
        rows, times = [], []
        for number, weight in enumerate(self._weights):
            draws = np.arange(before[number], after[number])
            rows.append(self._drawn(number, before[number], after[number]))
            times.append((2 * draws + 1) / weight)
        return np.concatenate(rows)[np.argsort(np.concatenate(times), kind="stable")]

    def times_drawn(self, epoch: int) -> Int[np.ndarray, " rows"]:
        """How often each row was drawn before an epoch."""
        times = []
        for number, draws in enumerate(draws_by_source(self._weights, sum(self._rows) * epoch)):
            whole, rest = divmod(draws, self._rows[number])
            of_source = np.full(self._rows[number], whole)
            of_source[self._drawn(number, draws - rest, draws) - self._firsts[number]] += 1
            times.append(of_source)
        return np.concatenate(times)

    def _drawn(self, source: int, start: int, stop: int) -> Int[np.ndarray, " draws"]:
        """The rows of a source's draws from `start` up to `stop`.

        Each pass sorts raw output of Philox, as `batch_order.permutation` does, and has counters of its own, so that thousands
        of passes over few rows are made at once.
        """
        rows = self._rows[source]
        first, last = start // rows, -(-stop // rows)
        counters = -(-rows // _RAW)
        raw = np.random.Philox(key=self._keys[source], counter=first * counters).random_raw((last - first) * counters * _RAW)
        passes = np.argsort(raw.reshape(last - first, counters * _RAW)[:, :rows], axis=1, kind="stable")
        return passes.reshape(-1)[start - first * rows : stop - first * rows] + self._firsts[source]


def draws_by_source(weights: Sequence[float], draws: int) -> list[int]:
    """How many of the first `draws` draws of a mixture are of each source. Exact, whatever the numbers."""
    exact = [Fraction(weight) for weight in weights]
    # After any number of draws there is a time up to which each source had weight x time draws, give or take half a one. By
    # the sum over all sources, that time is (draws - sources / 2) / weights at least. The few other draws come one by one.
    time = (draws - Fraction(len(weights), 2)) / sum(exact)
    counts = [max(0, math.ceil(weight * time - Fraction(1, 2))) for weight in exact]
    coming = [((2 * count + 1) / weight, number) for number, (count, weight) in enumerate(zip(counts, exact, strict=True))]
    heapq.heapify(coming)
    for _ in range(draws - sum(counts)):
        _, number = coming[0]
        counts[number] += 1
        heapq.heapreplace(coming, ((2 * counts[number] + 1) / exact[number], number))
    return counts
