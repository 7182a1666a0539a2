"""Verifies a root: hashes every artifact anew, and checks every record and the chain between them.

Reads everything from the root itself, without an index. Given a key, only records signed with it count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paligemma.artifacts.record import ROWS_FILE, MadeRecord, Record
from paligemma.artifacts.recording import FOLDER, ROWS_FOLDER
from paligemma.artifacts.signing import fault_of
from paligemma.errors import InputError, PaliGemmaError
from paligemma.lineage.artifact_faults import artifact_faults, location_sha256
from paligemma.lineage.index import Index
from paligemma.lineage.orphans import orphans
from paligemma.lineage.record_folder import Kept, PruneMark, read_kept
from paligemma.lineage.relocation import Made, Places
from paligemma.progress import WorkProgress
from paligemma.storage.folders import first_link, kind_of
from paligemma.storage.location import Location, parse_location

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Kind = Literal["altered", "missing", "orphaned", "broken chain", "bad signature"]


@dataclass(frozen=True)
class Problem:
    """A difference from the records: its kind, location and description."""

    kind: Kind
    where: str
    what: str


@dataclass(frozen=True)
class Verified:
    """The result of a verification: what was checked, and what is wrong.

    Attributes:
        pruned: artifacts that `prune` deleted on purpose.
        replaced: artifacts that a later attempt's artifact replaced.
        elsewhere: inputs made below another root, whose records cannot be checked from here.
        unfinished: marks of attempts without an end: still running, or killed.
        hashes: hash of every intact record by its path below `lineage`, without such marks.
    """

    records: int
    artifacts: int
    bytes: int
    pruned: list[str]
    replaced: list[str]
    elsewhere: list[str]
    unfinished: list[str]
    problems: list[Problem]
    hashes: dict[str, str]

    def to_json(self) -> dict:
        """The result as a JSON value."""
        return {name: value for name, value in asdict(self).items() if name != "hashes"}


def verify(
    root: str | Path | Location | Index, key: Ed25519PublicKey | None = None, seen: Mapping[str, str] | None = None
) -> Verified:
    """Verifies everything below a root.

    Args:
        root: a local folder or a `gs://` prefix; from an open index, only the root's location is used.
        key: the public key that every record must be signed with; None: signatures are not checked.
        seen: `hashes` of an earlier result; those records must still exist.

    Raises:
        InputError: there are no lineage records below the root.
    """
    location = root.root if isinstance(root, Index) else parse_location(root)
    return _Look(location.absolute(), read_kept(location), key).verified(seen or {})


class _Look:
    """One verification of a root, from its own files."""

    def __init__(self, root: Location, kept: Kept, key: Ed25519PublicKey | None) -> None:
        self.root, self.kept, self.key = root, kept, key
        self.problems = [Problem(fault.kind, self._at(fault.path), fault.what) for fault in kept.faults]
        self.records: dict[str, Record] = {}
        for path, record in kept.records.items():
            fault = fault_of(record.signature, record.sha256, key) if key is not None else ""
            if fault:
                self.problems.append(Problem("bad signature", self._at(path), fault))
            else:
                self.records[path] = record
        self.by_hash = {record.sha256: record for record in self.records.values()}
        self.made = [
            record for record in self.records.values() if isinstance(record, MadeRecord) and record.cached_from is None
        ]
        self.of_output: dict[str, list[Record]] = defaultdict(list)
        for record in kept.records.values():
            self.of_output[record.output].append(record)
        self.places = Places(root, (made_of(record) for record in self.made))

    def verified(self, seen: Mapping[str, str]) -> Verified:
        marked = self._marked()
        latest = {
            self._key(record): record for record in sorted(self.made, key=lambda record: (record.finished, record.attempt))
        }
        current = [record for record in latest.values() if record.sha256 not in marked]
        pruned = [record for record in latest.values() if record.sha256 in marked]
        elsewhere = self._check_chain()
        with WorkProgress("verifying", "artifacts", len(current)) as progress:
            for record in current:
                self._check_artifact(record)
                progress.advance()
        for record in pruned:
            self._check_pruned(record)
        self._check_rows()
        self._check_orphans()
        found = {path: record.sha256 for path, record in self.records.items() if record.status != "running"}
        for path, sha256 in sorted(seen.items()):
            if found.get(path) != sha256:
                self.problems.append(Problem("missing", self._at(path), "a record that was seen here before is gone"))
        return Verified(
            records=len(self.records),
            artifacts=len(current),
            bytes=sum(record.artifact.bytes for record in current),
            pruned=[record.output for record in pruned],
            replaced=sorted({record.output for record in self.made if latest[self._key(record)] is not record}),
            elsewhere=sorted(elsewhere),
            unfinished=[path for path, record in self.records.items() if record.status == "running"],
            problems=list(dict.fromkeys(self.problems)),
            hashes=found,
        )

    def _at(self, path: str) -> str:
        return str(self.root / FOLDER / path)

    def _key(self, record: Record) -> str:
        """A key that is equal for artifacts that replace one another."""
        return self.places.below_root(record.output) or record.output

    def _marked(self) -> set[str]:
        """Hashes of the records whose artifacts were pruned, from valid marks."""
        marked: dict[str, str] = {}
        for path, mark in self.kept.marks.items():
            if kind_and_fault := self._mark_fault(path, mark, marked):
                self.problems.append(Problem(kind_and_fault[0], self._at(path), kind_and_fault[1]))
            else:
                marked[mark.pruned] = path
        return set(marked)

    def _mark_fault(self, path: str, mark: PruneMark, marked: dict[str, str]) -> tuple[Kind, str] | None:
        if self.key is not None and (fault := fault_of(mark.signature, mark.sha256, self.key)):
            return "bad signature", fault
        record = self.by_hash.get(mark.pruned)
        if record is None or record.artifact is None:
            return "broken chain", f"the record {mark.pruned[:16]} of what was pruned is not there"
        if not path.startswith(f"{record.run}/{record.task}/"):
            return "altered", f"it is a mark of {record.run}/{record.task}"
        if mark.pruned in marked:
            return "altered", f"it is a copy of {marked[mark.pruned]}"
        return None

    def _check_chain(self) -> set[str]:
        """Checks that the inputs of records exist; returns the addresses of inputs that were made below another root."""
        elsewhere = set()
        for path, record in self.records.items():
            for one in record.inputs:
                maker = self.by_hash.get(one.record) if one.record else None
                if maker is not None:
                    made = maker.artifact.tree_sha256 if maker.artifact else maker.sha256
                    if made != one.sha256:
                        said = f"its input {one.role!r} is not what the record {maker.sha256[:16]} is of"
                        self.problems.append(Problem("broken chain", self._at(path), said))
                elif one.record is not None and self.places.is_below_root(one.uri):
                    said = f"the record {one.record[:16]} of its input {one.role!r} ({one.uri}) is not there"
                    self.problems.append(Problem("broken chain", self._at(path), said))
                elif one.record is not None:
                    elsewhere.add(one.uri)
            if record.cached_from is not None and record.cached_from.record not in self.by_hash:
                said = f"the record {record.cached_from.record[:16]} that it was taken over from is not there"
                self.problems.append(Problem("broken chain", self._at(path), said))
        return elsewhere

    def _place(self, record: Record) -> Location | None:
        """The location of a record's artifact; None, and a problem noted, if it is impossible."""
        try:
            place = self.places.of(record.output)
        except InputError as error:
            self.problems.append(Problem("altered", self._at(f"{record.run}/{record.task}"), error.what))
            return None
        below = self.places.below_root(record.output)
        link = first_link(self.root, below) if below is not None else None
        if link is not None:
            self.problems.append(
                Problem("altered", str(link), "a folder that artifacts are in is no folder, but a link or file")
            )
            return None
        return place

    def _check_artifact(self, record: MadeRecord) -> None:
        place = self._place(record)
        if place is not None:
            found = artifact_faults(record, place, self.of_output[record.output])
            self.problems += [Problem(kind, where, what) for kind, where, what in found]

    def _check_pruned(self, record: Record) -> None:
        place = self._place(record)
        if place is not None and kind_of(place) is not None:
            self.problems.append(Problem("altered", str(place), "this was pruned, and something is there"))

    def _check_rows(self) -> None:
        """Checks the kept lists of rows."""
        wanted = _lists_of_rows(self.records.values())
        named = _lists_of_rows(self.kept.records.values())  # named by unsigned records too, which were reported already
        for sha256 in sorted(wanted | self.kept.rows):
            place = self.root / FOLDER / ROWS_FOLDER / f"{sha256}.jsonl"
            if sha256 not in named:
                self.problems.append(Problem("altered", str(place), "this list of rows was added: no record names it"))
            elif sha256 not in self.kept.rows:
                self.problems.append(Problem("missing", str(place), "a list of rows is gone"))
            elif _sha256_or_fault(place) != sha256:
                self.problems.append(Problem("altered", str(place), "a list of rows is not what was recorded"))

    def _below_root(self, records: Iterable[Record]) -> set[str]:
        """Where their artifacts are or were to be, by the paths from the root; of those below it."""
        paths = (self.places.below_root(record.output) for record in records)
        return {path for path in paths if path is not None}

    def _check_orphans(self) -> None:
        """Looks for artifacts that no record below the root names. Unsigned records count too; they were reported already."""
        records = list(self.kept.records.values())
        known = self._below_root(record for record in records if record.artifact)
        unfinished = self._below_root(record for record in records if not record.artifact)
        hashes = {record.sha256 for record in records}
        for where, what, record in orphans(self.root, known, unfinished):
            self.problems.append(Problem("orphaned", where, what))
            if record is None or record.sha256 in hashes:
                continue
            gone = f"{record.run}/{record.task}/{record.attempt}.json"
            if gone not in {fault.path for fault in self.kept.faults}:
                self.problems.append(Problem("missing", self._at(gone), f"the record of what is at {where} is gone"))


def _lists_of_rows(records: Iterable[Record]) -> set[str]:
    made = (record.artifact for record in records if record.artifact)
    return {file.sha256 for artifact in made for file in artifact.files if file.path == ROWS_FILE}


def made_of(record: Record) -> Made:
    """The facts about a record that `Places` needs."""
    return Made(record.producer.component, record.sha256, record.output, record.started)


def _sha256_or_fault(place: Location) -> str:
    try:
        return location_sha256(place)
    except (OSError, PaliGemmaError) as error:
        return f"cannot be read: {error}"
