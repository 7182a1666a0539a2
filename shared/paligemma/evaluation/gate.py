"""Decides whether a model replaces others: only if it is better on the same rows, by a margin and beyond chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from paligemma.evaluation.significance import bootstrap_interval, paired_p_value


@dataclass(frozen=True)
class Comparison:
    """A comparison of a candidate with another model, row by row.

    Attributes:
        against: the other model.
        metric: the compared metric, as a mean over rows.
        rows: number of rows.
        candidate, other: their means.
        low, high: 95 % interval of the difference in means.
        p_value: p-value for no difference.
        better, worse, equal: number of rows on which the candidate is so.
        passed: whether the whole interval is above the margin and p < 0.05, which is impossible with few rows.
    """

    against: str
    metric: str
    rows: int
    candidate: float
    other: float
    low: float
    high: float
    p_value: float
    better: int
    worse: int
    equal: int
    passed: bool

    def in_words(self, margin: float) -> str:
        """The result in words, and why it is or is not enough."""
        difference = self.candidate - self.other
        verdict = "more" if self.passed else "not surely more"
        return (
            f"{self.metric} is {self.candidate:.4f}, {self.against}'s {self.other:.4f}: a difference of {difference:+.4f} "
            f"(95 % interval {self.low:+.4f} to {self.high:+.4f}, p = {self.p_value:.2g}) on the same {self.rows} rows, "
            f"{self.better} of them better and {self.worse} worse. That is {verdict} than the margin of {margin:g}."
        )


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and why."""

    promote: bool
    why: str
    margin: float
    comparisons: tuple[Comparison, ...]


def compare(
    against: str, metric: str, candidate: Float[np.ndarray, " r"], other: Float[np.ndarray, " r"], margin: float
) -> Comparison:
    """Compares two models' scores of the same rows, in the same order."""
    differences = candidate - other
    p_value = paired_p_value(differences)
    low, high = bootstrap_interval(len(differences), lambda chosen: differences[chosen].mean(axis=1))
    return Comparison(
        against=against,
        metric=metric,
        rows=len(differences),
        candidate=float(candidate.mean()),
        other=float(other.mean()),
        low=low,
        high=high,
        p_value=p_value,
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
        equal=int((differences == 0).sum()),
        passed=low > margin and p_value < 0.05,
    )


def decide(comparisons: list[Comparison], margin: float) -> Decision:
    """Promotes a candidate that passes every comparison."""
    promote = all(comparison.passed for comparison in comparisons)
    words = " ".join(comparison.in_words(margin) for comparison in comparisons)
    return Decision(promote, f"{'Promote' if promote else 'Keep what there is'}: {words}", margin, tuple(comparisons))
