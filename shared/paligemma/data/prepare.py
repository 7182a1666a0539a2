"""Rows and image files to records: validates, resizes, tokenizes, counts. What `prepare_data` runs."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from paligemma.data.image_source import ImageSource
from paligemma.data.images import ImageError, decode_image, resize, to_uint8
from paligemma.data.records import Example
from paligemma.data.rows import Row, RowError, read_rows, row_id
from paligemma.data.tokenizer import Tokenizer

OverLong = Literal["reject", "truncate"]
SAMPLE_SIZE = 48
FIRST_REJECTS = 100


@dataclass
class Preparation:
    """Turns the rows of one JSONL file into examples, and counts what it meets.

    Attributes:
        rows, rejected, truncated: how many rows were kept, rejected by reason, and had their suffix cut.
        prefix_tokens, suffix_tokens, text_tokens: how many rows have how many tokens.
        suffixes: how many rows have a suffix, for suffixes of at most 200 characters, up to 10,000 different ones.
        sample: a uniform random sample of the examples kept.
        first_rejects: the first rejected rows, as in `rejected.jsonl`.
    """

    images: ImageSource
    tokenizer: Tokenizer
    image_size: int
    max_text_tokens: int
    over_long: OverLong
    rows: int = 0
    lines: int = 0
    truncated: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    prefix_tokens: Counter[int] = field(default_factory=Counter)
    suffix_tokens: Counter[int] = field(default_factory=Counter)
    text_tokens: Counter[int] = field(default_factory=Counter)
    suffixes: Counter[str] = field(default_factory=Counter)
    sample: list[Example] = field(default_factory=list)
    first_rejects: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(0)

    def examples(self, data: Path, rejects: TextIO) -> Iterator[Example]:
        """Every usable row of `data` as an example, in order; a JSON line to `rejects` for every other."""
        for number, row in self.images.ahead(read_rows(data)):
            self.lines += 1
            try:
                if isinstance(row, RowError):
                    raise row
                example = self._example(row)
            except RowError as error:
                self._reject(number, error, rejects)
                continue
            self._count(example)
            yield example

    @property
    def reject_count(self) -> int:
        """Rows rejected, for whatever reason."""
        return self.rejected.total()

    def _example(self, row: Row) -> Example:
        data = self.images.read(row.image)
        prefix_ids, suffix_ids = self._tokenize(row)
        try:
            image = to_uint8(resize(decode_image(data, row.image), self.image_size))
        except ImageError as error:
            raise RowError(error.code, f"{row.image!r}: {error.what}") from None
        image_sha256 = hashlib.sha256(data).hexdigest()
        return Example(
            image=image,
            prefix_ids=prefix_ids,
            suffix_ids=suffix_ids,
            prefix=row.prefix,
            suffix=row.suffix,
            image_file=row.image,
            image_sha256=image_sha256,
            row_id=row_id(image_sha256, row.prefix, row.suffix),
            line=row.line,
            answers=row.answers,
        )

    def _tokenize(self, row: Row) -> tuple[list[int], list[int]]:
        prefix_ids, suffix_ids = self.tokenizer.prefix_ids(row.prefix), self.tokenizer.suffix_ids(row.suffix)
        excess = len(prefix_ids) + len(suffix_ids) - self.max_text_tokens
        if excess > 0:
            # Cutting must leave the prefix, one token of the suffix, and eos: without eos the model never learns to stop.
            if self.over_long == "reject" or excess > len(suffix_ids) - 2:
                parts = f"{len(prefix_ids)} of the prefix and {len(suffix_ids)} of the suffix"
                raise RowError("text_too_long", f"{parts}, {self.max_text_tokens} tokens at most")
            suffix_ids = [*suffix_ids[: -1 - excess], suffix_ids[-1]]
            self.truncated += 1
        return prefix_ids, suffix_ids

    def _count(self, example: Example) -> None:
        self.prefix_tokens[len(example.prefix_ids)] += 1
        self.suffix_tokens[len(example.suffix_ids)] += 1
        self.text_tokens[len(example.prefix_ids) + len(example.suffix_ids)] += 1
        if len(example.suffix) <= 200 and (example.suffix in self.suffixes or len(self.suffixes) < 10_000):
            self.suffixes[example.suffix] += 1
        self.rows += 1
        if len(self.sample) < SAMPLE_SIZE:  # reservoir sampling
            self.sample.append(example)
        elif (place := self._random.randrange(self.rows)) < SAMPLE_SIZE:
            self.sample[place] = example

    def _reject(self, line: int, error: RowError, rejects: TextIO) -> None:
        entry = {"line": line, "code": error.code, "message": error.message}
        rejects.write(json.dumps(entry) + "\n")
        self.rejected[error.code] += 1
        if len(self.first_rejects) < FIRST_REJECTS:
            self.first_rejects.append(entry)
