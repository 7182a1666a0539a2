"""Finds rows and images that a data set repeats, or shares with another, from its list of rows alone."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt64

from paligemma.artifacts.record import each
from paligemma.data.prepare import Remark
from paligemma.errors import DamagedError
from paligemma.foreign_json import read_json_lines

NEAR_BITS = 3
"""Bits (of 64) that may differ in each half of similar pictures' hashes (`row_warnings.difference_hash`)."""

_BAND = 64
"""Most sorted neighbours that a hash is compared with, among those that share 16 bits with it."""


@dataclass(frozen=True)
class Listing:
    """The contents of rows.jsonl as the first 8 bytes of hashes: 50 bytes an image, however long the texts.

    There is one entry for each image of each row. `of_row` is the number of its row, from 0. `files` is the number of each
    row's file in `file_names`; None if all rows are of one file.
    """

    lines: Int[np.ndarray, " rows"]
    rows: UInt64[np.ndarray, " rows"]
    images: UInt64[np.ndarray, " images"]
    looks: UInt64[np.ndarray, "images 2"]
    names: UInt64[np.ndarray, " images"]
    of_row: Int[np.ndarray, " images"]
    files: Int[np.ndarray, " rows"] | None = None
    file_names: Sequence[str] = ()

    @property
    def image_count(self) -> int:
        """Number of different images."""
        return len(np.unique(self.images))

    def place(self, row: int) -> str:
        """Where a row is in its source, in words."""
        return f"line {self.lines[row]}" + (f" of {self.file_names[self.files[row]]}" if self.files is not None else "")

    def place_of(self, image: int) -> str:
        """Where an entry's row is in its source, in words."""
        return self.place(self.of_row[image])


def read_listing(rows: Path) -> Listing:
    """Reads a `rows.jsonl`.

    Raises:
        DamagedError: a needed field is missing, e.g. because an older version wrote the file.
    """
    kind = np.dtype([("line", np.int64), ("row", np.uint64), ("image", np.uint64), ("look", np.uint64, 2), ("name", np.uint64),
                     ("first", np.bool_), ("file", np.uint16)])  # fmt: skip
    files: dict[str, int] = {}
    try:
        table = np.fromiter(_entries(rows, files), kind)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DamagedError(f"The list of rows cannot be read: {error!r}.", where=rows, fix="run prepare_data again") from None
    first = table[table["first"]]  # of the images of each row
    of_files = (first["file"], list(files)) if files.keys() - {""} else (None, ())
    of_row = np.cumsum(table["first"], dtype=np.int64) - 1
    return Listing(first["line"], first["row"], table["image"], table["look"], table["name"], of_row, *of_files)


def duplicates(listing: Listing) -> Iterator[tuple[int, str, str]]:
    """Row number, code and message of every row that repeats an earlier one; only the strongest kind of repetition."""
    first_row, first_image = _first_places(listing.rows), _first_places(listing.images)
    repeated = first_row < np.arange(len(first_row))
    other_name = ~repeated[listing.of_row] & (listing.names != listing.names[first_image])
    for row in np.flatnonzero(repeated):
        yield int(row), "row_duplicate", f"as {listing.place(first_row[row])}"
    for image in np.flatnonzero(other_name & _first_of(listing.names)):
        there = listing.place_of(first_image[image])
        yield int(listing.of_row[image]), "image_duplicate", f"the same bytes as the image of {there}"
    images = np.flatnonzero(_first_of(listing.images))
    for later, earlier in near_pairs(listing.looks[images]):
        there = listing.place_of(images[earlier])
        yield int(listing.of_row[images[later]]), "image_near_duplicate", f"looks like the image of {there}"


def leaks(listing: Listing, other: Listing) -> Iterator[tuple[int, str, str]]:
    """Row number, code and message of every row that shares its contents or image with another data set; only the strongest."""
    row_at, image_at = _find(listing.rows, other.rows), _find(listing.images, other.images)
    for row in np.flatnonzero(row_at >= 0):
        yield int(row), "row_leaked", f"as {other.place(row_at[row])} there"
    for image in np.flatnonzero((image_at >= 0) & (row_at < 0)[listing.of_row]):
        yield int(listing.of_row[image]), "image_leaked", f"as {other.place_of(image_at[image])} there"
    images, others = np.flatnonzero(_first_of(listing.images) & (image_at < 0)), np.flatnonzero(_first_of(other.images))
    for later, earlier in near_pairs(np.concatenate([other.looks[others], listing.looks[images]])):
        if earlier < len(others) <= later:
            there, image = other.place_of(others[earlier]), images[later - len(others)]
            yield int(listing.of_row[image]), "image_near_leaked", f"looks like the image of {there} there"


