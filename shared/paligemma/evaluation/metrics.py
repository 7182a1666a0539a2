"""Metrics of a list of predictions."""

from __future__ import annotations

from collections.abc import Sequence

from paligemma.evaluation.predict import Prediction

MOST_QUESTIONS = 50


def exact_match(predictions: Sequence[Prediction]) -> float:
    """Share of predictions that are the target; 0 of none."""
    return sum(prediction.exact_match for prediction in predictions) / max(1, len(predictions))


def by_question(predictions: Sequence[Prediction]) -> list[dict]:
    """Exact match by prefix, the most frequent first; beyond 50 different ones the rest is left out."""
    groups: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault(prediction.prefix, []).append(prediction)
    frequent = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_QUESTIONS]
    return [{"prefix": p, "examples": len(group), "exact_match": exact_match(group)} for p, group in frequent]
