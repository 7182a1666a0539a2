"""The lineage record: its fields, its hashes, and its reader.

A record names the records of its inputs by hash, so the newest record vouches for all earlier ones. Anybody may have written
it, so `parse_record` checks every field, and no other code reads a record.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from paligemma.errors import DamagedError, InputError
from paligemma.foreign_json import first_fault, parse_json, read_bounded
from paligemma.regular_files import open_regular
from paligemma.safe_names import Address, RelativePath, RunName, Sha256, VersionId, parse_relative_path

RECORD_FILE = "lineage.json"
ROWS_FILE = "rows.jsonl"
"""Optional list of an artifact's data rows: lines with `row_id`, `image_sha256`, `image_file`, `line`.

Of a row with several images, `image_sha256` and `image_file` are lists; see `one_or_all`.
"""
REJECTED_FILE = "rejected.jsonl"
"""Optional list of an artifact's rejected rows: lines with `line`, `code`, `message`."""

Status = Literal["running", "succeeded", "failed", "preempted"]


def _time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("it names no time zone")
    return text


Time = Annotated[str, AfterValidator(_time)]
"""An instant, ISO 8601."""
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


Value = TypeVar("Value")


def one_or_all(values: Sequence[Value]) -> Value | list[Value]:
    """What a list of rows has of a row's images: the value of the only one, or all values."""
    return values[0] if len(values) == 1 else list(values)


def each(listed: Value | list[Value]) -> list[Value]:
    """The values of a row's images, one for each: undoes `one_or_all`."""
    return listed if isinstance(listed, list) else [listed]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Part):
    """One file of an artifact. Its path is relative to the artifact, with forward slashes."""

    path: RelativePath
    bytes: Count
    sha256: Sha256


class Artifact(_Part):
    """The artifact that a step made. On gs://, its files are below `uri`/version-`version`."""

    type: str
    uri: Address
    version: VersionId | None = None
    tree_sha256: Sha256
    bytes: Count
    rows: Count | None = None
    files: list[File]

    def file(self, path: str) -> File | None:
        """The file with this path; None if it has none."""
        return next((file for file in self.files if file.path == path), None)


class Producer(_Part):
    """The code and environment that made the artifact."""

    component: str
    parameters: dict
    parameters_sha256: Sha256
    image: str | None
    git_sha: str | None
    git_dirty: bool | None
    packages: dict[str, str]
    python: str
    device: str | None


class Input(_Part):
    """One input of the artifact.

    Attributes:
        sha256: an artifact's tree hash, or a file's own.
        record: the hash of the artifact's record; None for a file outside any artifact.
        run: the run that made the artifact; if it is not the record's own run, the artifact was reused.
    """

    role: str
    uri: Address
    sha256: Sha256
    record: Sha256 | None = None
    run: RunName | None = None


class CachedFrom(_Part):
    """The attempt whose artifact a run reused instead of making its own."""

    run: RunName
    task: RunName
    attempt: RunName
    record: Sha256


class Failure(_Part):
    """Why an attempt did not succeed."""

    kind: str
    message: str


class Signature(_Part):
    """Ed25519 over the record's hash; `key` is the hash of the public key."""

    key: Sha256
    value: str


class Record(BaseModel, frozen=True, extra="forbid"):
    """Contents of `lineage.json`, and of every file below `lineage/`.

    Attributes:
        run, task, attempt: the run, its step, and the try of that step.
        status: `running` occurs only in the mark that an attempt writes at its start. A mark without an end record means that
            the attempt was killed.
        output: where the artifact is, or should have been.
        artifact: the artifact; None unless the attempt succeeded.
        metrics: figures that compare runs.
        started, finished: UTC, ISO 8601. `seconds` is the duration.
        cost_usd: `seconds` times the price in the machine's environment.
        sha256: hash of all other fields except the signature.
    """

    schema_version: Literal[2] = 2
    run: RunName
    task: RunName
    attempt: RunName
    status: Status
    output: Address
    artifact: Artifact | None = None
    producer: Producer
    inputs: list[Input]
    cached_from: CachedFrom | None = None
    metrics: dict[str, float] = {}
    error: Failure | None = None
    started: Time
    finished: Time | None = None
    seconds: Amount = 0.0
    cost_usd: Amount | None = None
    sha256: Sha256 | Literal[""] = ""
    signature: Signature | None = None


class MadeRecord(Record, frozen=True):
    """The record of an attempt that succeeded, which is one that has an artifact."""

    artifact: Artifact = Field(default=...)


def record_sha256(values: dict) -> str:
    """The hash of a record, given as its JSON value."""
    return canonical_sha256({key: value for key, value in values.items() if key not in ("sha256", "signature")})


def render_record(record: Record) -> bytes:
    """The record as the bytes of its file."""
    return (json.dumps(record.model_dump(mode="json"), indent=2) + "\n").encode()


