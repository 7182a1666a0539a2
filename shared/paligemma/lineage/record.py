"""The lineage record: its fields, its hashes, and reading it back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from paligemma.errors import DamagedError, InputError

RECORD_FILE = "lineage.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


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
    """What it was made from. `sha256` is an artifact's tree hash, or a file's own."""

    role: str
    uri: str
    sha256: str


class Record(_Part):
    """Contents of `lineage.json`."""

    schema_version: int = 1
    artifact: Artifact
    producer: Producer
    inputs: list[Input]
    finished: str
    seconds: float


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


def list_files(folder: Path) -> list[File]:
    """Every file of an artifact but its record, sorted by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD_FILE)
    return [File(path=p.relative_to(folder).as_posix(), bytes=p.stat().st_size, sha256=file_sha256(p)) for p in paths]


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
    try:
        record = Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DamagedError(f"The lineage record is damaged: {error.errors()[0]['msg']}.", where=path) from None
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