def near_pairs(looks: UInt64[np.ndarray, "n 2"]) -> list[tuple[int, int]]:
    """Pairs of a picture and the first earlier picture that looks like it. Pictures without structure (hash 0) match none.

    Halves that differ in 3 bits share at least one of their four 16-bit quarters. The hashes are sorted four times, with each
    quarter of the first half in front, and compared with their next neighbours. If more than 64 hashes share a quarter, some
    pairs are missed.
    """
    values, first, which = np.unique(looks, axis=0, return_index=True, return_inverse=True)
    structured = np.any(values, axis=1)
    start = first[which]
    repeated = np.flatnonzero(structured[which] & (start != np.arange(len(looks))))
    earliest = dict(zip(repeated.tolist(), start[repeated].tolist(), strict=True))
    first, values = first[structured], values[structured]
    for turn in range(0, 64, 16):
        turned = (values[:, 0] << np.uint64(turn)) | (values[:, 0] >> np.uint64((64 - turn) % 64))
        order = np.argsort(turned, kind="stable")
        quarter = turned[order] >> np.uint64(48)
        for distance in range(1, _BAND + 1):
            same = quarter[:-distance] == quarter[distance:]
            if not same.any():
                break
            one, two = order[:-distance][same], order[distance:][same]
            near = (np.bitwise_count(values[one] ^ values[two]) <= NEAR_BITS).all(axis=1)
            for a, b in zip(first[one[near]].tolist(), first[two[near]].tolist(), strict=True):
                earlier, later = min(a, b), max(a, b)
                earliest[later] = min(earlier, earliest.get(later, earlier))
    return sorted(earliest.items())


def remarks(found: Iterable[tuple[int, str, str]], rows: Path) -> Iterator[Remark]:
    """The findings as warnings in row order, with each row's facts from `rows.jsonl`.

    If a code was found of several images of a row, the first counts.
    """
    of_row: dict[tuple[int, str], str] = {}
    for row, code, message in found:
        of_row.setdefault((row, code), message)
    pending = sorted(((row, code, message) for (row, code), message in of_row.items()), reverse=True)
    with rows.open("rb") as file:
        for number, line in enumerate(file):
            while pending and pending[-1][0] == number:
                _, code, message = pending.pop()
                entry = json.loads(line)
                found_at = {"source": entry.get("source", ""), "line": entry["line"]}
                yield Remark(**found_at, row_id=entry["row_id"], code=code, message=message, image=entry["image_file"])


def _entries(rows: Path, files: dict[str, int]) -> Iterator[tuple[int, int, int, tuple[int, int], int, bool, int]]:
    """The fields of each row's images. Adds the names of the rows' files to `files`, with their numbers."""
    for entry in read_json_lines(rows, "The list of rows", fix="run prepare_data again"):
        line, row = entry["line"], int(entry["row_id"][:16], 16)
        file = files.setdefault(entry.get("source", ""), len(files))
        listed = zip(*(each(entry[key]) for key in ("image_sha256", "image_dhash", "image_file")), strict=True)
        for number, (sha256, looks, name) in enumerate(listed):
            image, look = int(sha256[:16], 16), (int(looks[:16], 16), int(looks[16:], 16))
            yield line, row, image, look, zlib.crc32(name.encode()), number == 0, file


def _find(values: UInt64[np.ndarray, " n"], among: UInt64[np.ndarray, " m"]) -> Int[np.ndarray, " n"]:
    """For every value, its first position in `among`; -1 if absent."""
    known, first = np.unique(among, return_index=True)
    if not len(known):
        return np.full(len(values), -1)
    place = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.where(known[place] == values, first[place], -1)


def _first_places(values: UInt64[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """For every value, its first position."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    return first[which]


def _first_of(values: UInt64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether each value is its first occurrence."""
    return _first_places(values) == np.arange(len(values))
