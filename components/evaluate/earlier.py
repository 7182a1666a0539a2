"""Answers of earlier runs: a row that the same model answered before, in the same way, is not decoded again."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.evaluate.decoding import Decoding, determined_by
from paligemma.artifacts.record import Input
from paligemma.artifacts.results import Result
from paligemma.artifacts.store import localize
from paligemma.checkpoints.open_checkpoint import Checkpoint
from paligemma.data.records import Records
from paligemma.errors import DamagedError, PaliGemmaError
from paligemma.evaluation.predict import Answer
from paligemma.foreign_json import read_json_lines

PREDICTIONS_FILE = "predictions.jsonl"
CHAMPION_FILE = "champion.jsonl"
"""The champion's answers, in an evaluation for which it had to answer."""

log = logging.getLogger("paligemma.evaluate")

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class EarlierAnswers:
    """Where a model's answers to earlier rows are: in the last evaluation in which it answered.

    Attributes:
        note: names that evaluation.
        file: its file with the answers.
    """

    note: Result
    file: str

    @classmethod
    def of(cls, base: Checkpoint, model: Sequence[Input], data: Records, decoding: Decoding, file: str) -> EarlierAnswers:
        """The answers of a model.

        Args:
            base: its checkpoint.
            model: the checkpoint and, if there is one, the tuned model; their roles and hashes count.
            data: rows that are prepared in the same way.
            decoding: how it answers.
            file: the file of an evaluation that has its answers.
        """
        made = data.record.producer
        pixels = {name: made.parameters.get(name) for name in ("image_size", "max_text_tokens", "over_long", "grey_range")}
        settings = {**determined_by(base, model, decoding), "batch_size": decoding.batch_size, "file": file}
        also = {"prepared": pixels, "prepared_by": [made.git_sha, made.packages]}
        return cls(Result.latest_of("evaluate", _HERE, settings, **also), file)

    def read(self) -> dict[str, Answer]:
        """The answers by row id; empty without an evaluation that may be reused, or if it is damaged."""
        record = self.note.look_up()
        if record is None:
            return {}
        try:
            rows = read_json_lines(localize(record.artifact.uri) / self.file, "The earlier answers", nonfinite=True)
            found = {row["row_id"]: _answer(row) for row in rows}
        except (PaliGemmaError, KeyError, TypeError, ValueError) as error:
            log.warning("the answers of run %s cannot be reused, and are decoded anew: %r", record.run, error)
            return {}
        return {row_id: answer for row_id, answer in found.items() if answer is not None}


def first_of(places: Sequence[EarlierAnswers]) -> Mapping[str, Answer]:
    """The answers in any of these places by row id, the first place's first."""
    found: dict[str, Answer] = {}
    for place in reversed(places):
        found |= place.read()
    return found


def _answer(row: Mapping) -> Answer | None:
    """The answer in a line; None if the model had diverged, whose log-probabilities a line does not hold."""
    values = (row["logprob"], row["target_logprob"])
    if not isinstance(row["row_id"], str) or not isinstance(row["prediction"], str):
        raise DamagedError("A line is not an answer.")
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return Answer(row["prediction"], *(float(np.float32(value)) for value in values))  # as decoding gives them