def parse_record(data: bytes, where: object) -> Record:
    """Reads a record; a `MadeRecord`, if it names an artifact.

    Raises:
        DamagedError: the data are not a record, or were changed after writing.
    """
    values = parse_json(data, where, "The lineage record")
    has_artifact = isinstance(values, dict) and values.get("artifact") is not None
    try:
        record = (MadeRecord if has_artifact else Record).model_validate(values, strict=True)
    except ValidationError as error:
        if error.errors()[0]["loc"] == ("schema_version",):
            raise DamagedError(
                "The lineage record is of another version of this program.", where=where, fix="make the artifact again"
            ) from None
        raise DamagedError(f"The lineage record is damaged: {first_fault(error)}.", where=where) from None
    written = record.model_dump(mode="json")
    if written != values:
        raise DamagedError("The lineage record is damaged: it lacks a field, or has one in another form.", where=where)
    if record_sha256(written) != record.sha256:
        raise DamagedError(
            "The lineage record was altered: it does not have its own hash.",
            where=where,
            fix="run `paligemma lineage verify` on the root to see what else was",
        )
    if fault := _fault_of(record):
        raise DamagedError(f"The lineage record is damaged: {fault}.", where=where)
    return record


def parse_record_of_artifact(data: bytes, where: object) -> MadeRecord:
    """Reads the record beside an artifact.

    Raises:
        DamagedError: it is no record, or not the one that was written, or one of an attempt that made nothing.
    """
    record = parse_record(data, where)
    if not isinstance(record, MadeRecord):
        raise DamagedError("The lineage record beside an artifact names none.", where=where)
    return record


def _fault_of(record: Record) -> str:
    """How a record contradicts itself; empty if it does not."""
    made = record.artifact
    if (made is not None) != (record.status == "succeeded"):
        return f"an attempt that is {record.status} has {'an' if made else 'no'} artifact"
    if (record.finished is None) != (record.status == "running"):
        return f"an attempt that is {record.status} has {'an' if record.finished else 'no'} end"
    if made is None:
        return ""
    if made.uri != record.output:
        return "its artifact is not its output"
    paths = {file.path for file in made.files}
    folders = {parent for path in paths for parent in _parents(path)}
    if len(paths) != len(made.files) or paths & folders or RECORD_FILE in paths | folders:
        return "two of its files have one name, or one that is a folder's, or the record's"
    if tree_sha256(made.files) != made.tree_sha256 or sum(file.bytes for file in made.files) != made.bytes:
        return "its hash or size is not that of its files"
    return ""


def _parents(path: str) -> list[str]:
    """The folders that a file is in, below the artifact."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def canonical_sha256(value: object) -> str:
    """Hash of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, read in pieces.

    Raises:
        OSError: there is no such file.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(files: Iterable[File]) -> str:
    """Hash of an artifact: over the paths and hashes of its files, sorted by path."""
    lines = [f"{file.path}\0{file.sha256}\n" for file in sorted(files, key=lambda file: file.path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def list_files(folder: Path, known: Mapping[str, str] | None = None) -> list[File]:
    """Every file of an artifact except its record, sorted by path.

    Args:
        folder: the artifact.
        known: sha256 by path of files that need not be read again.

    Raises:
        InputError: a record cannot hold a file's name.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD_FILE)
    for path in paths:
        parse_relative_path(path.relative_to(folder).as_posix(), "A file's name", where=folder, fix="rename it")
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing runs outside Python's lock
        hashes = list(pool.map(lambda path: (known or {}).get(path.relative_to(folder).as_posix()) or file_sha256(path), paths))
    return [
        File(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=found)
        for path, found in zip(paths, hashes, strict=True)
    ]


def read_record(folder: str | Path, type: str | None = None) -> MadeRecord:
    """The record of a complete artifact, of the given type or of any type.

    Checks that every file exists with its recorded size, without reading contents. `verify` re-hashes.

    Raises:
        InputError: the folder is not an artifact of this type.
        DamagedError: the artifact is no longer complete.
    """
    folder = Path(folder)
    path = folder / RECORD_FILE
    if not path.is_file():
        what = "not a whole artifact: it has no lineage.json" if folder.is_dir() else "not there"
        raise InputError(
            f"{folder} is {what}.", expected=f"a folder with {type or 'an artifact'}", fix="run the step that makes it"
        )
    record = parse_record_of_artifact(read_bounded(path, "The lineage record"), path)
    if type is not None and record.artifact.type != type:
        raise InputError(f"{folder} holds {record.artifact.type}.", expected=type, fix="pass another folder")
    for file in record.artifact.files:
        found = folder / file.path
        size = found.stat().st_size if found.is_file() else None
        if size != file.bytes:
            raise DamagedError(
                "A file of the artifact is missing." if size is None else "A file of the artifact changed its size.",
                where=found,
                expected=f"{file.bytes} bytes" + ("" if size is None else f", found {size}"),
                fix="run the step that makes it again",
            )
    return record
