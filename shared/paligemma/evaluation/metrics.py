"""Metrics by name: their values for every row, and for all rows with a 95 % interval."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from paligemma.data.mask_codes import read_decoder
from paligemma.data.seg_masks import Decode, mean_iou
from paligemma.errors import InputError, PaliGemmaError, did_you_mean
from paligemma.evaluation.boxes import AveragePrecision, box_f1
from paligemma.evaluation.caption_metrics import Caption, bleu_counts, bleu_of, cider, rouge_l, words
from paligemma.evaluation.masks import cumulative_iou, pixel_counts, row_overlaps
from paligemma.evaluation.predict import Prediction
from paligemma.evaluation.significance import bootstrap_interval
from paligemma.evaluation.text_metrics import anls, exact_match, multiple_choice, relaxed_accuracy
from paligemma.evaluation.vqa_accuracy import vqa_accuracy

ENTRY_POINTS = "paligemma.metrics"
"""Entry point group in which installed packages name their metrics."""

MOST_GROUPS = 50


@dataclass(frozen=True)
class Scores:
    """A metric's result for a list of predictions.

    Attributes:
        rows: value for each prediction; higher is better.
        value: value for all predictions: the mean of the rows, except for corpus metrics.
        low, high: 95 % bootstrap interval of `value`; both None without rows.
        of_rows: name of the mean of the rows, if it is not the metric itself.
    """

    rows: Float[np.ndarray, " rows"]
    value: float
    low: float | None
    high: float | None
    of_rows: str = ""


@dataclass(frozen=True)
class Scored:
    """A metric's result without its interval.

    Attributes:
        rows, value, of_rows: see `Scores`.
        resampled: computes values of rows drawn with replacement, for `bootstrap_interval`.
    """

    rows: Float[np.ndarray, " rows"]
    value: float
    resampled: Callable[[np.ndarray], np.ndarray]
    of_rows: str = ""


@dataclass(frozen=True)
class Metric:
    """A metric. Calling it with predictions returns their scores.

    Attributes:
        score: computes the result without the interval, which takes most of the time.
        best: value of perfect answers; None if unknown, as for a user's own metric.
        shortfall: why even an answer equal to a row's first reference may score less.
    """

    score: Callable[[Sequence[Prediction]], Scored]
    best: float | None = 1.0
    shortfall: str = ""

    def __call__(self, predictions: Sequence[Prediction]) -> Scores:
        """The scores with their interval."""
        if not predictions:
            return Scores(np.zeros(0), 0.0, None, None)
        found = self.score(predictions)
        interval = bootstrap_interval(len(found.rows), found.resampled)
        return Scores(found.rows, found.value, *interval, found.of_rows)

    def rows(self, predictions: Sequence[Prediction]) -> Float[np.ndarray, " rows"]:
        """The value for each prediction."""
        return self.score(predictions).rows if predictions else np.zeros(0)

    def of_first_references(self, predictions: Sequence[Prediction]) -> float | None:
        """The value of a model that answers every row with its first reference; None if the best value is unknown."""
        if self.best is None or not predictions:
            return None
        perfect = [dataclasses.replace(p, prediction=p.references[0], logprob=0.0) for p in predictions]
        return self.score(perfect).value


def mean_of(rows: Sequence[float] | Float[np.ndarray, " rows"]) -> Scored:
    """The scores of a metric that is the mean of its rows."""
    values = np.asarray(rows, np.float64)
    return Scored(values, float(values.mean()), lambda chosen: values[chosen].mean(axis=1))


def by_row(score: Callable[[str, Sequence[str]], float], best: float | None = 1.0, shortfall: str = "") -> Metric:
    """The metric that is the mean of `score(answer, references)`."""
    return Metric(lambda rows: mean_of([score(p.prediction, p.references) for p in rows]), best, shortfall)


def _captions(predictions: Sequence[Prediction]) -> list[Caption]:
    return [Caption(_some_words(p.prediction), list(map(_some_words, p.references))) for p in predictions]


def _some_words(text: str) -> list[str]:
    """The words of a text; for a text of signs only, the signs."""
    return words(text) or text.split()


def _bleu(predictions: Sequence[Prediction]) -> Scored:
    counts = np.array([bleu_counts(caption) for caption in _captions(predictions)])

    def resampled(chosen: np.ndarray) -> np.ndarray:
        return np.array([bleu_of(counts[rows].sum(axis=0)) for rows in chosen])

    return Scored(np.array([bleu_of(row) for row in counts]), bleu_of(counts.sum(axis=0)), resampled, "bleu by row")


def _average_precision(predictions: Sequence[Prediction]) -> Scored:
    answers, truth = [p.prediction for p in predictions], [p.references[0] for p in predictions]
    rows = np.array([box_f1(answer, reference) for answer, reference in zip(answers, truth, strict=True)])
    precision = AveragePrecision(answers, truth, [p.logprob for p in predictions])
    return Scored(rows, precision.value, lambda drawn: np.array([precision(chosen) for chosen in drawn]), "box_f1")


def _mask_iou(decode: Decode, predictions: Sequence[Prediction]) -> Scored:
    return mean_of([mean_iou(overlaps) for overlaps in row_overlaps(predictions, decode)])


def _mask_ciou(decode: Decode, predictions: Sequence[Prediction]) -> Scored:
    counts = pixel_counts(row_overlaps(predictions, decode))
    rows = cumulative_iou(counts[:, None])
    return Scored(rows, float(cumulative_iou(counts)), lambda drawn: cumulative_iou(counts[drawn]), "mask_ciou by row")


_SHORT_CAPTION = "a caption of fewer than four words has no 4-grams"
METRICS: Mapping[str, Metric] = {
    "exact_match": by_row(exact_match),
    "vqa_accuracy": by_row(
        vqa_accuracy,
        shortfall="an answer counts by the share of a row's references that it equals; where there are ten, the official code "
        "takes them as they are: in lower case, without articles, numbers up to ten as digits",
    ),
    "anls": by_row(anls),
    "relaxed_accuracy": by_row(relaxed_accuracy),
    "multiple_choice": by_row(multiple_choice),
    "cider": Metric(
        lambda predictions: mean_of(cider(_captions(predictions))),
        best=10.0,
        shortfall="it is the mean likeness to all of a row's references, n-grams that the references of every row hold weigh "
        f"nothing (so that one row alone, or rows with equal references, have 0), and {_SHORT_CAPTION}",
    ),
    "bleu": Metric(_bleu, shortfall=_SHORT_CAPTION),
    "rouge_l": Metric(lambda predictions: mean_of([rouge_l(caption) for caption in _captions(predictions)])),
    "box_f1": by_row(lambda answer, references: max(box_f1(answer, reference) for reference in references)),
    "mean_average_precision": Metric(
        _average_precision,
        shortfall="a box without an area overlaps nothing, COCO counts 100 boxes of a label and image at most, and where no "
        "reference holds a box the value is -1",
    ),
}


MASK_METRICS: Mapping[str, Callable[[Decode, Sequence[Prediction]], Scored]] = {
    "mask_iou": _mask_iou,
    "mask_ciou": _mask_ciou,
}
"""Metrics that need the weights of the mask decoder."""

MASK_SHORTFALL = "sixteen <seg> symbols do not hold every mask, and these rows keep their true masks"


def find_metric(name: str, mask_decoder: str = "") -> Metric:
    """A metric by name. A user's own metric is named by entry point or as `module:function`.

    Those of `MASK_METRICS` need the file of a `mask_decoder`. A user's metric is a function of an answer and its references
    that returns a number; higher is better.

    Raises:
        InputError: the name is unknown, the function cannot be imported or called, or the mask decoder is missing.
    """
    if name in MASK_METRICS:
        if not mask_decoder:
            raise InputError(
                "Masks need the weights that turn <seg> symbols into pixels.",
                expected="--mask-decoder vae-oid.npz",
                fix="fetch gs://big_vision/paligemma/vae-oid.npz",
            )
        return Metric(partial(MASK_METRICS[name], read_decoder(mask_decoder)), shortfall=MASK_SHORTFALL)
    if name in METRICS:
        return METRICS[name]
    own = {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name not in own and ":" not in name:
        raise InputError(
            f"There is no metric {name!r}.",
            expected=f"{did_you_mean(name, [*METRICS, *MASK_METRICS, *own])}, or module:function",
        )
    try:
        if name in own:
            function = own[name].load()
        else:
            module, attribute = name.split(":", 1)
            function = getattr(importlib.import_module(module), attribute)
    except PaliGemmaError:
        raise
    except Exception as error:  # the user's module can raise anything
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"The metric {name!r} cannot be imported: {why}.", expected="module:function") from None
    if not callable(function):
        raise InputError(f"The metric {name!r} is not a function, but {function!r:.80}.", expected="module:function")
    return by_row(partial(_own_score, name, function), best=None)


def _own_score(name: str, function: Callable, answer: str, references: Sequence[str]) -> float:
    """The value of a user's metric for one row.

    Raises:
        InputError: the function fails or returns no number; names the row's texts, and the line in the user's code.
    """
    expected = "a function of an answer and a list of references that returns a finite number"
    fix = "mend the metric and run the same command again: what was decoded is kept"
    row = f"answer {answer!r:.200}, references {list(references)!r:.400}"
    try:
        found = function(answer, list(references))
    except PaliGemmaError:
        raise
    except Exception as error:  # the user's function can raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"The metric {name!r} failed: {type(error).__name__}: {error} ({place.filename}:{place.lineno})."
        raise InputError(what, where=row, expected=expected, fix=fix) from error
    try:
        number = math.nan if isinstance(found, str | bytes) or np.ndim(found) else float(found)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"The metric {name!r} returned {found!r:.80}.", where=row, expected=expected, fix=fix)
    return number


def by_group(predictions: Sequence[Prediction], rows: np.ndarray, group_of: Callable[[str], str], name: str) -> list[dict]:
    """Mean of `rows` by a property of the prefix, for the 50 most frequent values, most frequent first."""
    groups: dict[str, list[float]] = {}
    for prediction, value in zip(predictions, rows, strict=True):
        groups.setdefault(group_of(prediction.prefix), []).append(float(value))
    frequent = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_GROUPS]
    return [{"prefix": group, "examples": len(values), name: float(np.mean(values))} for group, values in frequent]


_PLACE = re.compile(r"<(?:loc[0-9]{4}|seg[0-9]{3})>")


def question_type(prefix: str) -> str:
    """The first words of a question, like VQA's question types: `how many`, `what color`, `is the`."""
    asked = prefix.lower().split()
    if len(asked) > 2 and asked[0] == "answer":  # `answer en what color is it?`
        asked = asked[2:]
    return " ".join(asked[:2])


def confusion(predictions: Sequence[Prediction], most: int = 20) -> tuple[list[str], list[list[int]]] | None:
    """Confusion matrix of targets and predictions; None if there are more than `most` different targets, or none.

    A prediction that is not a target counts as `other`, or as `any other` if `other` is a target. Targets with boxes or masks
    are left out: they are hardly ever the same twice, and are judged by how places overlap.
    """
    predictions = [p for p in predictions if not _PLACE.search(p.target)]
    targets = sorted({p.target.strip() for p in predictions})
    if not targets or len(targets) > most:
        return None
    labels = [*targets, "any other" if "other" in targets else "other"]
    place = {label: number for number, label in enumerate(targets)}
    counts = np.zeros((len(labels), len(labels)), int)
    for p in predictions:
        counts[place[p.target.strip()], place.get(p.prediction.strip(), len(targets))] += 1
    return labels, counts.tolist()
