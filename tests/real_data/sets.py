"""The data sets: in which published form each is, how a user converts it, and which task its rows are judged by."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
        task: `--task` of its rows.
        form: what of `Publisher` writes it.
        entries: which of the publisher's counts is of what `convert` reads; empty for rows that are written as they are.
        convert: arguments of `paligemma convert`, with `{split}`.
        images: folder that its image names are relative to, with `{split}`.
        max_new_tokens: of an answer.
    """

    task: str
    form: str
    entries: str = ""
    convert: str = ""
    images: str = "."
    max_new_tokens: int = 16

    def arguments(self, split: str) -> list[str]:
        """Of `paligemma convert`."""
        return shlex.split(self.convert.replace("{split}", split))


SETS = {
    "vqa": DataSet(
        "vqa",
        "questions",
        "questions",
        "vqav2 --questions annotations/questions_{split}.json --annotations annotations/answers_{split}.json"
        " --images 'vqa/{split}_{:012d}.png'",
    ),
    "captions": DataSet("caption", "captions", "annotations", "coco-captions --annotations annotations/captions_{split}.json"),
    "boxes": DataSet(
        "detect",
        "instances",
        "annotations",
        "coco-detection --annotations annotations/instances_{split}.json",
        max_new_tokens=32,
    ),
    "masks": DataSet("segment", "masks", max_new_tokens=32),
    "scripts": DataSet(
        "docvqa",
        "names",
        "rows",
        "table --table annotations/names_{split}.csv --prefix 'answer {language} whose flag is this?' --suffix '{name, 100 %}'",
    ),
    "capitals": DataSet(
        "ocr",
        "names",
        "rows",
        "table --table annotations/names_{split}.jsonl --prefix 'ocr {language}' --suffix '{capital}'",
    ),
    "figures": DataSet(
        "chartqa",
        "figures",
        "rows",
        "table --table annotations/figures_{split}.csv --prefix 'answer en which part does {largest} cover?'"
        " --suffix '{share, %}%'",
    ),
    "emoji": DataSet(
        "",
        "emoji_table",
        "rows",
        "table --table annotations/emoji_{split}.parquet --prefix 'name one of {category}' --suffix '{name}'",
    ),
    "labels": DataSet("classify", "labels", "pictures", "folder --folder labels/{split}", images="labels/{split}"),
}
"""By name, which begins its files."""
