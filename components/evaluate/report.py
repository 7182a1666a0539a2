"""The evaluation's page: figures, and rows with pictures, boxes and masks, worst first."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from components.evaluate.candidate import Candidate
from components.evaluate.contenders import Evaluation
from components.evaluate.results import Judgement, finite
from paligemma.artifacts.pages import neighbours
from paligemma.artifacts.recording import about_attempt
from paligemma.artifacts.store import localize
from paligemma.checkpoints.describe import describe_opened
from paligemma.data.loc_boxes import parse_boxes
from paligemma.data.mask_codes import read_decoder
from paligemma.data.records import pictures_of
from paligemma.data.seg_masks import Decode, parse_masks, parse_masks_text, union_of_masks, union_of_text
from paligemma.data.tfrecord import RowReader
from paligemma.evaluation.gate import Decision
from paligemma.evaluation.predict import Prediction
from paligemma.reports.page import image_uri, mask_uri, render, write_page

REPORT_ROWS = 5000
"""Most pictures in the report, of the worst rows first. With a picture each, a page of 5,000 rows has about 30 MB."""

THUMBNAIL_SIZE = 192
"""Maximum side of the pictures in pixels."""

MASK_COLOURS = {"true": (16, 124, 16), "predicted": (196, 49, 75)}
"""Colours of masks: red, green, blue."""

ImageOf = Callable[[int], UInt8[np.ndarray, "*n size size 3"]]


def write_report(
    folder: Path,
    judgement: Judgement,
    baseline: Evaluation | None,
    decision: Decision | None,
    candidate: Candidate,
    mask_decoder: str = "",
) -> None:
    """Writes `report.html`. A page that cannot be rendered is an error in the log: the evaluation stays."""
    reader, model = RowReader(candidate.data), describe_opened(candidate.base)

    def page() -> str:
        decode = read_decoder(localize(mask_decoder)) if mask_decoder else None
        most = REPORT_ROWS // candidate.data.dataset.images_per_example
        image_of = lambda row: reader.read(row).image  # noqa: E731
        return render_report(judgement, baseline, decision, image_of, candidate.source, model, decode, most)

    write_page(folder / "report.html", page)


def render_report(
    judgement: Judgement,
    baseline: Evaluation | None,
    decision: Decision | None,
    image_of: ImageOf,
    source: str,
    model: str = "",
    decode: Decode | None = None,
    most: int = REPORT_ROWS,
) -> str:
    """The page as HTML.

    Args:
        judgement: what the page shows.
        baseline: the base's evaluation, shown beside; None for none.
        decision: the gate's decision; None for none.
        image_of: returns a row's image by number, or its images.
        source: name of the data.
        model: a line that describes the base.
        decode: maps codes of masks to masks; None: only the true masks of rows are drawn.
        most: most rows to show.
    """
    summary = judgement.summary
    worst = np.argsort(judgement.scores[judgement.primary].rows, kind="stable")[:most].tolist()
    other = baseline.summary if baseline else None
    by_prefix = {question["prefix"]: question["exact_match"] for question in other["by_question"]} if other else {}
    return render(
        "evaluation.html",
        model=model,
        about=about_attempt(),
        links=neighbours(),
        name=summary["model"],
        metrics=summary,
        source=source,
        baseline=other,
        baseline_name=other["model"] if other else "",
        questions=[{**q, "baseline": by_prefix.get(q["prefix"])} for q in summary["by_question"]],
        decision=decision,
        rows=[_row(judgement, number, baseline, image_of, decode) for number in worst],
    )


def _row(judgement: Judgement, number: int, baseline: Evaluation | None, image_of: ImageOf, decode: Decode | None) -> dict:
    p, pictures = judgement.predictions[number], pictures_of(image_of(number))
    boxes = {key: [list(box) for box in parse_boxes(text)] for key, text in (("true", p.target), ("predicted", p.prediction))}
    alone = len(pictures) == 1  # of several, nobody says which one a box or a mask is in
    return {
        "images": [image_uri(_thumbnail(picture)) for picture in pictures],
        "id": p.row_id,
        "prompt": p.prefix,
        "target": p.target,
        "answers": list(p.references),
        "prediction": p.prediction,
        "logprob": p.logprob if math.isfinite(p.logprob) else None,
        "scores": finite({metric: float(scores.rows[number]) for metric, scores in judgement.scores.items()}),
        "baseline": baseline.answers[number] if baseline else None,
        "boxes": boxes if any(boxes.values()) and alone else None,
        "masks": _masks(p, decode) if alone else {},
    }


def _masks(p: Prediction, decode: Decode | None) -> dict[str, str]:
    """Pictures of the true masks, else of those that the target says, and of the predicted ones; without those not known."""
    drawn = {}
    if p.masks:
        drawn["true"] = union_of_masks(parse_masks_text(p.masks), THUMBNAIL_SIZE)
    elif decode is not None and parse_masks(p.target):
        drawn["true"] = union_of_text(p.target, THUMBNAIL_SIZE, decode)
    if decode is not None and parse_masks(p.prediction):
        drawn["predicted"] = union_of_text(p.prediction, THUMBNAIL_SIZE, decode)
    return {kind: mask_uri(mask, MASK_COLOURS[kind]) for kind, mask in drawn.items()}


def _thumbnail(image: np.ndarray) -> np.ndarray:
    if len(image) <= THUMBNAIL_SIZE:
        return image
    return np.asarray(Image.fromarray(image).resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE)))
