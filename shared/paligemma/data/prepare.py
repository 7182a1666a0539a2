"""Turns lines and image files into shards. Each range of lines becomes a shard and its facts, in any process.

A range's output depends only on its lines and the job, so one process, many processes and many machines give the same bytes.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field

from paligemma.artifacts.record import each, one_or_all
from paligemma.choices import Compression, OverLong
from paligemma.data.image_source import fault_mark
from paligemma.data.images import ImageError, fit_image
from paligemma.data.jsonl_files import LineRange, unreadable
from paligemma.data.kept_pictures import KeptPictures, Seen
from paligemma.data.pictures.levels import GreyRange
from paligemma.data.records import Example, Shard
from paligemma.data.row_sources import RowSource, open_folders, read_part
from paligemma.data.row_warnings import difference_hash, image_warnings, text_warnings
from paligemma.data.rows import Row, RowError, RowImage, row_id
from paligemma.data.run_lengths import Runs
from paligemma.data.seg_masks import parse_masks_text, union_of_masks
from paligemma.data.shards import ShardWriter
from paligemma.data.stored_pictures import pack_picture
from paligemma.data.tokenizer import Tokenizer
from paligemma.data.web_images import WebImage
from paligemma.errors import DamagedError
from paligemma.foreign_json import read_model
from paligemma.storage.gcs import crc32c_of

Report = Callable[[int, int], None]
"""Called with the number of the next line, and the number of rows of the range rejected so far."""

SAMPLE_SIZE = 48
SAMPLED_SIDE = 224
SHOWN_OF_A_CODE = 12
MOST_SUFFIXES = 10_000
LONGEST_SUFFIX = 200
LISTS = ("rows", "rejected", "warnings", "images")
_BLOCK = 1 << 20
_WINDOW = 32
_HELD = 16 << 20  # bytes of pictures in the lines of a window
_PICTURES_KEPT = 16


@dataclass(frozen=True)
class Job:
    """Everything that decides what becomes of a line.

    Attributes:
        sources: the JSONL files, uncompressed: one, or those of a mixture.
        tokenizer: the SentencePiece model.
        grey_range: samples of black and white in grey pictures; None: as stated in each file.
        web: what the web addresses in the rows gave, by the images' names.
        images_per_example: number of images in every row.
    """

    sources: Sequence[RowSource]
    tokenizer: Path
    image_size: int
    max_text_tokens: int
    over_long: OverLong
    compression: Compression
    grey_range: GreyRange | None = None
    web: Mapping[str, WebImage] = field(default_factory=dict)
    images_per_example: int = 1


def is_empty(value: object) -> bool:
    """Whether a field has nothing to say: it is left out then, so that lists of one file are as they always were."""
    return not value


class Remark(BaseModel):
    """A line of `rejected.jsonl` or `warnings.jsonl`. The row's identity is null if its image could not be read.

    Attributes:
        source: name of the file that the line is in; left out if there is one file.
    """

    source: str = Field(default="", exclude_if=is_empty)
    line: int
    row_id: str | None
    code: str
    message: str
    image: str | list[str] | None

    @property
    def images(self) -> list[str]:
        """The names of the row's images; none if it has no row."""
        return [] if self.image is None else each(self.image)


class Sampled(BaseModel):
    """A row for the report; `image` as in `Remark`.

    `masks` is what its true masks cover of a square of `SAMPLED_SIDE` pixels, as packed run lengths; empty without any.
    """

    source: str = Field(default="", exclude_if=is_empty)
    row_id: str
    line: int
    image: str | list[str]
    prefix: str
    suffix: str
    tokens: int
    masks: str = ""

    @property
    def images(self) -> list[str]:
        """The names of the row's images."""
        return each(self.image)


