"""Metrics by name: what each says of every row, and of all of them with a 95 % interval."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from paligemma.errors import InputError, did_you_mean
from paligemma.evaluation.answers import anls, exact_match, multiple_choice, relaxed_accuracy
from paligemma.evaluation.boxes import AveragePrecision, box_f1
from paligemma.evaluation.captions import Caption, bleu_counts, bleu_of, cider, rouge_l, words
from paligemma.evaluation.masks import mask_ious, read_decoder
from paligemma.evaluation.predict import Prediction
from paligemma.evaluation.statistics import bootstrap_interval
from paligemma.evaluation.vqa import vqa_accuracy

ENTRY_POINTS = "paligemma.metrics"
"""Group in which an installed package names metrics of its own."""

MASK_IOU = "mask_iou"
MOST_GROUPS = 50


@dataclass(frozen=True)
class Scores:
    """A metric of a list of predictions.

    Attributes:
        rows: of each prediction; more is better.
        value: of all of them: the mean of the rows, unless the metric is one of a whole corpus.
        low, high: 95 % bootstrap interval; both None without rows.
        of_rows: what the mean of the rows is called, where that is not the metric itself.
    """

    rows: Float[np.ndarray, " rows"]
    value: float
    low: float | None
    high: float | None
    of_rows: str = ""


Metric = Callable[[Sequence[Prediction]], Scores]


def mean_of(rows: Sequence[float]) -> Scores:
    """The scores of a metric that is the mean of its rows."""
    values = np.asarray(rows, np.float64)
    if not len(values):
        return Scores(values, 0.0, None, None)
    return Scores(values, float(values.mean()), *bootstrap_interval(len(values), lambda chosen: values[chosen].mean(axis=1)))


def by_row(score: Callable[[str, Sequence[str]], float]) -> Metric:
    """The metric that is the mean of `score(answer, references)`."""
    return lambda predictions: mean_of([score(p.prediction, p.references) for p in predictions])


def _captions(predictions: Sequence[Prediction]) -> list[Caption]:
    return [Caption(words(p.prediction), [words(reference) for reference in p.references]) for p in predictions]


def _bleu(predictions: Sequence[Prediction]) -> Scores:
    counts = np.array([bleu_counts(caption) for caption in _captions(predictions)])
    if not len(counts):
        return mean_of([])

    def resampled(chosen: np.ndarray) -> np.ndarray:
        return np.array([bleu_of(counts[rows].sum(axis=0)) for rows in chosen])

    interval = bootstrap_interval(len(counts), resampled)
    return Scores(np.array([bleu_of(row) for row in counts]), bleu_of(counts.sum(axis=0)), *interval, "bleu by row")


def _average_precision(predictions: Sequence[Prediction]) -> Scores:
    rows = np.array([box_f1(p.prediction, p.target) for p in predictions])
    if not len(rows):
        return mean_of([])
    answers, targets = [p.prediction for p in predictions], [p.target for p in predictions]
    precision = AveragePrecision(answers, targets, [p.logprob for p in predictions])
    interval = bootstrap_interval(len(rows), lambda drawn: np.array([precision(chosen) for chosen in drawn]))
    return Scores(rows, precision.value, *interval, "box_f1")


METRICS: Mapping[str, Metric] = {
    "exact_match": by_row(exact_match),
    "vqa_accuracy": by_row(vqa_accuracy),
    "anls": by_row(anls),
    "relaxed_accuracy": by_row(relaxed_accuracy),
    "multiple_choice": by_row(multiple_choice),
    "cider": lambda predictions: mean_of(cider(_captions(predictions))),
    "bleu": _bleu,
    "rouge_l": lambda predictions: mean_of([rouge_l(caption) for caption in _captions(predictions)]),
    "box_f1": by_row(lambda answer, references: max(box_f1(answer, reference) for reference in references)),
    "mean_average_precision": _average_precision,
}


def find_metric(name: str, mask_decoder: str = "") -> Metric:
    """A metric by name; one of the user's own by entry point, or as `module:function`.

    `mask_iou` needs the file of a `mask_decoder`. The user's is a function of an answer and its references that returns a
    number, more being better.

    Raises:
        InputError: there is none of this name, it cannot be imported, or it has no mask decoder.
    """
    if name == MASK_IOU:
        if not mask_decoder:
            raise InputError(
                "Masks need the weights that turn <seg> symbols into pixels.",
                expected="--mask-decoder vae-oid.npz",
                fix="fetch gs://big_vision/paligemma/vae-oid.npz",
            )
        decode = read_decoder(mask_decoder)
        return lambda rows: mean_of(mask_ious([p.prediction for p in rows], [p.target for p in rows], decode))
    if name in METRICS:
        return METRICS[name]
    own = {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name not in own and ":" not in name:
        raise InputError(
            f"There is no metric {name!r}.", expected=f"{did_you_mean(name, [*METRICS, MASK_IOU, *own])}, or module:function"
        )
    try:
        if name in own:
            return by_row(own[name].load())
        module, function = name.split(":", 1)
        return by_row(getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError) as error:
        raise InputError(f"The metric {name!r} cannot be imported: {error}.", expected="module:function") from None


def by_group(predictions: Sequence[Prediction], rows: np.ndarray, group_of: Callable[[str], str], name: str) -> list[dict]:
    """Mean of `rows` by a property of the prefix, the most frequent first; beyond 50 different ones the rest is left out."""
    groups: dict[str, list[float]] = {}
    for prediction, value in zip(predictions, rows, strict=True):
        groups.setdefault(group_of(prediction.prefix), []).append(float(value))
    frequent = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_GROUPS]
    return [{"prefix": group, "examples": len(values), name: float(np.mean(values))} for group, values in frequent]


def question_type(prefix: str) -> str:
    """The words that a question begins with, as VQA's question types: `how many`, `what color`, `is the`."""
    asked = prefix.lower().split()
    if len(asked) > 2 and asked[0] == "answer":  # `answer en what color is it?`
        asked = asked[2:]
    return " ".join(asked[:2])


def confusion(predictions: Sequence[Prediction], most: int = 20) -> tuple[list[str], list[list[int]]] | None:
    """Targets against predictions, counted; None when there are more than `most` different targets.

    What was predicted and is no target is counted as `other`.
    """
    targets = sorted({p.target.strip() for p in predictions})
    if not targets or len(targets) > most:
        return None
    labels = [*targets, "other"]
    place = {label: number for number, label in enumerate(targets)}
    counts = np.zeros((len(labels), len(labels)), int)
    for p in predictions:
        counts[place[p.target.strip()], place.get(p.prediction.strip(), len(targets))] += 1
    return labels, counts.tolist()
