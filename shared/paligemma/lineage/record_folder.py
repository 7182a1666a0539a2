"""Reads the folder `lineage` of a root directly: records, marks, lists of rows, and foreign files.

Uses no index, which whoever can write into the root could have forged too.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from paligemma.artifacts.record import Record, Signature, Time, canonical_sha256, parse_record, render_record
from paligemma.artifacts.recording import FOLDER, MARK_ENDING, ROOTS_FOLDER, ROWS_FOLDER
from paligemma.artifacts.root_links import parse_root_link
from paligemma.errors import DamagedError, InputError, PaliGemmaError
from paligemma.foreign_json import parse_model
from paligemma.safe_names import Sha256, relative_path_fault
from paligemma.storage.folders import Entry, kind_of, read_file, readers, walk
from paligemma.storage.location import Location

PRUNED_ENDING = ".pruned.json"
_ROWS = re.compile(rf"{ROWS_FOLDER}/([0-9a-f]{{64}})\.jsonl")
_ROOT = re.compile(rf"{ROOTS_FOLDER}/[0-9a-f]{{64}}\.json")
_FILE = re.compile(r"([^/]+)/([^/]+)/([^/]+?)(_([2-9]|[1-9][0-9]+))?\.json")
# Partial files of killed writers, and the index that earlier versions kept here.
_LEFTOVER = re.compile(r"(.*/)?\.[^/]+\.partial(-\d+)*|\.{1,2}index\.sqlite(-wal|-shm|\.lock)?")


class PruneMark(BaseModel):
    """A mark that `prune` deleted the artifact of the record with this hash."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    pruned: Sha256
    at: Time
    signature: Signature | None = None

    @property
    def sha256(self) -> str:
        """The hash that is signed."""
        return canonical_sha256({"pruned": self.pruned, "at": self.at})

    def render(self) -> bytes:
        """The mark as the bytes of its file."""
        return (json.dumps(self.model_dump(), indent=2) + "\n").encode()


def parse_prune_mark(data: bytes, where: object) -> PruneMark:
    """Reads a mark.

    Raises:
        DamagedError: the data are not a mark.
    """
    mark = parse_model(data, where, PruneMark, "The mark of what was pruned")
    if mark.render() != data:
        raise DamagedError("The mark of what was pruned is not as it is written.", where=where)
    return mark


@dataclass(frozen=True)
class Fault:
    """A file of the folder that contradicts its name, or does not belong there."""

    path: str
    kind: Literal["altered", "missing"]
    what: str


@dataclass(frozen=True)
class Kept:
    """The folder's contents.

    Attributes:
        records: records by path below the folder, including marks of running attempts.
        marks: marks of pruned artifacts, by path.
        rows: the hashes that name the lists of rows.
        faults: everything else.
    """

    records: dict[str, Record]
    marks: dict[str, PruneMark]
    rows: set[str]
    faults: list[Fault]


def read_kept(root: Location) -> Kept:
    """Reads everything in the folder `lineage` below a root.

    Raises:
        InputError: there is no such folder.
    """
    folder = root / FOLDER
    try:
        entries = sorted(walk(folder), key=lambda entry: entry.path)
    except (FileNotFoundError, NotADirectoryError):
        entries = []
    if not entries:
        raise InputError(f"There are no lineage records below {root}.", expected="a folder or prefix that steps wrote to")
    kept = Kept({}, {}, set(), [])
    to_read = []
    for entry in entries:
        if entry.kind == "folder":
            continue
        if entry.kind != "file":
            kept.faults.append(Fault(entry.path, "altered", f"this is {_KINDS[entry.kind]}, and no record"))
        elif found := _ROWS.fullmatch(entry.path):
            kept.rows.add(found[1])
        elif _ROOT.fullmatch(entry.path):
            kept.faults.extend(_root_faults(folder, entry.path))
        elif is_kept_path(entry.path):
            to_read.append(entry.path)
        elif not _LEFTOVER.fullmatch(entry.path):
            kept.faults.append(Fault(entry.path, "altered", "this file was added to the records"))
    kept.faults.extend(_empty_folders(entries))
    with ThreadPoolExecutor(readers(folder)) as pool:
        for path, found in zip(to_read, pool.map(lambda path: _read(folder, path), to_read), strict=True):
            match found:
                case Record():
                    kept.records[path] = found
                case PruneMark():
                    kept.marks[path] = found
                case Fault():
                    kept.faults.append(found)
    kept.faults.extend(_misplaced(kept.records))
    for fault in kept.faults:
        kept.records.pop(fault.path, None)
    return kept


