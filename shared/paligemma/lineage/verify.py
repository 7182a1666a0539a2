"""Whether what is there is what was recorded: every artifact hashed anew, every record, and the chain between them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paligemma.errors import InputError, PaliGemmaError
from paligemma.lineage.attempt import FOLDER, ROWS_FOLDER
from paligemma.lineage.index import PRUNED_ENDING, Index
from paligemma.lineage.places import Places, files_place, is_there
from paligemma.lineage.record import RECORD_FILE, ROWS_FILE, canonical_sha256, file_sha256, parse_record, render_record
from paligemma.lineage.sign import fault_of
from paligemma.progress import WorkProgress
from paligemma.storage import gcs
from paligemma.storage.files import exists, parent_of
from paligemma.storage.folders import list_files, read_file
from paligemma.storage.location import GcsLocation, Location

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Kind = Literal["altered", "missing", "orphaned", "broken chain", "bad signature"]


@dataclass(frozen=True)
class Problem:
    """Something that is not as recorded: what, where, and how."""

    kind: Kind
    where: str
    what: str


@dataclass(frozen=True)
class Verified:
    """What was looked at, and what is wrong with it.

    Attributes:
        pruned: artifacts that `prune` deleted on purpose.
        replaced: artifacts whose place a later attempt's took.
        elsewhere: inputs made below another root, whose records cannot be looked at from here.
        unfinished: marks of attempts without an end: under way now, or killed.
    """

    records: int
    artifacts: int
    bytes: int
    pruned: list[str]
    replaced: list[str]
    elsewhere: list[str]
    unfinished: list[str]
    problems: list[Problem]

    def to_json(self) -> dict:
        """As a JSON value."""
        return asdict(self)


def verify(index: Index, key: Ed25519PublicKey | None = None) -> Verified:
    """Looks at everything below the index's root.

    Args:
        index: the index.
        key: the public key that every record must be signed with; none: signatures are not looked at.
    """
    problems = [
        Problem("missing", str(index.file(path)), "a record that was here is gone")
        for (path,) in index.ask("SELECT path FROM vanished ORDER BY path")
    ]
    places = Places(index)
    good, bad = _check_records(index, key)
    problems += bad
    known = {record["sha256"] for record in good.values()}
    elsewhere = []
    for path, record in good.items():
        for one in record["inputs"]:
            if one["record"] is None or one["record"] in known:
                continue
            if places.is_below_root(one["uri"]):
                said = f"the record {one['record'][:16]} of its input {one['role']!r} ({one['uri']}) is not there"
                problems.append(Problem("broken chain", str(index.file(path)), said))
            else:
                elsewhere.append(one["uri"])
    pruned_marks, bad = _check_prune_marks(index, key)
    problems += bad
    made = [record for record in good.values() if record["artifact"] and record["cached_from"] is None]
    latest = {record["output"]: record for record in sorted(made, key=lambda record: record["finished"])}
    current = [record for record in made if latest[record["output"]] is record]
    pruned = [record["output"] for record in current if record["sha256"] in pruned_marks]
    current = [record for record in current if record["sha256"] not in pruned_marks]
    total = sum(record["artifact"]["bytes"] for record in current)
    with WorkProgress("verifying", "artifacts", len(current)) as progress:
        for record in current:
            problems += _check_artifact(record, places.of(record))
            progress.advance()
    problems += _check_rows(index, good)
    problems += _orphans(index, {str(places.of(record)) for record in made})
    return Verified(
        records=len(good),
        artifacts=len(current),
        bytes=total,
        pruned=pruned,
        replaced=sorted({record["output"] for record in made if latest[record["output"]] is not record}),
        elsewhere=sorted(set(elsewhere)),
        unfinished=[path for path, record in good.items() if record["status"] == "running"],
        problems=list(dict.fromkeys(problems)),
    )


def _check_records(index: Index, key: Ed25519PublicKey | None) -> tuple[dict[str, dict], list[Problem]]:
    """The records that are what was written, by path, and what is wrong with the others."""
    paths = [path for (path,) in index.ask("SELECT path FROM records UNION SELECT path FROM damaged ORDER BY path")]
    paths = [path for path in paths if not path.endswith(PRUNED_ENDING)]
    good, problems = {}, []
    with ThreadPoolExecutor(gcs.STREAMS) as pool:
        contents = pool.map(lambda path: _or_none(index, path), paths)
        for path, data in zip(paths, contents, strict=True):
            where = str(index.file(path))
            if data is None:
                problems.append(Problem("missing", where, "a record that was here is gone"))
                continue
            fault = _fault_of_record(data, where)
            values = json.loads(data) if not fault else {}
            if not fault and not path.startswith(f"{values['run']}/{values['task']}/{values['attempt']}"):
                fault = f"it is the record of {values['run']}/{values['task']}/{values['attempt']}"
            if fault:
                problems.append(Problem("altered", where, fault))
                continue
            good[path] = values
            if key is not None and (fault := fault_of(values["signature"], values["sha256"], key)):
                problems.append(Problem("bad signature", where, fault))
    return good, problems


def _or_none(index: Index, path: str) -> bytes | None:
    try:
        return index.read(path)
    except (FileNotFoundError, InputError):
        return None


def _fault_of_record(data: bytes, where: object) -> str:
    """What is wrong with a record's bytes; empty if nothing is."""
    try:
        record = parse_record(data, where)
    except PaliGemmaError as error:
        return error.what
    return "" if render_record(record) == data else "its bytes are not those that were written"