class Facts(BaseModel):
    """Facts about the rows of one or many ranges; written when a range's shard is finished.

    Attributes:
        lines: number of lines that are not blank.
        rows, rejected, truncated: number of rows that were kept, rejected (by reason), or had their suffix cut.
        warnings: number of rows with a warning, by code.
        prefix_tokens, suffix_tokens, text_tokens: histograms: number of rows by number of tokens.
        suffixes: number of rows by suffix, for up to 10,000 different suffixes of at most 200 characters.
        sample: the rows with the smallest identities: as good as random, and the same for any split into ranges.
        rejects, warned: the first remarks of each code.
        shards: the shards.
        source: name of one range's file; left out if there is one file.
        first_line: number of one range's first line; left out if there is one file, where it follows from the range's number.
        source_sha256: hash of one range's bytes in the JSONL file.
        shard_crc32c: checksum of one range's shard.
        bytes: sizes of one range's lists.
    """

    lines: int = 0
    rows: int = 0
    truncated: int = 0
    rejected: Counter[str] = Counter()
    warnings: Counter[str] = Counter()
    prefix_tokens: Counter[int] = Counter()
    suffix_tokens: Counter[int] = Counter()
    text_tokens: Counter[int] = Counter()
    suffixes: Counter[str] = Counter()
    sample: list[Sampled] = []
    rejects: list[Remark] = []
    warned: list[Remark] = []
    shards: list[Shard] = []
    source: str = Field(default="", exclude_if=is_empty)
    first_line: int = Field(default=0, exclude_if=is_empty)
    source_sha256: str = ""
    shard_crc32c: str = ""
    bytes: dict[str, int] = {}

    @property
    def reject_count(self) -> int:
        """Number of rejected rows, for all reasons."""
        return self.rejected.total()

    def add(self, other: Facts) -> None:
        """Adds the facts of the next range."""
        self.lines += other.lines
        self.rows += other.rows
        self.truncated += other.truncated
        for name in ("rejected", "warnings", "prefix_tokens", "suffix_tokens", "text_tokens"):
            getattr(self, name).update(getattr(other, name))
        for suffix, count in other.suffixes.items():
            self.count_suffix(suffix, count)
        self.sample = heapq.nsmallest(SAMPLE_SIZE, self.sample + other.sample, key=_place)
        for mine, others in ((self.rejects, other.rejects), (self.warned, other.warned)):
            for remark in others:
                self.show(mine, remark)
        self.shards += other.shards

    def count_suffix(self, suffix: str, count: int = 1) -> None:
        """Counts rows of a suffix, unless the suffix is too long, or there are too many suffixes."""
        if suffix in self.suffixes or (len(self.suffixes) < MOST_SUFFIXES and len(suffix) <= LONGEST_SUFFIX):
            self.suffixes[suffix] += count

    def show(self, shown: list[Remark], remark: Remark) -> None:
        """Keeps a remark for the report if it is among the first of its code."""
        if sum(other.code == remark.code for other in shown) < SHOWN_OF_A_CODE:
            shown.append(remark)


def _place(row: Sampled) -> tuple[str, str, int]:
    return row.row_id, row.source, row.line


def part_file(folder: Path, part: LineRange, kind: str) -> Path:
    """Temporary file with a range's `tfrecord`, `facts`, or one of its `LISTS`."""
    return folder / f"{part.number:05d}.{kind}"


def read_facts(folder: Path, part: LineRange) -> Facts | None:
    """The facts of a range; None if it is unfinished.

    Syncing every file to the disk would cost a tenth of the time. Instead, sizes show whether a power failure lost any. (The
    complete records are synced.)
    """
    try:
        facts = read_model(part_file(folder, part, "facts"), Facts, "What is known of a range")
        expected = {"tfrecord": facts.shards[0].bytes, **facts.bytes}
        whole = all(part_file(folder, part, kind).stat().st_size == size for kind, size in expected.items())
    except (OSError, DamagedError):
        return None
    return facts if whole else None


def write_facts(folder: Path, part: LineRange, facts: bytes) -> None:
    """Writes the facts of a range, which finishes it."""
    partial = part_file(folder, part, "facts.partial")
    partial.write_bytes(facts)
    partial.replace(part_file(folder, part, "facts"))


def range_sha256(data: Path, part: LineRange) -> str:
    """Hash of a range's bytes.

    Raises:
        InputError: the file cannot be read.
    """
    digest, left = hashlib.sha256(), part.stop - part.start
    try:
        with data.open("rb") as file:
            file.seek(part.start)
            while left > 0 and (block := file.read(min(left, _BLOCK))):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        raise unreadable(data, error) from None
    return digest.hexdigest()