def is_kept_path(path: str) -> bool:
    """Whether a path in the folder `lineage` is that of a record or a mark: RUN/TASK/NAME.json."""
    if relative_path_fault(path) or path.startswith((f"{ROWS_FOLDER}/", f"{ROOTS_FOLDER}/")):
        return False
    return path.count("/") == 2 and path.endswith(".json") and "/." not in path and not path.startswith(".")


def path_fault(path: str, record: Record) -> str:
    """Why a record does not belong at a path; empty if it does."""
    own = f"{record.run}/{record.task}/{record.attempt}"
    found = _FILE.fullmatch(path)
    in_place = found is not None and f"{found[1]}/{found[2]}/{found[3]}" == own and record.status != "running"
    if in_place or (record.status == "running" and path == f"{own}{MARK_ENDING}"):
        return ""
    return f"it is the record of {own}"


def _read(folder: Location, path: str) -> Record | PruneMark | Fault | None:
    """Parses a file; None if it vanished meanwhile."""
    try:
        data = read_file(folder / path)
        if data is None:
            return None
        if path.endswith(PRUNED_ENDING):
            return parse_prune_mark(data, folder / path)
        record = parse_record(data, folder / path)
    except InputError:  # the object has been deleted
        return None
    except PaliGemmaError as error:
        return Fault(path, "altered", error.what) if kind_of(folder / path) else None
    if render_record(record) != data:
        return Fault(path, "altered", "its bytes are not those that were written")
    fault = path_fault(path, record)
    return Fault(path, "altered", fault) if fault else record


def _misplaced(records: dict[str, Record]) -> Iterator[Fault]:
    """Records that occur twice, or not in the order of their attempt."""
    first: dict[str, str] = {}
    attempts: dict[str, dict[int, tuple[str, Record]]] = {}
    for path, record in records.items():
        if record.sha256 in first:
            yield Fault(path, "altered", f"it is a copy of {first[record.sha256]}")
            continue
        first[record.sha256] = path
        if record.status != "running" and (file := _FILE.fullmatch(path)):
            number = file[5]
            own = f"{record.run}/{record.task}/{record.attempt}"
            attempts.setdefault(own, {})[int(number or 1)] = (path, record)
    for own, numbered in attempts.items():
        for number in range(1, max(numbered)):
            if number not in numbered:
                yield Fault(f"{own}{f'_{number}' if number > 1 else ''}.json", "missing", "a record that was here is gone")
        in_order = [numbered[number] for number in sorted(numbered)]
        for (_, before), (path, after) in itertools.pairwise(in_order):
            if str(after.finished) < str(before.finished):
                yield Fault(path, "altered", "it is older than the record that its attempt left before")


def _empty_folders(entries: list[Entry]) -> Iterator[Fault]:
    """Folders that belong to no run or task, or are hidden. A writer creates a folder before it writes into it."""
    for entry in entries:
        if entry.kind == "folder" and (entry.path.startswith(".") or "/." in entry.path or entry.path.count("/") > 1):
            yield Fault(entry.path, "altered", "this folder was added to the records")
        elif entry.kind == "folder" and entry.path.startswith(f"{ROWS_FOLDER}/"):
            yield Fault(entry.path, "altered", "this folder was added to the lists of rows")
        elif entry.kind == "folder" and entry.path.startswith(f"{ROOTS_FOLDER}/"):
            yield Fault(entry.path, "altered", "this folder was added to the names of other roots")


def _root_faults(folder: Location, path: str) -> Iterator[Fault]:
    """What is wrong with a link to another root."""
    try:
        data = read_file(folder / path)
        if data is not None and parse_root_link(data, folder / path).name != path.rpartition("/")[2]:
            yield Fault(path, "altered", "it names another root than its own name says")
    except PaliGemmaError as error:
        yield Fault(path, "altered", error.what)


_KINDS = {"link": "a link", "other": "no file"}
