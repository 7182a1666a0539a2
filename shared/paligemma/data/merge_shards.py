"""Merges prepared ranges into a data set: names shards, joins lists, checks the whole, writes `dataset.json`."""

from __future__ import annotations

import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from paligemma.artifacts.record import REJECTED_FILE, ROWS_FILE
from paligemma.data.balance import balance_findings
from paligemma.data.duplicates import Listing, duplicates, leaks, read_listing, remarks
from paligemma.data.jsonl_files import LineRange
from paligemma.data.kept_pictures import read_pictures
from paligemma.data.prepare import Facts, Job, part_file, read_facts
from paligemma.data.records import DATASET_FILE, IMAGES_FILE, PARTS_FILE, WARNINGS_FILE, Dataset, Shard, SourceRows
from paligemma.data.stored_pictures import unpack_picture
from paligemma.data.tfrecord import TFRecordFile
from paligemma.errors import DamagedError
from paligemma.foreign_json import read_json_lines

FREQUENT_SUFFIXES = 20
LIST_FILES = {"rows": ROWS_FILE, "rejected": REJECTED_FILE, "warnings": WARNINGS_FILE, "images": IMAGES_FILE}
"""Where the lists of all ranges are joined. After those of the ranges, `warnings.jsonl` has warnings that need the whole."""


def gather_facts(parts: Sequence[LineRange], folder: Path) -> Facts:
    """The facts of all ranges together.

    Raises:
        DamagedError: a range is not finished.
    """
    facts = Facts()
    for part in parts:
        of_part = read_facts(folder, part)
        if of_part is None:
            raise DamagedError(
                f"Lines {part.line} to {part.line + part.lines - 1} are not prepared.", where=folder, fix="prepare them again"
            )
        facts.add(of_part)
    return facts


def assemble(
    parts: Sequence[LineRange],
    folder: Path,
    output: Path,
    facts: Facts,
    job: Job,
    split: str,
    tokenizer_sha256: str,
    against: Listing | None,
    sources: Sequence[SourceRows] = (),
) -> Dataset:
    """Fills `output` from the ranges in `folder`, which stays unchanged.

    Args:
        facts: facts of the ranges; warnings that need the whole data set are added.
        against: another split, which should share no row or image with this one; None for none.
        sources: what became of each file of a mixture.
    """
    ending = ".tfrecord.gz" if job.compression == "gzip" else ".tfrecord"
    shards = []
    for part, shard in zip(parts, facts.shards, strict=True):
        name = f"{split}-{part.number:05d}-of-{len(parts):05d}{ending}"
        link(part_file(folder, part, "tfrecord"), output / name)
        shards.append(Shard(file=name, rows=shard.rows, bytes=shard.bytes, sha256=shard.sha256))
    for kind, name in LIST_FILES.items():
        with (output / name).open("wb") as file:
            for part in parts:
                with part_file(folder, part, kind).open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
    with (output / PARTS_FILE).open("wb") as file:
        for part in parts:
            file.write(part_file(folder, part, "facts").read_bytes() + b"\n")
    listing = read_listing(output / ROWS_FILE)
    found = [*duplicates(listing), *(leaks(listing, against) if against is not None else ())]
    with (output / WARNINGS_FILE).open("a", encoding="utf-8") as file:
        for remark in remarks(found, output / ROWS_FILE):
            facts.warnings[remark.code] += 1
            facts.show(facts.warned, remark)
            file.write(remark.model_dump_json() + "\n")
    dataset = Dataset(
        split=split,
        rows=facts.rows,
        rejected=dict(sorted(facts.rejected.items())),
        truncated=facts.truncated,
        image_size=job.image_size,
        max_text_tokens=job.max_text_tokens,
        tokenizer_sha256=tokenizer_sha256,
        compression=job.compression,
        grey_range=str(job.grey_range or ""),
        images_per_example=job.images_per_example,
        prefix_tokens=dict(sorted(facts.prefix_tokens.items())),
        suffix_tokens=dict(sorted(facts.suffix_tokens.items())),
        text_tokens=dict(sorted(facts.text_tokens.items())),
        shards=shards,
        warnings=dict(sorted(facts.warnings.items())),
        images=listing.image_count,
        frequent_suffixes=dict(facts.suffixes.most_common(FREQUENT_SUFFIXES)),
        findings=balance_findings(facts.rows, facts.suffixes),
        sources=list(sources),
    )
    (output / DATASET_FILE).write_text(json.dumps(dataset.as_json(), indent=2) + "\n")
    return dataset


def stored_pictures(
    parts: Sequence[LineRange], folder: Path, job: Job, lines: Mapping[str, tuple[str, int]]
) -> dict[str, UInt8[np.ndarray, "size size 3"]]:
    """Pictures from the ranges in `folder`, by name. None if their shards are packed, as those are not read from the middle.

    Args:
        parts, folder, job: the ranges.
        lines: file and line of a kept row by the name of its picture.
    """
    if job.compression == "gzip":
        return {}
    names: dict[int, dict[int, list[str]]] = {}
    numbers = {source.name: number for number, source in enumerate(job.sources)}
    for name, (source, line) in lines.items():
        place = bisect_right(parts, (numbers[source], line), key=lambda part: (part.source, part.line)) - 1
        names.setdefault(place, {}).setdefault(line, []).append(name)
    found: dict[str, np.ndarray] = {}
    for number, wanted in names.items():
        rows = [entry["line"] for entry in read_json_lines(part_file(folder, parts[number], "rows"), "The list of rows")]
        shard = TFRecordFile(part_file(folder, parts[number], "tfrecord"), len(rows), "prepare them again")
        for row, line in enumerate(rows):
            for picture in read_pictures(shard, row) if line in wanted else ():
                if picture.name in wanted[line]:
                    found[picture.name] = unpack_picture(picture.stored, job.image_size, job.compression)
    return found


def link(source: Path, target: Path) -> None:
    """Hard-links a file if the file system can; else copies it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
