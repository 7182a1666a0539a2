"""Other models' evaluations of the same rows, for comparison with a candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from paligemma.artifacts.record import Input, read_record
from paligemma.artifacts.store import localize
from paligemma.errors import DamagedError, InputError
from paligemma.evaluation.gate import Decision, compare, decide
from paligemma.evaluation.metrics import Scores
from paligemma.foreign_json import read_json, read_json_lines
from paligemma.registry.releases import EVALUATION_FOLDER, Release, read_champion_release

ARTIFACT_TYPE = "evaluation"
RECORDS_ROLE = "validation records"


@dataclass(frozen=True)
class Evaluation:
    """Another evaluation of the same rows.

    Attributes:
        summary: its metrics.json.
        answers: answers in row order.
        scores: scores by the deciding metric in row order.
    """

    summary: Mapping
    answers: Sequence[str]
    scores: Float[np.ndarray, " rows"]


def read_evaluation(folder: Path, metric: str, inputs: Sequence[Input]) -> Evaluation:
    """Reads an evaluation that a model must beat.

    Args:
        folder: the evaluation's artifact.
        metric: the deciding metric.
        inputs: inputs of the candidate's evaluation.

    Raises:
        InputError: the evaluation is of other records, or lacks this metric.
        DamagedError: the evaluation cannot be read.
    """
    theirs = {entry.sha256 for entry in read_record(folder, ARTIFACT_TYPE).inputs if entry.role == RECORDS_ROLE}
    if theirs != {entry.sha256 for entry in inputs if entry.role == RECORDS_ROLE}:
        raise InputError("The baseline was evaluated on other records.", where=folder, fix="evaluate it on the same records")
    what, fix = "The evaluation to be better than", "evaluate it again"
    summary = read_json(folder / "metrics.json", what, nonfinite=True, fix=fix)
    rows = list(read_json_lines(folder / "predictions.jsonl", what, nonfinite=True, fix=fix))
    try:
        answers, scores = [row["prediction"] for row in rows], [row["metrics"].get(metric) for row in rows]
        if any(score is None or not math.isfinite(score) for score in scores):
            raise InputError(
                f"{what} was not judged by {metric}.", where=folder, fix="evaluate it with the same --task and --metrics"
            )
        return Evaluation(summary, answers, np.array(scores, np.float64))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{what} cannot be read: {error!r}.", where=folder, fix=fix) from None


def find_champion(registry: str) -> Release | None:
    """The release in use; None if there is none yet."""
    return read_champion_release(registry)


def released_with(release: Release, metric: str, inputs: Sequence[Input], decoding: Mapping[str, object]) -> Evaluation | None:
    """The evaluation of a release; None if its records, decoding or metric differ.

    Args:
        release: the champion.
        metric: the deciding metric.
        inputs: inputs of the candidate's evaluation.
        decoding: decoding parameters that must be equal.
    """
    made = localize(release.location) / EVALUATION_FOLDER
    try:
        before = read_record(made, ARTIFACT_TYPE).producer.parameters
        if any(before.get(name) != value for name, value in decoding.items()):
            return None
        return read_evaluation(made, metric, inputs)
    except InputError:
        return None


def judge_against(others: Mapping[str, Evaluation], scores: Scores, metric: str, margin: float) -> Decision | None:
    """The gate's decision; None without another evaluation or without rows."""
    if not others or not len(scores.rows):
        return None
    names, name = {"baseline": "base", "champion": "champion"}, scores.of_rows or metric
    return decide([compare(names[role], name, scores.rows, o.scores, margin) for role, o in others.items()], margin)
