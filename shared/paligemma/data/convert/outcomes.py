"""The outcome of each entry of a data set: a row, or a reason and a line in the list of skipped entries.

An entry is an annotation, a table's row or a file. Every entry that is read ends as used or skipped.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from paligemma.data.convert.reasons import NOTES, ON_PURPOSE, REASONS
from paligemma.data.rows import MAX_INLINE_BYTES, Repeated, RowError, parse_row
from paligemma.errors import InputError

Converted = dict[str, Any]
"""A row: image, prefix, suffix, and optionally answers, masks and round_trip_iou; see `rows.Row`."""

MAX_REJECT_FRACTION = 0.1
"""Default for the largest allowed share of unusable entries; the same as prepare_data's."""

_SHOWN = 20
_READ = re.compile(r"gs://|https://", re.IGNORECASE)
_DRIVE_OR_SCHEME = re.compile(r"[A-Za-z]:[/\\]|[A-Za-z][A-Za-z0-9+.-]*://")


class EntryError(Exception):
    """Why an entry cannot be used: a code of `REASONS`, and details."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def object_of(value: object) -> dict[str, Any]:
    """An annotation as a JSON object.

    Raises:
        EntryError: it is not an object, or has a repeated key.
    """
    if isinstance(value, Repeated):
        raise EntryError("key_repeated", value.what)
    if not isinstance(value, dict):
        raise EntryError("not_an_object", f"the annotation is {shown(value)}")
    return value


@dataclass(frozen=True)
class Entry:
    """An entry's position, e.g. `annotations[3]` or `line 7`, and its id if it has one."""

    place: str
    id: object = None


@dataclass(frozen=True)
class Outcome:
    """Entries, and either the row that they make or the reason why they make none."""

    entries: tuple[Entry, ...]
    result: Converted | EntryError


@dataclass
class Tally:
    """Counts of a conversion.

    Attributes:
        unit: plural name of the entries.
        used, skipped: number of entries in rows, and number of the others by reason.
        rows: number of rows written.
        notes: for each code of `NOTES`, a count and an example.
        facts: other counts, described in words, e.g. `images without any annotation`.
        round_trips: for each row with masks, how much of them its codes give back (IoU).
        hint: what to do next, if unusual.
    """

    unit: str
    used: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    facts: dict[str, int] = field(default_factory=dict)
    round_trips: list[float] = field(default_factory=list)
    hint: str = ""

    @property
    def read(self) -> int:
        """Number of entries read: used or skipped."""
        return self.used + self.skipped.total()

    def note(self, code: str, example: str, count: int = 1) -> None:
        """Counts a note about entries."""
        self.notes[code] += count
        self.examples.setdefault(code, example)

    def reasons(self) -> str:
        """The reasons with their counts, most frequent first."""
        ordered = sorted(self.skipped.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count} {code}" for code, count in ordered)

    def lines(self, output: Path) -> list[str]:
        """The summary, for people."""
        said = [
            f"{self.rows} rows in {output}",
            f"{self.read} {self.unit} read: {self.used} used, {self.skipped.total()} skipped",
        ]
        if self.skipped:
            said[-1] += f" ({self.reasons()}); each is listed in {skipped_file(output)}"
        said += [*self.particulars(), self.hint]
        return [line for line in said if line]

    def particulars(self) -> list[str]:
        """Explanations of the reasons, other counts, and notes about the used entries."""
        said = [f"  {code}: {REASONS[code]}" for code in sorted(self.skipped)]
        said += [f"{count} {what}" for what, count in self.facts.items()]
        for code, text in NOTES.items():
            if self.notes[code]:
                said.append(f"{self.notes[code]} {code}: {text} ({self.examples[code]})")
        return said + _spread(self.round_trips)


def _spread(ious: Sequence[float]) -> list[str]:
    """Mean, quantiles and a histogram of IoUs, for people; nothing without any."""
    if not ious:
        return []
    values = np.asarray(ious)
    quantiles = ", ".join(f"{share:.0%} below {np.quantile(values, share):.3f}" for share in (0.05, 0.25, 0.5, 0.75, 0.95))
    counts, edges = np.histogram(values, bins=10, range=(0, 1))
    bars = [f"  {low:.1f} to {low + 0.1:.1f}: {count} rows" for low, count in zip(edges, counts, strict=False) if count]
    return [f"IoU of a row's masks with those that its codes give back: mean {values.mean():.3f}; {quantiles}", *bars]


def skipped_file(output: Path) -> Path:
    """The file that lists the skipped entries."""
    return output.with_name(f"{output.name}.skipped.jsonl")


