"""Other models' evaluations of the same rows, for comparison with a candidate."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from components.evaluate.candidate import RECORDS_ROLE, Candidate
from components.evaluate.decoding import Decoding, check_compatible, decode
from components.evaluate.earlier import CHAMPION_FILE, PREDICTIONS_FILE, EarlierAnswers, first_of
from paligemma.artifacts.record import Input, read_record
from paligemma.artifacts.store import input_of, localize
from paligemma.checkpoints.open_checkpoint import Checkpoint, open_checkpoint
from paligemma.data.records import Records
from paligemma.errors import DamagedError, InputError
from paligemma.evaluation.gate import Decision, compare, decide
from paligemma.evaluation.kept_predictions import KeptPredictions
from paligemma.evaluation.metrics import Metric, Scores
from paligemma.evaluation.predict import Prediction
from paligemma.evaluation.tasks import Task
from paligemma.foreign_json import read_json, read_json_lines
from paligemma.registry.releases import EVALUATION_FOLDER, Release, read_champion_release

log = logging.getLogger("paligemma.evaluate")

ARTIFACT_TYPE = "evaluation"


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
    rows = list(read_json_lines(folder / PREDICTIONS_FILE, what, nonfinite=True, fix=fix))
    try:
        answers, scores = [row["prediction"] for row in rows], [row["metrics"].get(metric) for row in rows]
        if any(score is None or not math.isfinite(score) for score in scores):
            raise InputError(
                f"{what} was not judged by {metric}.", where=folder, fix="evaluate it with the same --task and --metrics"
            )
        return Evaluation(summary, answers, np.array(scores, np.float64))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{what} cannot be read: {error!r}.", where=folder, fix=fix) from None


@dataclass(frozen=True)
class UndecidedChampion:
    """The release in use, where no evaluation of it can be compared: it has to answer the same rows.

    Attributes:
        release: the release.
        checkpoint: its model.
        kept: its answers so far.
        earlier: where its answers of earlier runs are: as the champion, or as a tuned model that was not released yet.
    """

    release: Release
    checkpoint: Checkpoint
    kept: KeptPredictions
    earlier: Sequence[EarlierAnswers]

    def answer(self, data: Records, decoding: Decoding) -> Sequence[Prediction]:
        """Its answers to all rows."""
        log.info("evaluating the champion, release %s, on the same rows", self.release.version)
        return decode(self.checkpoint, None, data, decoding, self.kept, first_of(self.earlier), "champion").predictions


def evaluation_of(answered: Sequence[Prediction], metric: Metric, task: Task) -> Evaluation:
    """Answers, scored by the deciding metric."""
    return Evaluation({}, [p.prediction for p in answered], metric.rows(task.cleaned(answered)))


@dataclass(frozen=True)
class Contenders:
    """What a candidate has to be better than.

    Attributes:
        evaluations: by role: baseline, champion.
        undecided: a champion that still has to be evaluated.
        inputs: all of these, for the lineage record.
    """

    evaluations: Mapping[str, Evaluation]
    undecided: UndecidedChampion | None
    inputs: list[Input]


def find_contenders(
    baseline: str,
    champion: str,
    registry: str,
    candidate: Candidate,
    decoding: Decoding,
    metric: str,
    task: str,
    kept_at: Callable[[Checkpoint, list[Input]], KeptPredictions],
) -> Contenders:
    """Reads the evaluations to compare with.

    Args:
        baseline, champion: locations of evaluations; empty for none.
        registry: its champion is a contender too, unless `champion` is given; empty for none.
        candidate: the model that is evaluated.
        decoding: how it answers.
        metric: the deciding one.
        task: what the rows ask.
        kept_at: where the answers of a model are kept, by the model and what determines them.

    Raises:
        InputError: an evaluation is of other rows or not judged by this metric.
        DamagedError: one cannot be read.
    """
    evaluations, inputs, undecided = {}, [], None
    for role, location in (("baseline", baseline), ("champion", champion)):
        if location:
            evaluations[role] = read_evaluation(localize(location), metric, candidate.inputs)
            inputs.append(input_of(role, location))
    release = read_champion_release(registry) if registry and not champion else None
    if release is not None:
        same = {**dataclasses.asdict(decoding.settings), "task": task}
        if (released := released_with(release, metric, candidate.inputs, same)) is not None:
            evaluations["champion"] = released
        else:
            model = open_checkpoint(str(release.model))
            check_compatible(model, candidate.data)
            own = [input_of("checkpoint", model.location)]
            tuned_from = [entry for entry in release.record.inputs if entry.role in ("checkpoint", "tuned model")]
            earlier = [
                EarlierAnswers.of(model, own, candidate.data, decoding, CHAMPION_FILE),
                EarlierAnswers.of(model, tuned_from, candidate.data, decoding, PREDICTIONS_FILE),
            ]
            undecided = UndecidedChampion(release, model, kept_at(model, [*own, *candidate.records]), earlier)
        inputs.append(input_of("champion", release.location))
    return Contenders(evaluations, undecided, inputs)


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