def _check_artifact(record: dict, place: Location) -> Iterator[Problem]:
    """What is wrong with an artifact: its record beside it, and each of its files."""
    if not is_there(place):
        yield Problem("missing", str(place), f"the artifact ({record['artifact']['type']}) is gone")
        return
    beside = read_file(place / RECORD_FILE)
    if beside is None:
        yield Problem("missing", str(place / RECORD_FILE), "the record beside the artifact is gone")
    else:
        fault = _fault_of_record(beside, place / RECORD_FILE)
        if fault:
            yield Problem("altered", str(place / RECORD_FILE), fault)
        elif json.loads(beside)["sha256"] != record["sha256"]:
            yield Problem("altered", str(place / RECORD_FILE), "it is not the record that was kept below the root")
    folder = files_place(record, place)
    there = set(list_files(folder)) - {RECORD_FILE}
    for file in record["artifact"]["files"]:
        if file["path"] not in there:
            yield Problem("missing", str(folder / file["path"]), "a file of the artifact is gone")
        elif _sha256(folder / file["path"]) != file["sha256"]:
            yield Problem(
                "altered", str(folder / file["path"]), f"a file of the artifact is not what was recorded: {file['sha256']}"
            )
    for extra in sorted(there - {file["path"] for file in record["artifact"]["files"]}):
        yield Problem("altered", str(folder / extra), "this file was added to the artifact")


def _sha256(file: Location) -> str:
    if isinstance(file, Path):
        return file_sha256(file)
    with tempfile.TemporaryDirectory() as folder:  # an object may be larger than memory
        gcs.download(file, Path(folder) / "object")
        return file_sha256(Path(folder) / "object")


def _check_rows(index: Index, records: dict[str, dict]) -> Iterator[Problem]:
    """What is wrong with the kept lists of rows."""
    wanted = {
        file["sha256"]
        for record in records.values()
        for file in (record["artifact"] or {"files": ()})["files"]
        if file["path"] == ROWS_FILE
    }
    for sha256 in sorted(wanted):
        path = index.file(f"{ROWS_FOLDER}/{sha256}.jsonl")
        if not exists(parent_of(path), f"{sha256}.jsonl"):
            yield Problem("missing", str(path), "a list of rows is gone")
        elif _sha256(path) != sha256:
            yield Problem("altered", str(path), "a list of rows is not what was recorded")


def _orphans(index: Index, known: set[str]) -> Iterator[Problem]:
    """Artifacts below the root that no record there knows of."""
    for place in _artifacts_below(index.root):
        if str(place) not in known:
            yield Problem("orphaned", str(place), "the artifact's record is not among those below the root")


def _artifacts_below(root: Location) -> Iterator[Location]:
    if isinstance(root, GcsLocation):
        names = (found.location.name for found in gcs.list_objects(root))
        below = f"{root.name}/{FOLDER}/" if root.name else f"{FOLDER}/"
        yield from (
            GcsLocation(root.bucket, name.removesuffix(f"/{RECORD_FILE}"))
            for name in names
            if name.endswith(f"/{RECORD_FILE}") and not name.startswith(below)
        )
        return
    for folder, folders, files in os.walk(root):
        if RECORD_FILE in files:
            yield Path(folder)
            folders.clear()
        elif Path(folder) == root and FOLDER in folders:
            folders.remove(FOLDER)
        folders[:] = [name for name in folders if not name.startswith(".")]


def prune_mark(record: dict, at: str) -> dict:
    """The JSON value of the mark that says that an artifact was deleted on purpose."""
    from paligemma.lineage.sign import sign

    values = {"pruned": record["sha256"], "at": at}
    signature = sign(canonical_sha256(values))
    return values | {"signature": signature.model_dump() if signature else None}


def _check_prune_marks(index: Index, key: Ed25519PublicKey | None) -> tuple[set[str], list[Problem]]:
    marked, problems = set(), []
    for path, sha256 in index.ask("SELECT path, sha256 FROM pruned ORDER BY path"):
        values = json.loads(_or_none(index, path) or b"{}")
        fault = ""
        if key is not None:
            unsigned = {name: value for name, value in values.items() if name != "signature"}
            fault = fault_of(values.get("signature"), canonical_sha256(unsigned), key)
        if fault:
            problems.append(Problem("bad signature", str(index.file(path)), fault))
        else:
            marked.add(sha256)
    return marked, problems