class Preparer:
    """Prepares ranges of lines, one after the other."""

    def __init__(self, job: Job, kept: KeptPictures | None = None) -> None:
        """Opens the tokenizer and the image source.

        Args:
            job: what to do.
            kept: pictures that need not be decoded; None: all are.
        """
        self._job, self._kept = job, kept or KeptPictures()
        self._tokenizer = Tokenizer(job.tokenizer)
        self._images = open_folders(job.sources, job.web)
        self._pictures: dict[str, _Picture | RowError] = {}
        self._most_pictures = max(_PICTURES_KEPT, job.images_per_example)
        self._seen: dict[Seen, None] = {}  # in order

    def prepare(self, part: LineRange, folder: Path, report: Report) -> Facts:
        """Writes a range's shard, its lists of rows, rejects, warnings and images, and last its facts."""
        source = self._job.sources[part.source]
        facts = Facts(
            source=source.name, first_line=part.line if source.name else 0, source_sha256=range_sha256(source.file, part)
        )
        self._seen.clear()
        with (
            part_file(folder, part, "rows").open("w", encoding="utf-8") as rows,
            part_file(folder, part, "rejected").open("w", encoding="utf-8") as rejected,
            part_file(folder, part, "warnings").open("w", encoding="utf-8") as warnings,
            ShardWriter(part_file(folder, part, "tfrecord"), self._job.compression) as shard,
        ):
            for example, pictures, remarks in self.judge(self._rows(part), facts, report):
                if example is None:
                    (remark,) = remarks
                    facts.rejected[remark.code] += 1
                    facts.show(facts.rejects, remark)
                    rejected.write(remark.model_dump_json() + "\n")
                    continue
                looks = [picture.dhash for picture in pictures]
                size, checksum = shard.write(example)
                entry = _index_entry(example, looks, part.number, facts.rows) | {"bytes": size, "crc32c": checksum}
                rows.write(json.dumps(entry | ({"source": source.name} if source.name else {})) + "\n")
                _count(facts, example)
                for remark in remarks:
                    facts.warnings[remark.code] += 1
                    facts.show(facts.warned, remark)
                    warnings.write(remark.model_dump_json() + "\n")
        with part_file(folder, part, "images").open("w", encoding="utf-8") as images:
            images.writelines(json.dumps(seen.entry()) + "\n" for seen in self._seen)
        facts.shards.append(shard.shard)
        facts.shard_crc32c = shard.crc32c
        facts.bytes = {kind: part_file(folder, part, kind).stat().st_size for kind in LISTS}
        write_facts(folder, part, facts.model_dump_json().encode())
        return facts

    def judge(
        self, lines: Iterator[tuple[int, Row | RowError]], facts: Facts, report: Report
    ) -> Iterator[tuple[Example | None, list[_Picture], list[Remark]]]:
        """Yields every row as an example with its warnings, or as None with the reason. Counts lines and cut suffixes."""
        window = _next_window(lines)
        while window:
            following = _next_window(lines)
            images = [image for _, row in window + following if isinstance(row, Row) for image in row.images]
            names = [image.name for image in images if image.inline is None]
            self._images.expect([name for name in names if self._kept.without_reading(name) is None])
            ids = self._tokenize([row for _, row in window if isinstance(row, Row)])
            for number, row in window:
                report(number, facts.reject_count)
                facts.lines += 1
                try:
                    if isinstance(row, RowError):
                        raise row
                    yield self._example(row, *ids[number], facts)
                except RowError as error:
                    image = one_or_all(row.names) if isinstance(row, Row) else None
                    yield None, [], [Remark(source=facts.source, line=number, row_id=self._identity(row), code=error.code,
                                            message=error.message, image=image)]  # fmt: skip
                except Exception as error:  # any error propagates unchanged, with a note of its line
                    error.add_note(f"This happened at line {number} of {facts.source or self._job.sources[0].file}.")
                    raise
            window = following
        self._pictures.clear()

    def _rows(self, part: LineRange) -> Iterator[tuple[int, Row | RowError]]:
        return read_part(self._job.sources, part, self._job.images_per_example)

    def _tokenize(self, rows: list[Row]) -> dict[int, tuple[list[int], list[int], bool]]:
        """By line: token ids of prefix and suffix, and whether they decode to the texts."""
        texts = [text for row in rows for text in (row.prefix, row.suffix)]
        ids = self._tokenizer.encode_batch(texts)
        spelt = self._tokenizer.spells(texts, ids)
        return {
            row.line: (ids[2 * place], ids[2 * place + 1], spelt[2 * place] and spelt[2 * place + 1])
            for place, row in enumerate(rows)
        }

    def _example(
        self, row: Row, prefix: list[int], suffix: list[int], spelt: bool, facts: Facts
    ) -> tuple[Example, list[_Picture], list[Remark]]:
        pictures = self._pictures_of(row)
        for image, picture in zip(row.images, pictures, strict=True):
            if image.sha256 and picture.sha256 != image.sha256:
                raise RowError("image_hash_wrong", f"{image.name!r} has sha256 {picture.sha256}, not {image.sha256}")
        if not spelt:
            raise RowError("text_unspellable", self._misspelt(row, prefix, suffix))
        prefix_ids, suffix_ids, cut = self._fit(
            self._tokenizer.with_prefix_marks(prefix), self._tokenizer.with_suffix_marks(suffix)
        )
        facts.truncated += cut
        hashes = tuple(picture.sha256 for picture in pictures)
        example = Example(
            images=tuple(picture.stored for picture in pictures),
            prefix_ids=prefix_ids,
            suffix_ids=suffix_ids,
            prefix=row.prefix,
            suffix=row.suffix,
            image_files=tuple(row.names),
            image_sha256s=hashes,
            row_id=row_id(hashes, row.prefix, row.suffix),
            line=row.line,
            answers=row.answers,
            masks=row.masks,
        )
        found: dict[str, str] = {}
        for name, picture in zip(row.names, pictures, strict=True):
            for code, message in picture.warnings:
                found.setdefault(code, message if len(pictures) == 1 else f"{name}: {message}")
        for where, text in (("suffix", row.suffix), ("prefix", row.prefix)):
            found.update((code, f"{where}: {message}") for code, message in text_warnings(text))
        if cut:
            found["text_truncated"] = (
                f"the suffix has {len(suffix) + 1} tokens, {len(suffix_ids)} were kept: prefix and suffix have "
                f"{len(prefix_ids) + len(suffix) + 1}, --max-text-tokens is {self._job.max_text_tokens}"
            )
        of_row = {"source": facts.source, "line": row.line, "row_id": example.row_id, "image": one_or_all(row.names)}
        remarks = [Remark(**of_row, code=code, message=message) for code, message in found.items()]
        return example, pictures, remarks

    def _misspelt(self, row: Row, prefix: list[int], suffix: list[int]) -> str:
        """Describes where a text differs from its decoded tokens."""
        for where, text, ids in (("prefix", row.prefix, prefix), ("suffix", row.suffix, suffix)):
            back = self._tokenizer.decode(ids)
            if back != text:
                pairs = enumerate(zip(text, back, strict=False))
                same = next((place for place, (one, other) in pairs if one != other), min(len(text), len(back)))
                there, here = (repr(one[same : same + 1]) if one[same:] else "nothing" for one in (text, back))
                return f"character {same + 1} of the {where} is {there}, its tokens give {here}"
        return "decoding the tokens of prefix and suffix gives other texts"

    def _fit(self, prefix_ids: list[int], suffix_ids: list[int]) -> tuple[list[int], list[int], bool]:
        total = len(prefix_ids) + len(suffix_ids)
        excess = total - self._job.max_text_tokens
        if excess <= 0:
            return prefix_ids, suffix_ids, False
        # Cutting must leave the prefix, one suffix token and eos: without eos the model never learns to stop.
        if self._job.over_long == "reject" or excess > len(suffix_ids) - 2:
            parts = f"{len(prefix_ids)} of the prefix and {len(suffix_ids)} of the suffix"
            room = excess <= len(suffix_ids) - 2
            cut = (
                ", or let prepare_data cut the suffix (--over-long truncate)"
                if room
                else "; cutting the suffix leaves none of it"
            )
            raise RowError(
                "text_too_long",
                f"{parts}, {self._job.max_text_tokens} tokens at most: pass --max-text-tokens {total} or more{cut}",
            )
        return prefix_ids, [*suffix_ids[: -1 - excess], suffix_ids[-1]], True

    def _pictures_of(self, row: Row) -> list[_Picture]:
        """The images of a row. All are looked at before the first fault is raised, so that `images.jsonl` lists each."""
        found: list[_Picture] = []
        faults: list[tuple[str, str]] = []  # not the errors, whose tracebacks hold this list, and the row with its image files
        for image in row.images:
            try:
                found.append(self._picture(image))
            except RowError as error:
                faults.append((error.code, error.message))
        if faults:
            raise RowError(*faults[0])
        return found

    def _picture(self, image: RowImage) -> _Picture:
        """An image, decoded and resized. Keeps the last few, because data sets ask several questions about each image."""
        name = image.name
        found = self._pictures.get(name)
        if found is None:
            if len(self._pictures) == self._most_pictures:
                del self._pictures[next(iter(self._pictures))]
            try:
                found = self._read_picture(image)
            except RowError as error:
                found = RowError(error.code, error.message)  # the other one holds the image file
            self._pictures[name] = found
        if isinstance(found, RowError):
            raise RowError(found.code, found.message)
        return found

    def _read_picture(self, image: RowImage) -> _Picture:
        name = image.name
        known = self._kept.without_reading(name)
        if known is not None and (picture := self._kept_picture(known.image_sha256)) is not None:
            self._seen[known] = None
            return picture
        try:
            data = self._images.read(name) if image.inline is None else image.inline
        except RowError as error:
            self._seen[Seen(name, fault=fault_mark(error))] = None
            raise
        sha256 = hashlib.sha256(data).hexdigest()
        self._seen[Seen(name, sha256, len(data), crc32c_of(data))] = None
        if (picture := self._kept_picture(sha256)) is not None:
            return picture
        try:
            odd: list[tuple[str, str]] = []
            fitted, width, height = fit_image(
                data, self._job.image_size, name, self._job.grey_range, lambda *found: odd.append(found)
            )
        except ImageError as error:
            raise RowError(error.code, f"{name!r}: {error.what}") from None
        warnings, pixels = [*image_warnings(fitted, width, height), *odd], np.asarray(fitted)
        return _Picture(pack_picture(pixels, self._job.compression), sha256, difference_hash(pixels), warnings)

    def _kept_picture(self, sha256: str) -> _Picture | None:
        found = self._kept.find(sha256)
        return None if found is None else _Picture(found[0], sha256, found[1], [])

    def _identity(self, row: Row | RowError) -> str | None:
        """A rejected row's identity; None if it has none."""
        if isinstance(row, RowError):
            return None
        pictures = [self._pictures.get(name) for name in row.names]
        hashes = [picture.sha256 for picture in pictures if isinstance(picture, _Picture)]
        return row_id(hashes, row.prefix, row.suffix) if len(hashes) == len(pictures) else None


