"""Intervals of means, and tests whether one model is better than another on the same rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 2000
_BLOCK = 1 << 24
"""Row numbers drawn at once: 128 MiB."""


def bootstrap_interval(
    rows: int, statistic: Callable[[Int[np.ndarray, "resamples rows"]], Float[np.ndarray, " resamples"]], seed: int = 0
) -> tuple[float, float]:
    """The 95 % bootstrap percentile interval of a statistic of rows.

    Args:
        rows: number of rows, at least one.
        statistic: computes the statistic from row numbers, for every resample.
        seed: equal seeds draw the same rows.
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, _BLOCK // rows)
    values = [
        statistic(generator.integers(0, rows, (min(at_once, RESAMPLES - start), rows)))
        for start in range(0, RESAMPLES, at_once)
    ]
    low, high = np.percentile(np.concatenate(values), (2.5, 97.5))
    return float(low), float(high)


def paired_p_value(differences: Float[np.ndarray, " rows"], seed: int = 0) -> float:
    """Two-sided sign-flip permutation test: probability of a mean at least this large if the models were interchangeable.

    Uses `RESAMPLES` draws and counts the observed mean, so the result is never 0.
    """
    generator = np.random.default_rng(seed)
    different = differences[differences != 0]
    if not len(different):
        return 1.0
    observed, extreme = abs(different.sum()), 1
    at_once = max(1, _BLOCK // len(different))
    for start in range(0, RESAMPLES, at_once):
        signs = generator.integers(0, 2, (min(at_once, RESAMPLES - start), len(different)), np.int8) * 2 - 1
        extreme += int((abs(signs @ different) >= observed - 1e-12).sum())
    return extreme / (RESAMPLES + 1)
