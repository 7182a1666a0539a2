"""Takes over what an earlier preparation with the same settings made: whole ranges, and pictures of rows that moved.

A range is the same if its lines are, and if every image in it is what it was then; its shard and its lists are taken as they
are. In all other ranges, a picture whose file is the same is not decoded again. Either way the bytes are those of a
preparation from nothing, because a range's output depends only on its lines, its images and the settings.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paligemma.artifacts.record import REJECTED_FILE, ROWS_FILE, each
from paligemma.data.image_source import split_archive
from paligemma.data.jsonl_files import LineRange
from paligemma.data.kept_pictures import KeptPictures, Place, Seen
from paligemma.data.merge_shards import LIST_FILES, link
from paligemma.data.prepare import Facts, part_file, range_sha256, write_facts
from paligemma.data.records import DATASET_FILE, IMAGES_FILE, PARTS_FILE, WARNINGS_FILE, Dataset
from paligemma.data.row_sources import RowSource, read_part
from paligemma.data.rows import Row, row_id
from paligemma.data.shards import file_crc32c
from paligemma.errors import DamagedError
from paligemma.foreign_json import DOCUMENT_BYTES, parse_json, parse_model, read_model
from paligemma.regular_files import open_regular

FileOf = Callable[[str], Path]
"""Gives a local, verified copy of one of the records' files."""


@dataclass(frozen=True)
class TakenOver:
    """What is taken over from earlier records.

    Attributes:
        parts: the ranges that are taken whole, by number.
        lines: number of their rows, kept and rejected.
        kept: pictures for the other ranges.
        pictures: number of rows in those ranges whose pictures need not be decoded.
    """

    parts: frozenset[int] = frozenset()
    lines: int = 0
    kept: KeptPictures = KeptPictures()  # noqa: RUF009  (it is frozen, and empty)
    pictures: int = 0