@dataclass(frozen=True)
class _Picture:
    stored: bytes
    sha256: str
    dhash: int
    warnings: list[tuple[str, str]]


def _next_window(lines: Iterator[tuple[int, Row | RowError]]) -> list[tuple[int, Row | RowError]]:
    """The next lines, which are read and tokenized together: fewer if they hold large pictures."""
    window, held = [], 0
    while len(window) < _WINDOW and held < _HELD and (line := next(lines, None)) is not None:
        window.append(line)
        held += sum(len(image.inline or b"") for image in line[1].images) if isinstance(line[1], Row) else 0
    return window


def _count(facts: Facts, example: Example) -> None:
    prefix, suffix = len(example.prefix_ids), len(example.suffix_ids)
    facts.rows += 1
    facts.prefix_tokens[prefix] += 1
    facts.suffix_tokens[suffix] += 1
    facts.text_tokens[prefix + suffix] += 1
    facts.count_suffix(example.suffix)
    if len(facts.sample) < SAMPLE_SIZE or example.row_id < facts.sample[-1].row_id:
        row = Sampled(source=facts.source, row_id=example.row_id, line=example.line, image=one_or_all(example.image_files),
                      prefix=example.prefix, suffix=example.suffix, tokens=prefix + suffix,
                      masks=_covered(example.masks))  # fmt: skip
        insort(facts.sample, row, key=_place)
        del facts.sample[SAMPLE_SIZE:]


def _covered(masks: str) -> str:
    return Runs.of_pixels(union_of_masks(parse_masks_text(masks), SAMPLED_SIDE)).text if masks else ""


def _index_entry(example: Example, looks: Sequence[int], shard: int, position: int) -> dict:
    return {
        "row_id": example.row_id,
        "image_sha256": one_or_all(example.image_sha256s),
        "image_dhash": one_or_all([f"{look:032x}" for look in looks]),
        "image_file": one_or_all(example.image_files),
        "line": example.line,
        "prefix_tokens": len(example.prefix_ids),
        "suffix_tokens": len(example.suffix_ids),
        "shard": shard,
        "position": position,
    }
