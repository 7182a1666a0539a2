"""The lineage record: its fields, its hashes, and reading it back.

A record names the records of its inputs by their hashes, so that the newest one vouches for all that came before it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from paligemma.errors import DamagedError, InputError

RECORD_FILE = "lineage.json"
ROWS_FILE = "rows.jsonl"
"""In an artifact that has one, the list of its data rows: lines with `row_id`, `image_sha256`, `image_file`, `line`."""

Status = Literal["running", "succeeded", "failed", "preempted"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Part):
    """One file of an artifact. Its path is relative to the artifact, with forward slashes."""

    path: str
    bytes: int
    sha256: str


class Artifact(_Part):
    """What was made. On gs://, its files are below `uri`/version-`version`."""

    type: str
    uri: str
    version: str | None = None
    tree_sha256: str
    bytes: int
    rows: int | None = None
    files: list[File]

    def file(self, path: str) -> File | None:
        """The file with this path; None if it has none."""
        return next((file for file in self.files if file.path == path), None)


class Producer(_Part):
    """What made it."""

    component: str
    parameters: dict
    parameters_sha256: str
    image: str | None
    git_sha: str | None
    git_dirty: bool | None
    packages: dict[str, str]
    python: str
    device: str | None


class Input(_Part):
    """What it was made from.

    Attributes:
        sha256: an artifact's tree hash, or a file's own.
        record: the hash of the artifact's record; none of a file outside any artifact.
        run: the run that made the artifact; another one than the record's own means that it was reused.
    """

    role: str
    uri: str
    sha256: str
    record: str | None = None
    run: str | None = None


class CachedFrom(_Part):
    """The attempt whose artifact a run took over instead of making one."""

    run: str
    task: str
    attempt: str
    record: str


class Failure(_Part):
    """Why an attempt did not succeed."""

    kind: str
    message: str


class Signature(_Part):
    """Ed25519 over the record's hash; `key` is the hash of the public key."""

    key: str
    value: str


class Record(_Part):
    """Contents of `lineage.json`, and of every file below `lineage/`.

    Attributes:
        run, task, attempt: which try of which step of which run this was.
        status: `running` is only in the mark that an attempt leaves at its start; found without an end, it was killed.
        output: where the artifact is, or was to be.
        artifact: what was made; none unless the attempt succeeded.
        metrics: figures by which runs are compared.
        started, finished: UTC, ISO 8601. `seconds` is what it took.
        cost_usd: `seconds` at the price that the machine's environment names.
        sha256: hash of all other fields but the signature.
    """

    schema_version: Literal[2] = 2
    run: str
    task: str
    attempt: str
    status: Status
    output: str
    artifact: Artifact | None = None
    producer: Producer
    inputs: list[Input]
    cached_from: CachedFrom | None = None
    metrics: dict[str, float] = {}
    error: Failure | None = None
    started: str
    finished: str | None = None
    seconds: float = 0.0
    cost_usd: float | None = None
    sha256: str = ""
    signature: Signature | None = None


def record_sha256(values: dict) -> str:
    """The hash of a record, given as its JSON value."""
    return canonical_sha256({key: value for key, value in values.items() if key not in ("sha256", "signature")})


def render_record(record: Record) -> bytes:
    """A record as it is written."""
    return (json.dumps(record.model_dump(mode="json"), indent=2) + "\n").encode()


def parse_record(data: bytes, where: object) -> Record:
    """Reads a record.

    Raises:
        DamagedError: it is no record, or not the one that was written.
    """
    try:
        record = Record.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors()[0]
        if fault["loc"] == ("schema_version",):
            raise DamagedError(
                "The lineage record is of another version of this program.", where=where, fix="make the artifact again"
            ) from None
        raise DamagedError(f"The lineage record is damaged: {fault['msg']}.", where=where) from None
    if record_sha256(record.model_dump(mode="json")) != record.sha256:
        raise DamagedError(
            "The lineage record was altered: it does not have its own hash.",
            where=where,
            fix="run `paligemma lineage verify` on the root to see what else was",
        )
    return record


def canonical_sha256(value: object) -> str:
    """Hash of a JSON value, the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(files: Iterable[File]) -> str:
    """Hash of an artifact: of the paths and hashes of its files, sorted by path."""
    lines = [f"{file.path}\0{file.sha256}\n" for file in sorted(files, key=lambda file: file.path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def list_files(folder: Path, known: Mapping[str, str] | None = None) -> list[File]:
    """Every file of an artifact but its record, sorted by path.

    Args:
        known: sha256 of files, by path, that need not be read for it.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD_FILE)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing runs outside Python's lock
        hashes = list(pool.map(lambda path: (known or {}).get(path.relative_to(folder).as_posix()) or file_sha256(path), paths))
    return [
        File(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=found)
        for path, found in zip(paths, hashes, strict=True)
    ]


def read_record(folder: str | Path, type: str | None = None) -> Record:
    """The record of a whole artifact, of the given type or of any.

    Checks that every file is there with its recorded size, which costs no reading. `verify` re-hashes.

    Raises:
        InputError: the folder is not such an artifact.
        DamagedError: it was one, and is not whole any more.
    """
    folder = Path(folder)
    path = folder / RECORD_FILE
    if not path.is_file():
        what = "not a whole artifact: it has no lineage.json" if folder.is_dir() else "not there"
        raise InputError(
            f"{folder} is {what}.", expected=f"a folder with {type or 'an artifact'}", fix="run the step that makes it"
        )
    record = parse_record(path.read_bytes(), path)
    if record.artifact is None:
        raise DamagedError("The lineage record beside an artifact names none.", where=path)
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