def take_over(
    file_of: FileOf,
    sources: Sequence[RowSource],
    parts: Sequence[LineRange],
    marks: Mapping[str, str],
    folder: Path,
    images: int = 1,
) -> TakenOver:
    """Puts the ranges that did not change into `folder`, and finds the pictures that did not.

    Args:
        file_of: gives the files of the earlier records, which were made with the same settings, and with ranges as long. All
            but the shards must be what was written; of a shard, what is taken is checked here.
        sources: the JSONL files, uncompressed.
        parts: their ranges.
        marks: what each image is today, by its name; see `image_source.image_marks`.
        folder: where finished ranges are; see `prepare.part_file`.
        images: number of images in every row.

    Raises:
        PaliGemmaError: the earlier records cannot be read. What is in the folder then is whole.
    """
    try:
        dataset = read_model(file_of(DATASET_FILE), Dataset, DATASET_FILE)
        facts = list(_take_parts(file_of, dataset, sources, parts, marks, folder))
        taken = {part.number: lines for part, lines, _ in facts if part is not None}
        rest = [part for part in parts if part.number not in taken]
        kept, pictures = KeptPictures(), 0
        if rest and dataset.compression != "gzip":  # a packed shard cannot be read from the middle
            rows = [row.names for part in rest for _, row in read_part(sources, part, images) if isinstance(row, Row)]
            names = {name for row in rows for name in row}
            kept = _pictures(file_of, dataset, names, marks, sum(warnings for _, _, warnings in facts))
            pictures = sum(all(kept.without_reading(name) is not None for name in row) for row in rows)
    except (OSError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DamagedError(f"The earlier records cannot be read: {error!r}.") from None
    return TakenOver(frozenset(taken), sum(taken.values()), kept, pictures)


def compare_rows(rows: Sequence[Row], file_of: FileOf, marks: Mapping[str, str]) -> str:
    """How rows differ from those of earlier records, in words, in any order; empty if they do not.

    Args:
        rows: the rows now.
        file_of, marks: see `take_over`.

    Raises:
        DamagedError: the earlier records cannot be read.
    """
    try:
        seen = {one.image_file: one for one in read_seen(file_of(IMAGES_FILE).read_bytes())}
        known = Counter(entry["row_id"] for entry in (_entry(line, ROWS_FILE) for line in _lines(file_of(ROWS_FILE))))
        rejected = Counter(
            entry["row_id"] for entry in (_entry(line, REJECTED_FILE) for line in _lines(file_of(REJECTED_FILE)))
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"The earlier records cannot be read: {error!r}.") from None
    new = 0
    for row in rows:
        images = [seen[name] for name in row.names if name in seen]
        if [image.mark for image in images] != [marks.get(name) for name in row.names]:
            new += 1
            continue
        identity = row_id([image.image_sha256 for image in images], row.prefix, row.suffix)
        found = next((counts for counts in (known, rejected) if counts[identity]), None)
        if found is not None:
            found[identity] -= 1
        elif not any(image.fault for image in images):  # a row with an image that cannot be read has no identity
            new += 1
    if not new and not known.total():
        return ""
    return f"{new:,} of {len(rows):,} rows are new or changed, {known.total():,} are gone"


def read_seen(images: bytes) -> Iterator[Seen]:
    """The images in a range's list.

    Raises:
        DamagedError, ValueError, TypeError, KeyError: the list is damaged.
    """
    return (Seen.of_entry(_entry(line, IMAGES_FILE)) for line in images.splitlines())


def _take_parts(
    file_of: FileOf,
    dataset: Dataset,
    sources: Sequence[RowSource],
    parts: Sequence[LineRange],
    marks: Mapping[str, str],
    folder: Path,
) -> Iterator[tuple[LineRange | None, int, int]]:
    """Of every earlier range: the range that takes it over (None if none), the number of its rows, the size of its warnings."""
    lists = {kind: file_of(name) for kind, name in LIST_FILES.items()}
    starts = dict.fromkeys(lists, 0)
    first = {number: part.line for number, part in enumerate(parts)} if not sources[0].name else {}
    at = {(sources[part.source].name, part.line): part for part in parts}
    for number, (line, shard) in enumerate(zip(_lines(file_of(PARTS_FILE)), dataset.shards, strict=True)):
        facts = parse_model(line, PARTS_FILE, Facts, "What is known of a range", most=DOCUMENT_BYTES)
        taken, part = None, at.get((facts.source, facts.first_line or first.get(number, 0)))
        if part is not None and facts.source_sha256 == range_sha256(sources[part.source].file, part):
            found = {kind: _slice(lists[kind], starts[kind], facts.bytes[kind]) for kind in lists}
            if all(seen.mark == marks.get(seen.image_file) for seen in read_seen(found["images"])):
                if facts.shards[0].sha256 != shard.sha256:
                    raise DamagedError(f"{PARTS_FILE} and {DATASET_FILE} are of different shards.")
                source, target = file_of(shard.file), part_file(folder, part, "tfrecord")
                if file_crc32c(source) != facts.shard_crc32c:
                    raise DamagedError(f"The shard {shard.file} was changed.")
                target.unlink(missing_ok=True)
                link(source, target)
                if part.number != number:  # files before it have more ranges now, or fewer
                    found["rows"] = _renumbered(found["rows"], part.number)
                    shard = facts.shards[0].model_copy(update={"file": target.name})
                    changed = {"bytes": facts.bytes | {"rows": len(found["rows"])}, "shards": [shard]}
                    line = facts.model_copy(update=changed).model_dump_json().encode()
                for kind, piece in found.items():
                    part_file(folder, part, kind).write_bytes(piece)
                write_facts(folder, part, line)
                taken = part
        yield taken, facts.lines, facts.bytes["warnings"]
        starts = {kind: start + facts.bytes[kind] for kind, start in starts.items()}


def _pictures(file_of: FileOf, dataset: Dataset, names: set[str], marks: Mapping[str, str], warnings: int) -> KeptPictures:
    """Where the pictures are that have one of these names, or the bytes of one.

    Args:
        file_of, marks: see `take_over`.
        dataset: the earlier records.
        names: the names.
        warnings: size of those warnings that single ranges have.
    """
    today, wanted, known = {marks[name] for name in names if name in marks}, set(), {}
    for line in _lines(file_of(IMAGES_FILE)):
        seen = Seen.of_entry(_entry(line, IMAGES_FILE))
        if seen.fault:
            continue
        if seen.image_file in names and seen.mark == marks.get(seen.image_file):
            known[seen.image_file] = seen
        in_archive = seen.image_file in names and bool(split_archive(seen.image_file)[0])
        if seen.mark in today or in_archive:  # under another name, or in an archive, it is read, and compared by its sha256
            wanted.add(seen.image_sha256)
    if not wanted:
        return KeptPictures()
    remarks = (_entry(line, WARNINGS_FILE) for line in _slice(file_of(WARNINGS_FILE), 0, warnings).splitlines())
    odd = {_line_of(remark) for remark in remarks if remark["code"].startswith("image_")}  # is decoded, which finds it again
    places: dict[str, Place] = {}
    for entry in (_entry(line, ROWS_FILE) for line in _lines(file_of(ROWS_FILE))):
        if _line_of(entry) in odd:
            continue
        looks = each(entry["image_dhash"])
        for number, sha256 in enumerate(each(entry["image_sha256"])):
            if sha256 in wanted:
                places.setdefault(sha256, Place(entry["shard"], entry["position"], number, int(looks[number], 16)))
    numbers = {place.shard for place in places.values()}
    shards = {number: (file_of(dataset.shards[number].file), dataset.shards[number].rows) for number in sorted(numbers)}
    return KeptPictures(known, places, shards)


def _renumbered(rows: bytes, number: int) -> bytes:
    """A range's list of rows, as it is when the range has another number."""
    entries = (_entry(line, ROWS_FILE) | {"shard": number} for line in rows.splitlines())
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def _line_of(entry: Mapping) -> tuple[str, int]:
    """The file and the line of an entry of a list."""
    return entry.get("source", ""), entry["line"]


def _entry(line: bytes, name: str) -> dict:
    """An entry of a list. Whoever wrote into the root may have written it."""
    return parse_json(line, name, "A line")


def _lines(path: Path) -> Iterator[bytes]:
    with open_regular(path) as file:
        while line := file.readline(DOCUMENT_BYTES + 2):
            yield line.removesuffix(b"\n")


def _slice(path: Path, start: int, size: int) -> bytes:
    with open_regular(path) as file:
        file.seek(start)
        data = file.read(size)
    if len(data) != size:
        raise DamagedError(f"{path.name} ends too early.", where=path)
    return data
