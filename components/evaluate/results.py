"""Judges predictions by metrics; writes the summary to `metrics.json`, and the rows to `predictions.jsonl`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.evaluate.earlier import CHAMPION_FILE, PREDICTIONS_FILE
from paligemma.evaluation.gate import Decision
from paligemma.evaluation.metrics import METRICS, Metric, Scores, by_group, confusion, question_type
from paligemma.evaluation.predict import Prediction
from paligemma.evaluation.significance import bootstrap_interval
from paligemma.evaluation.tasks import TASKS

_ENOUGH = 1e-6
"""Relative rounding tolerance for a value to count as the best."""


@dataclass(frozen=True)
class Judgement:
    """Predictions and their scores.

    Attributes:
        predictions: predictions in row order.
        matches: exact match for every row.
        scores: scores by metric name, deciding metric first.
        summary: contents of `metrics.json`, with None for non-finite values.
    """

    predictions: Sequence[Prediction]
    matches: Scores
    scores: Mapping[str, Scores]
    summary: dict

    @property
    def primary(self) -> str:
        """The deciding metric's name."""
        return next(iter(self.scores))


def judge(
    model: str,
    predictions: Sequence[Prediction],
    task: str,
    metrics: Mapping[str, Metric],
    speed: float,
    max_new_tokens: int,
) -> Judgement:
    """Judges predictions.

    Args:
        model: the model's name.
        predictions: predictions in row order.
        task: what the rows ask, by name.
        metrics: metrics by name, deciding metric first.
        speed: rows decoded per second; 0 if none had to be.
        max_new_tokens: maximum tokens of an answer.

    Raises:
        InputError: a user's own metric does not return a number.
    """
    judged = TASKS[task].cleaned(predictions)
    matches = METRICS["exact_match"](judged)
    scores = {name: metric(judged) for name, metric in metrics.items()}
    perfect = {name: metric.of_first_references(judged) for name, metric in metrics.items()}
    primary = next(iter(metrics))
    loss, loss_interval = suffix_loss(predictions)
    table = confusion(judged)
    summary = {
        "model": model,
        "task": task,
        "examples": len(predictions),
        "exact_match": matches.value,
        "primary": primary,
        "metrics": {
            name: {"value": one.value, "low": one.low, "high": one.high, "first_reference": perfect[name]}
            for name, one in scores.items()
        },
        "notes": [*_shortfalls(metrics, perfect), *_cut_off(predictions, max_new_tokens)],
        "loss": loss,
        "loss_interval": loss_interval,
        "perplexity": math.exp(min(loss, 700.0)),
        "questions": len({p.prefix for p in predictions}),
        "by_question": by_group(predictions, matches.rows, str, "exact_match"),
        "types": len({question_type(p.prefix) for p in predictions}),
        "by_type": by_group(predictions, scores[primary].rows, question_type, primary),
        "confusion": None if table is None else {"labels": table[0], "counts": table[1]},
        "examples_per_second": speed,
    }
    return Judgement(predictions, matches, scores, finite(summary))


def figures(judgement: Judgement) -> dict[str, float]:
    """What the lineage record has of a judgement, and runs are compared by."""
    found = {metric: s.value for metric, s in judgement.scores.items()} | {"exact_match": judgement.matches.value}
    loss = judgement.summary["loss"]
    return found if loss is None else found | {"loss": loss}


def write_results(folder: Path, judgement: Judgement, decision: Decision | None) -> None:
    """Writes `predictions.jsonl`, `metrics.json` and, if there is a decision, `gate.json` into an existing folder."""
    with (folder / PREDICTIONS_FILE).open("w", encoding="utf-8") as file:
        for number, p in enumerate(judgement.predictions):
            row: dict[str, object] = {"row_id": p.row_id, "prefix": p.prefix, "target": p.target, "prediction": p.prediction}
            if p.references != (p.target,):
                row["answers"] = list(p.references)
            row |= {"exact_match": bool(judgement.matches.rows[number]), **_logprobs(p)}
            row["metrics"] = {metric: float(one.rows[number]) for metric, one in judgement.scores.items()}
            file.write(json.dumps(finite(row), allow_nan=False) + "\n")
    _write_json(folder / "metrics.json", judgement.summary)
    if decision is not None:
        _write_json(folder / "gate.json", dataclasses.asdict(decision))


def write_champion(folder: Path, predictions: Sequence[Prediction]) -> None:
    """Writes the champion's answers to `champion.jsonl`, for runs to come, which need not decode them again."""
    with (folder / CHAMPION_FILE).open("w", encoding="utf-8") as file:
        for p in predictions:
            row = {"row_id": p.row_id, "prefix": p.prefix, "target": p.target, "prediction": p.prediction, **_logprobs(p)}
            file.write(json.dumps(finite(row), allow_nan=False) + "\n")


def _logprobs(p: Prediction) -> dict[str, float]:
    """Both log-probabilities, in the fewest digits from which float32 is read back as it was."""
    return {"logprob": float(str(np.float32(p.logprob))), "target_logprob": float(str(np.float32(p.target_logprob)))}


def finite(value: Any) -> Any:
    """Replaces numbers that JSON cannot hold by None: a diverged model has such probabilities."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def suffix_loss(predictions: Sequence[Prediction]) -> tuple[float, tuple[float, float] | None]:
    """Loss of the targets in nats a token, and its 95 % bootstrap interval; the interval is None without rows."""
    if not predictions:
        return 0.0, None
    losses, tokens = np.array([(-p.target_logprob, p.target_tokens) for p in predictions]).T
    interval = bootstrap_interval(len(losses), lambda rows: losses[rows].sum(axis=1) / tokens[rows].sum(axis=1))
    return float(losses.sum() / tokens.sum()), interval


def _shortfalls(metrics: Mapping[str, Metric], perfect: Mapping[str, float | None]) -> list[str]:
    """Notes about metrics by which even a row's first reference is not perfect."""
    return [
        f"{name}: a model that answers each of these rows with its first reference has {value:.4g}, "
        f"not {metric.best:g}. {metric.shortfall[:1].upper()}{metric.shortfall[1:]}."
        for name, metric in metrics.items()
        if metric.best is not None and (value := perfect[name]) is not None and value < metric.best * (1 - _ENOUGH)
    ]


def _cut_off(predictions: Sequence[Prediction], max_new_tokens: int) -> list[str]:
    """Notes for the case that references are longer than `max_new_tokens` allows."""
    longer = [p.target_tokens for p in predictions if p.target_tokens > max_new_tokens]
    if not longer:
        return []
    return [
        f"{len(longer)} of {len(predictions)} targets have more tokens than an answer can have: up to {max(longer)}, with eos; "
        f"max_new_tokens is {max_new_tokens}. No model can give such an answer whole."
    ]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(finite(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
