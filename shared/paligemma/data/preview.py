"""A page that shows exactly what the model is fed, of records or of rows that are not prepared yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from paligemma.checkpoints.describe import describe
from paligemma.checkpoints.open import open_model
from paligemma.data.image_source import open_images
from paligemma.data.images import ImageError, fit_image
from paligemma.data.pictures.levels import GreyRange, parse_grey_range
from paligemma.data.records import open_records
from paligemma.data.rows import RowError, read_all_rows
from paligemma.data.tfrecord import RowReader
from paligemma.data.tokenizer import Tokenizer
from paligemma.errors import InputError
from paligemma.lineage.artifact import localize
from paligemma.lineage.record import RECORD_FILE
from paligemma.reports.page import image_uri, render
from paligemma.storage.files import exists, parent_of


@dataclass(frozen=True)
class Preview:
    """A self-contained HTML page, and what it is about in words.

    Attributes:
        page: HTML.
        model: the model's name, size and resolution.
    """

    page: str
    model: str


def preview_page(data: str, model: str, images: str = "", rows: int = 24, grey_range: str = "") -> str:
    """The page of `make_preview` alone; in a notebook, `IPython.display.HTML(preview_page(...))` shows it."""
    return make_preview(data, model, images, rows, grey_range).page


def make_preview(data: str, model: str, images: str = "", rows: int = 24, grey_range: str = "") -> Preview:
    """Shows what the model is fed.

    Args:
        data: records, or a JSONL file, plain or gzip; local or `gs://`.
        model: checkpoint or tuned model whose tokenizer and image size to show a row for.
        images: what a JSONL file's image paths are relative to; empty: the file's folder.
        rows: how many to show, from the first.
        grey_range: the samples that are black and white in grey pictures of a JSONL file, `LOW,HIGH`; empty: as each states.

    Raises:
        InputError: there is no such data, or it was prepared with another tokenizer.
    """
    opened, _ = open_model(model)
    if opened.tokenizer is None:
        raise InputError("The checkpoint has no tokenizer.", where=model, fix="run fetch_checkpoint with --tokenizer")
    tokenizer = Tokenizer(opened.tokenizer)
    if exists(data, RECORD_FILE):
        shown, size = _of_records(data, tokenizer, rows), None
    else:
        size = opened.config.img.image_size
        shown = islice(_of_rows(data, images or str(parent_of(data)), tokenizer, size, parse_grey_range(grey_range)), rows)
    source = str(data).rstrip("/").rsplit("/", 1)[-1]
    described = describe(model, opened)
    return Preview(render("preview.html", source=source, model=described, rows=list(shown)), described)


def _of_records(data: str, tokenizer: Tokenizer, rows: int) -> Iterator[dict]:
    records = open_records(data)
    if records.dataset.tokenizer_sha256 != tokenizer.sha256:
        raise InputError(
            "The records were made with another tokenizer.",
            where=data,
            fix="pass as --model what prepare_data had as --checkpoint",
        )
    reader = RowReader(records)
    for number in range(min(rows, len(reader))):
        row = reader.read(number)
        tokens = row.tokens.tolist()
        yield _shown(tokenizer, row.line, row.image, row.prefix, row.suffix, tokens, row.prefix_length)


def _of_rows(data: str, images: str, tokenizer: Tokenizer, size: int, grey_range: GreyRange | None) -> Iterator[dict]:
    path = localize(data)
    if not Path(path).is_file():
        raise InputError(f"There is no data {data}.", expected="records, or a JSONL file")
    source = open_images(images)
    for number, row in read_all_rows(path):
        try:
            if isinstance(row, RowError):
                raise row
            image, _, _ = fit_image(source.read(row.image), size, row.image, grey_range)
        except (RowError, ImageError) as error:
            yield {"line": number, "code": error.code, "message": str(error)}
            continue
        prefix, suffix = tokenizer.prefix_ids(row.prefix), tokenizer.suffix_ids(row.suffix)
        yield _shown(tokenizer, number, np.asarray(image), row.prefix, row.suffix, prefix + suffix, len(prefix))


def _shown(
    tokenizer: Tokenizer, line: int, image: np.ndarray, prefix: str, suffix: str, tokens: list[int], prefix_length: int
) -> dict:
    pieces = tokenizer.pieces(tokens)
    return {
        "line": line,
        "code": None,
        "image": image_uri(image),
        "size": image.shape[0],
        "prefix": prefix,
        "suffix": suffix,
        "tokens": [
            {"id": token, "piece": piece.replace("\n", "\\n"), "suffix": int(place >= prefix_length)}
            for place, (token, piece) in enumerate(zip(tokens, pieces, strict=True))
        ],
    }
