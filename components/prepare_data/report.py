"""The page that shows a prepared split: pictures with boxes and masks, lengths, answers, warnings and rejects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from paligemma.data.balance import FINDINGS
from paligemma.data.image_source import ImageSource
from paligemma.data.images import ImageError, fit_image
from paligemma.data.loc_boxes import parse_boxes
from paligemma.data.pictures.levels import GreyRange
from paligemma.data.prepare import SAMPLED_SIDE, Facts, Job, Remark
from paligemma.data.records import Dataset
from paligemma.data.row_sources import open_folders
from paligemma.data.row_warnings import WARNINGS
from paligemma.data.rows import REASONS, RowError
from paligemma.data.run_lengths import read_runs
from paligemma.reports.page import TRUE_COLOUR, image_uri, mask_uri, render

THUMBNAIL_SIZE = SAMPLED_SIDE
"""Maximum side of the pictures in pixels."""

_WINDOW = 32  # files held at once


def render_report(
    dataset: Dataset, facts: Facts, job: Job, model: str = "", stored: Mapping[str, np.ndarray] | None = None
) -> str:
    """The page as HTML.

    Args:
        dataset, facts, job, model: what to show.
        stored: pictures as in the records, by their names; all others are read from the source.
    """
    source, size = open_folders(job.sources, job.web), min(job.image_size, THUMBNAIL_SIZE)
    remarks = facts.warned + facts.rejects
    images = {name for shown in (*facts.sample, *remarks) for name in shown.images}
    small = {name: image_uri(_smaller(pixels, size)) for name, pixels in (stored or {}).items()}
    small |= _pictures(source, images - small.keys(), size, job.grey_range)
    return render(
        "dataset.html",
        model=model,
        dataset=dataset,
        source=", ".join(source.name or source.data.rsplit("/", 1)[-1] for source in job.sources),
        sources=_sources(dataset),
        sample=sorted(facts.sample, key=lambda row: (row.source, row.line)),
        pictures=small,
        # Of several images, nobody says which one a box or a mask is in.
        boxes={
            row.row_id: [box._asdict() for box in parse_boxes(row.suffix)] if len(row.images) == 1 else []
            for row in facts.sample
        },
        masks={row.row_id: _mask(row.masks) for row in facts.sample if row.masks and len(row.images) == 1},
        frequent=dataset.frequent_suffixes.items(),
        warned=sorted(facts.warned, key=_order),
        rejects=sorted(facts.rejects, key=_order),
        reasons=REASONS,
        meanings=WARNINGS,
        findings=[(code, FINDINGS[code], particulars) for code, particulars in dataset.findings.items()],
    )


def _mask(packed: str) -> str:
    """A picture of what a row's true masks cover."""
    return mask_uri(read_runs({"size": [SAMPLED_SIDE, SAMPLED_SIDE], "counts": packed}), TRUE_COLOUR)


def lines_shown(facts: Facts) -> dict[str, tuple[str, int]]:
    """Of every picture on the page whose row is kept: file and line of a row that has it, by its name."""
    return {name: (shown.source, shown.line) for shown in (*facts.sample, *facts.warned) for name in shown.images}


def _order(remark: Remark) -> tuple[str, str, int]:
    return remark.code, remark.source, remark.line


def _sources(dataset: Dataset) -> list[dict]:
    """Of each file of a mixture: what became of it, its share of the training examples, and how often an epoch sees a row."""
    weights = [source.rows if source.weight is None else source.weight for source in dataset.sources]
    shares = [weight / sum(weights) for weight in weights]
    return [
        {**source.model_dump(), "share": share, "times": share * dataset.rows / source.rows}
        for source, share in zip(dataset.sources, shares, strict=True)
    ]


def _smaller(pixels: np.ndarray, size: int) -> np.ndarray:
    if len(pixels) == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))


def _pictures(source: ImageSource, names: Iterable[str], size: int, grey_range: GreyRange | None) -> dict[str, str]:
    """Data URIs of the images that can be read."""
    shown = {}
    remaining = sorted(names)
    while remaining:
        window, remaining = remaining[:_WINDOW], remaining[_WINDOW:]
        source.expect(window)
        for name in window:
            try:
                shown[name] = image_uri(np.asarray(fit_image(source.read(name), size, name, grey_range)[0]))
            except (RowError, ImageError):
                continue
    return shown