def write_rows(
    output: Path, outcomes: Iterable[Outcome], tally: Tally, source: Path, max_reject_fraction: float = MAX_REJECT_FRACTION
) -> Tally:
    """Writes rows as JSONL, completely or not at all, and beside them the list of skipped entries, if there are any.

    Skips rows whose form prepare_data would reject (an empty suffix, half a surrogate pair, more than 1 MiB).

    Args:
        output: the JSONL file.
        outcomes: the outcome of every entry, in order.
        tally: the conversion's counts; used and skipped entries are added.
        source: the data set, for the message.
        max_reject_fraction: largest allowed share of unusable entries.

    Raises:
        InputError: no row can be made, or too many entries are unusable. The list of them is written, the output unchanged.
    """
    listed = skipped_file(output)
    partials = [path.with_name(f".{path.name}.partial-{os.getpid()}") for path in (output, listed)]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        first = _write_partials(partials, outcomes, tally)
        if tally.skipped:
            partials[1].replace(listed)
        else:
            listed.unlink(missing_ok=True)
        _check_limit(tally, max_reject_fraction, source, listed, first)
        partials[0].replace(output)
    except OSError as error:
        raise InputError(f"The output cannot be written: {error.strerror or error}.", where=output) from None
    finally:
        for partial in partials:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    return tally


def _write_partials(partials: Sequence[Path], outcomes: Iterable[Outcome], tally: Tally) -> str:
    """Writes rows and list to the disk. Returns what is wrong with the first skipped entries, for people."""
    first: list[str] = []
    with ExitStack() as stack:
        rows_out, skipped_out = (stack.enter_context(partial.open("wb")) for partial in partials)
        for outcome in outcomes:
            try:
                if isinstance(outcome.result, EntryError):
                    raise outcome.result
                rows_out.write(row_line(outcome.result))
                tally.rows += 1
                tally.used += len(outcome.entries)
            except EntryError as problem:
                for entry in outcome.entries:
                    tally.skipped[problem.code] += 1
                    _list(skipped_out, entry, problem)
                    if len(first) < _SHOWN and problem.code not in ON_PURPOSE:
                        first.append(f"\n    {entry.place}: {problem.code}, {problem.message}")
        for file in (rows_out, skipped_out):
            file.flush()
            os.fsync(file.fileno())
    return "".join(first)


def refuse_sources(output: Path, sources: Sequence[Path]) -> None:
    """Raises InputError if the output, or the list beside it, would overwrite an input file."""
    for path in (output, skipped_file(output)):
        if any(path.exists() and source.exists() and path.samefile(source) for source in sources):
            raise InputError(f"{path} is read and would be written.", fix="name another --output")


def _check_limit(tally: Tally, most: float, source: Path, listed: Path, first: str) -> None:
    left_out = sum(tally.skipped[code] for code in ON_PURPOSE)
    unusable = tally.skipped.total() - left_out
    if tally.rows and unusable <= most * (tally.read - left_out):
        return
    if not tally.read:
        what = f"There is nothing to convert: no {tally.unit} in it."
        raise InputError(what, where=source, expected="at least one row")
    what = f"There is nothing to convert in {tally.read} {tally.unit}"
    if unusable:
        what = f"{unusable} of {tally.read} {tally.unit} cannot be used"
    particulars = "".join(f"\n    {line.strip()}" for line in tally.particulars())
    raise InputError(
        f"{what} ({tally.reasons()}).{first}{particulars}",
        where=source,
        expected=f"at least one usable row, and at most {most:.0%} that are not (--max-reject-fraction)",
        fix=f"see {listed} for every one of them",
    )


def row_line(row: Converted) -> bytes:
    """The row as a line.

    Raises:
        EntryError: prepare_data would reject the row.
    """
    line = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    if len(line) > MAX_INLINE_BYTES:
        raise EntryError("line_too_long", f"the row has {len(line)} bytes, {MAX_INLINE_BYTES} at most")
    try:
        parsed = parse_row(line, 2, images=None)
    except RowError as error:
        raise EntryError(error.code, error.message) from None
    for key, text in (*(("image", name) for name in parsed.names), ("prefix", parsed.prefix), ("suffix", parsed.suffix)):
        if "\0" in text:
            raise EntryError("text_nul", f"{key!r} is {shown(text)}")
    for image in parsed.images:
        if image.inline is not None or is_read_from(image.name):
            continue
        if _DRIVE_OR_SCHEME.match(image.name) or os.path.isabs(image.name):
            raise EntryError("image_path_unsafe", f"{shown(image.name)} is not relative to the image folder")
        if os.path.normpath(image.name).split("/")[0] == "..":
            raise EntryError("image_path_unsafe", f"{shown(image.name)} leads out of the image folder")
    return line


def is_read_from(address: str) -> bool:
    """Whether an image's name is an address that prepare_data reads: `gs://` or `https://`."""
    return _READ.match(address) is not None


def _list(file: IO[bytes], entry: Entry, problem: EntryError) -> None:
    known = entry.id if isinstance(entry.id, str | int) or (isinstance(entry.id, float) and math.isfinite(entry.id)) else None
    line = {"place": entry.place, "id": known, "code": problem.code, "message": problem.message}
    # Half a surrogate pair is written as an escape, which JSON allows.
    file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")


def shown(value: object) -> str:
    """A value for a message, cut to one line."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:60] + "...")
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return "nothing" if value is None else repr(value)[:60]
