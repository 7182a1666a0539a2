"""A page that shows exactly what the model is fed, for records or for unprepared rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from paligemma.artifacts.record import RECORD_FILE
from paligemma.artifacts.store import artifact_at, localize
from paligemma.checkpoints.describe import describe
from paligemma.checkpoints.open_checkpoint import open_model
from paligemma.data.loc_boxes import parse_boxes
from paligemma.data.mask_codes import read_decoder
from paligemma.data.pictures.levels import GreyRange, parse_grey_range
from paligemma.data.prepare import Facts, Job, Preparer, Remark
from paligemma.data.records import as_image, open_records, pictures_of
from paligemma.data.row_sources import RowSource, open_sources, read_source
from paligemma.data.row_warnings import WARNINGS
from paligemma.data.rows import REASONS, Row
from paligemma.data.seg_masks import Decode, parse_masks, parse_masks_text, union_of_masks, union_of_text
from paligemma.data.source_list import parse_sources
from paligemma.data.stored_pictures import unpack_picture
from paligemma.data.tfrecord import RowReader
from paligemma.data.tokenizer import Tokenizer
from paligemma.data.web_images import fetch_images
from paligemma.errors import InputError
from paligemma.reports.page import SUFFIX_COLOUR, TRUE_COLOUR, image_uri, mask_uri, render
from paligemma.storage.files import exists

LOOKED_AT = 1000
"""Most rows of a JSONL file that are checked; prepare_data checks all."""


@dataclass(frozen=True)
class Preview:
    """A self-contained HTML page, and its main facts in words.

    Attributes:
        page: HTML.
        model: the model's name, size and resolution.
        counts: numbers of usable, rejected and warned rows, by reason; one line each.
    """

    page: str
    model: str
    counts: list[str]


def preview_page(data: str, model: str, images: str = "", rows: int = 24, grey_range: str = "") -> str:
    """Only the page of `make_preview`; in a notebook, `IPython.display.HTML(preview_page(...))` shows it."""
    return make_preview(data, model, images, rows, grey_range).page


def make_preview(
    data: str,
    model: str,
    images: str = "",
    rows: int = 24,
    grey_range: str = "",
    max_text_tokens: int = 128,
    mask_decoder: str = "",
    images_per_example: int = 1,
) -> Preview:
    """Shows what the model is fed.

    Args:
        data: records, or a JSONL file (plain or gzip); local or `gs://`. Or the sources of a mixture; see `source_list`.
        model: the checkpoint or tuned model whose tokenizer and image size are used.
        images: folder or prefix that a JSONL file's image paths are relative to; empty: the file's folder.
        rows: number of rows to show, from the first.
        max_text_tokens: rows of a JSONL file with more tokens are rejected.
        grey_range: samples of black and white in a JSONL file's grey pictures, `LOW,HIGH`; empty: as stated in each file.
        mask_decoder: weights that turn <seg> symbols into masks; empty: only the true masks of rows are drawn.
        images_per_example: number of images in every row of a JSONL file; others are rejected.

    Raises:
        InputError: the data do not exist, or were prepared with another tokenizer; or there is no such mask decoder.
    """
    opened, _ = open_model(model)
    if opened.tokenizer is None:
        raise InputError("The checkpoint has no tokenizer.", where=model, fix="run fetch_checkpoint with --tokenizer")
    tokenizer = Tokenizer(opened.tokenizer)
    decode = read_decoder(localize(mask_decoder)) if mask_decoder else None
    sources = parse_sources(str(data), "--data")
    if len(sources) == 1 and exists(artifact_at(sources[0].data), RECORD_FILE):
        looked = _of_records(str(artifact_at(sources[0].data)), tokenizer, rows, decode)
    else:
        for one in sources:
            if not localize(one.data).is_file():
                expected = "records, or a JSONL file"
                raise InputError(f"There is no data {one.data}.", where="--data", expected=expected, fix="check the path")
        size = opened.config.img.image_size
        settings = (opened.tokenizer, size, max_text_tokens, parse_grey_range(grey_range), images_per_example)
        looked = _of_rows(open_sources(str(data), images), tokenizer, rows, decode, *settings)
    source = ", ".join(one.data.rstrip("/").rsplit("/", 1)[-1] for one in sources)
    described = describe(model, opened)
    page = render("preview.html", source=source, model=described, looked=looked, meanings={**REASONS, **WARNINGS})
    return Preview(page, described, looked.lines())


@dataclass
class _Looked:
    """The part of a data set that was looked at: its first rows, and counts over all rows looked at."""

    whole: bool = True
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    warned: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)

    @property
    def of(self) -> str:
        """Describes what the counts cover."""
        return f"{'all' if self.whole else 'the first'} {self.kept + self.rejected.total()} rows"

    def lines(self) -> list[str]:
        """The counts, for people."""
        said = [f"of {self.of}: {self.kept} are fit, {self.rejected.total()} would be rejected"]
        for kind, counts in (("rejected", self.rejected), ("warned of", self.warned)):
            for code, count in counts.most_common():
                at = f", first in line {self.first[code]}" if code in self.first else ""
                said.append(f"  {kind}: {count} {code}{at}: {(REASONS | WARNINGS)[code]}")
        return said


def _of_records(data: str, tokenizer: Tokenizer, rows: int, decode: Decode | None) -> _Looked:
    records = open_records(data)
    dataset = records.dataset
    if dataset.tokenizer_sha256 != tokenizer.sha256:
        raise InputError(
            "The records were made with another tokenizer.",
            where=data,
            fix="pass as --model what prepare_data had as --checkpoint",
        )
    reader = RowReader(records)
    looked = _Looked(True, dataset.rows, Counter(dataset.rejected), Counter(dataset.warnings))
    for number in range(min(rows, len(reader))):
        row = reader.read(number)
        ids = row.tokens.tolist()
        masks = _masks(row.suffix, row.masks, row.image, decode)
        line = _line(dataset.source_of(number), row.line)
        looked.rows.append(_shown(tokenizer, line, row.image, row.prefix, row.suffix, ids, row.prefix_length, (), masks))
    return looked


def _of_rows(
    sources: Sequence[RowSource],
    tokenizer: Tokenizer,
    rows: int,
    decode: Decode | None,
    tokenizer_file: Path,
    size: int,
    max_text_tokens: int,
    grey_range: GreyRange | None,
    images_per_example: int,
) -> _Looked:
    """Checks rows like prepare_data."""
    most = -(-LOOKED_AT // len(sources))
    first = [line for source in sources for line in islice(read_source(source, images_per_example), most)]
    web = fetch_images(row for _, row in first if isinstance(row, Row))
    job = Job(sources, tokenizer_file, size, max_text_tokens, "reject", "none", grey_range, web, images_per_example)
    looked, preparer = _Looked(), Preparer(job)
    for number, source in enumerate(sources):
        shown = len(looked.rows) + (rows - len(looked.rows)) // (len(sources) - number)
        lines, facts = read_source(source, images_per_example), Facts(source=source.name)
        for example, _, remarks in preparer.judge(islice(lines, most), facts, lambda line, rejected: None):
            for remark in remarks:
                (looked.rejected if example is None else looked.warned)[remark.code] += 1
                looked.first.setdefault(remark.code, _line(remark.source, remark.line))
            looked.kept += example is not None
            if len(looked.rows) == shown:
                continue
            if example is None:
                (remark,) = remarks
                line = _line(remark.source, remark.line)
                looked.rows.append({"line": line, "code": remark.code, "message": remark.message})
            else:
                ids, cut = example.prefix_ids + example.suffix_ids, len(example.prefix_ids)
                line = _line(source.name, example.line)
                image = as_image([unpack_picture(one, size, job.compression) for one in example.images])
                one = (tokenizer, line, image, example.prefix, example.suffix, ids, cut)
                masks = _masks(example.suffix, example.masks, image, decode)
                looked.rows.append(_shown(*one, remarks, masks))
        looked.whole &= next(lines, None) is None
    return looked


def _line(source: str, line: int) -> str:
    """A line, with its file if there are several."""
    return f"{line} of {source}" if source else str(line)


def _masks(suffix: str, true: str, image: np.ndarray, decode: Decode | None) -> dict[str, str]:
    """Pictures of the true masks and of those that the suffix says, by what they are; without those that are not known."""
    drawn = {}
    if len(pictures_of(image)) > 1:  # nobody says which one a mask is of
        return drawn
    side = len(image)
    if true:
        drawn["true"] = mask_uri(union_of_masks(parse_masks_text(true), side), TRUE_COLOUR)
    if decode is not None and parse_masks(suffix):
        drawn["suffix"] = mask_uri(union_of_text(suffix, side, decode), SUFFIX_COLOUR)
    return drawn


def _shown(
    tokenizer: Tokenizer,
    line: str,
    image: np.ndarray,
    prefix: str,
    suffix: str,
    tokens: list[int],
    prefix_length: int,
    remarks: Sequence[Remark],
    masks: dict[str, str],
) -> dict:
    pieces, pictures = tokenizer.pieces(tokens), pictures_of(image)
    return {
        "line": line,
        "code": None,
        "images": [image_uri(picture) for picture in pictures],
        "size": len(pictures[0]),
        "prefix": prefix,
        "suffix": suffix,
        "masks": masks,
        "boxes": [box._asdict() for box in parse_boxes(suffix)] if len(pictures) == 1 else [],
        "warnings": [(remark.code, remark.message) for remark in remarks],
        "tokens": [
            {"id": token, "piece": piece.replace("\n", "\\n"), "suffix": int(place >= prefix_length)}
            for place, (token, piece) in enumerate(zip(tokens, pieces, strict=True))
        ],
    }
