"""Writes an artifact: a folder that appears complete, with its lineage record, or not at all."""

from __future__ import annotations

import json
import math
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from paligemma.artifacts.record import (
    RECORD_FILE,
    Artifact,
    Input,
    MadeRecord,
    file_sha256,
    list_files,
    parse_record,
    parse_record_of_artifact,
    read_record,
    render_record,
    tree_sha256,
)
from paligemma.artifacts.recording import Attempt, attempt
from paligemma.artifacts.root_links import connect
from paligemma.errors import DamagedError, InputError
from paligemma.foreign_json import DOCUMENT_BYTES, SMALL_BYTES, parse_json, read_bounded
from paligemma.progress import WorkProgress
from paligemma.storage import atomic, cache, folders, gcs, versions
from paligemma.storage.atomic import write_directory
from paligemma.storage.files import exists, write_file
from paligemma.storage.location import GcsLocation, Location, absolute_uri, parse_location

LOCATION = "location"
LOCATION_FILE = "location.json"
"""In a task's folder without an artifact: says where the task's artifact is."""


@dataclass(frozen=True)
class _Copy:
    generation: int
    folder: Path
    record: MadeRecord


_verified: dict[GcsLocation, _Copy] = {}
"""Local copies that this process has hashed already, each with the generation of its record in storage."""


@dataclass
class Draft:
    """An artifact being written: its folder, and the facts for its record that are known only at the end.

    Attributes:
        metrics: figures that compare runs; non-finite figures are left out.
        hashes: sha256 by path of files that were hashed during writing.
    """

    folder: Path
    rows: int | None = None
    device: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)


@contextmanager
def produce(
    output: str | Path, type: str, component: str, parameters: Mapping[str, object], inputs: list[Input]
) -> Iterator[Draft]:
    """Yields a draft, whose folder becomes the artifact at `output` if the block raises nothing.

    The record is written last: first beside the artifact, then below the root's `lineage`.

    Args:
        output: destination: a local folder or a `gs://` prefix.
        type: its kind, e.g. `records`.
        component: the step that makes the artifact.
        parameters: everything besides the inputs that determines the contents; JSON values, no secrets.
        inputs: the artifacts and files that it is made from.
    """
    location = parse_location(output)
    with attempt(component, output, parameters) as current:
        current.parameters, current.inputs = dict(parameters), list(inputs)
        if isinstance(location, Path):
            if current.in_pipeline and not exists(location, RECORD_FILE):
                # An earlier attempt of this task may have taken over what is gone since.
                folders.remove_file(location / LOCATION_FILE)
            with write_directory(location, may_replace=RECORD_FILE, files_of=_own_files) as folder:
                draft = Draft(folder)
                yield draft
                record = _write_record(current, draft, type, component, location, None)
            current.keep(record, location)
            current.made = record
            connect(current)
            return
        with tempfile.TemporaryDirectory(prefix="paligemma-") as folder:
            draft = Draft(Path(folder))
            yield draft
            record = _write_record(current, draft, type, component, location, secrets.token_hex(8))
            versions.publish(draft.folder, location, RECORD_FILE, _version_and_files)
            current.keep(record, draft.folder)
            current.made = record
            connect(current)


def localize(location: str | Path | Location) -> Path:
    """A local path with the contents of `location`: itself if local, else a cached, verified copy.

    Args:
        location: a local path, or the `gs://` address of an artifact or of an object; or the folder of a task that took over
            an artifact.

    Raises:
        InputError: nothing exists at the location.
        DamagedError: the artifact is incomplete, or an object's bytes do not match its checksum.
    """
    location = artifact_at(location)
    if isinstance(location, Path):
        return location
    manifest = gcs.stat(location / RECORD_FILE)
    if manifest is None:
        return cache.local_copy(location)
    if location in _verified and _verified[location].generation == manifest.generation:
        return _verified[location].folder
    data, manifest = gcs.read_bytes(location / RECORD_FILE, most=DOCUMENT_BYTES)
    record, _ = _of_version(data, location / RECORD_FILE)
    folder = cached_folder(record)
    with cache.exclusive_folder(folder, RECORD_FILE):
        if folder.is_dir() and _matches(folder, record):
            atomic.write_file(folder / RECORD_FILE, data)  # another run may have made the same files
        else:
            with (
                write_directory(folder, may_replace=RECORD_FILE) as partial,
                WorkProgress(f"fetching {location}", "bytes", record.artifact.bytes) as progress,
            ):
                versions.fetch(location, partial, RECORD_FILE, _version_and_files, progress.advance)
                if not _matches(partial, read_record(partial)):
                    raise DamagedError(f"The download of {location} does not match its record.", fix="run its step again")
        record = read_record(folder)
    _verified[location] = _Copy(manifest.generation, folder, record)
    return folder


def cached_folder(record: MadeRecord) -> Path:
    """Where `localize` puts an artifact from storage."""
    return cache.cache_folder() / "artifacts" / record.artifact.tree_sha256


def localize_recorded(location: Location, record: MadeRecord) -> Path:
    """`localize` for an artifact whose record was read before.

    Raises:
        DamagedError: another artifact has taken its place since, or it is damaged.
    """
    folder = localize(location)
    if not isinstance(location, Path) and folder != cached_folder(record):
        raise DamagedError(
            "The artifact was replaced while it was in use.",
            where=location,
            expected=f"the one with the tree hash {record.artifact.tree_sha256}",
            fix="run the step again",
        )
    return folder


def small_files(location: GcsLocation, record: MadeRecord, names: Iterable[str]) -> Path:
    """A local folder with those of the named files that an artifact in storage has; no other file is fetched."""
    folder = cache.cache_folder() / "described" / record.artifact.tree_sha256
    for name in names:
        if record.artifact.file(name) is not None:
            file_of(record, name, folder)
    return folder


def point_to(folder: Location, location: str, record: MadeRecord) -> None:
    """Writes into the folder of a task where the task's artifact is."""
    said = {LOCATION: location, "tree_sha256": record.artifact.tree_sha256, "record": record.sha256}
    write_file(folder / LOCATION_FILE, (json.dumps(said, indent=2) + "\n").encode())


def artifact_at(location: str | Path | Location) -> Location:
    """The location of an artifact: the given one, unless that is the folder of a task that took over another one's artifact.

    Raises:
        DamagedError: the folder does not say where the artifact is.
    """
    location = parse_location(location)
    if exists(location, RECORD_FILE):
        return location
    where = location / LOCATION_FILE
    data = folders.read_file(where)
    if data is None:
        return location
    named = parse_json(data, where, "The artifact's location", most=SMALL_BYTES, fix="run the pipeline again").get(LOCATION)
    if not (isinstance(named, str) and named):
        raise DamagedError(f"{LOCATION_FILE} names no location.", where=where, fix="run the pipeline again")
    return parse_location(named)


def record_of(location: str | Location, type: str | None = None) -> MadeRecord:
    """The record of the artifact at a location, local or on `gs://`, of a type or of any. The artifact itself is not fetched.

    Raises:
        InputError: no artifact of this type is there.
        DamagedError: the record is damaged.
    """
    parsed = artifact_at(location)
    if isinstance(parsed, Path):
        return read_record(parsed, type)
    data = folders.read_file(parsed / RECORD_FILE)
    if data is None:
        raise InputError(
            f"{parsed} is not an artifact.", expected=f"a prefix with {type or 'an artifact'} and its lineage.json"
        )
    record, _ = _of_version(data, parsed / RECORD_FILE)
    if type not in (None, record.artifact.type):
        raise InputError(f"{parsed} holds {record.artifact.type}.", expected=type, fix="pass another location")
    return record


def file_of(record: MadeRecord, path: str, folder: Path) -> Path:
    """A local path with the contents of one file of an artifact, without the artifact's other files.

    Args:
        record: the artifact's record.
        path: the file, relative to the artifact.
        folder: where a file from `gs://` is put, if it is not there.

    Raises:
        InputError: the file is gone.
        DamagedError: the artifact has no such file, or it is not what was recorded.
    """
    location, expected = parse_location(record.artifact.uri), record.artifact.file(path)
    if expected is None:
        raise DamagedError(f"The artifact has no file {path}.", where=location)
    if isinstance(location, Path):
        return location / path
    target = folder / path
    if not (target.is_file() and file_sha256(target) == expected.sha256):
        if record.artifact.version is None:
            raise DamagedError("The record is of an artifact on a disk.", where=location)
        gcs.download(versions.folder_of(location, record.artifact.version) / path, target)
        if file_sha256(target) != expected.sha256:
            raise DamagedError(f"The download of {path} does not match the artifact's record.", where=location)
    return target


def input_of(role: str, location: str | Location) -> Input:
    """An input as a record names it: by the artifact's tree hash, or by the file's own hash outside any artifact.

    Args:
        role: the input's role in the step, e.g. `checkpoint`.
        location: an artifact, a file in one, or a plain file; local or `gs://`.

    Raises:
        InputError: the folder is not a complete artifact.
    """
    parsed = artifact_at(location)
    if not isinstance(parsed, Path) and parsed not in _verified and exists(parsed, RECORD_FILE):
        record = record_of(parsed)  # says all that is named here: the artifact itself is fetched by who reads it
        return _as_input(role, absolute_uri(parsed), record)
    path = localize(parsed).absolute()
    in_artifact = (path if path.is_dir() else path.parent) / RECORD_FILE
    if not path.is_dir() and not in_artifact.is_file():
        return Input(role=role, uri=absolute_uri(parsed), sha256=file_sha256(path))
    if isinstance(parsed, Path):
        record, uri = read_record(in_artifact.parent), str(in_artifact.parent)
        if record.artifact.version is not None:
            uri = record.artifact.uri  # a cached copy is named by its address in storage, which outlives this machine
    else:
        if path.is_dir() and parsed not in _verified:
            raise InputError(f"{parsed} is not an artifact.", expected="a prefix with lineage.json")
        record = _verified[parsed].record if path.is_dir() else read_record(in_artifact.parent)
        uri = absolute_uri(parsed) if path.is_dir() else record.artifact.uri  # its current address, even after a copy
    return _as_input(role, uri, record)


def _as_input(role: str, uri: str, record: MadeRecord) -> Input:
    return Input(role=role, uri=uri, sha256=record.artifact.tree_sha256, record=record.sha256, run=record.run)


def _own_files(folder: Path) -> list[str]:
    """The artifact's files in a folder, according to its record.

    Raises:
        InputError: the record cannot be read, so the artifact's files are unknown.
    """
    path = folder / RECORD_FILE
    try:
        artifact = parse_record(read_bounded(path, "The lineage record"), path).artifact
    except DamagedError as error:
        raise InputError(
            f"The artifact in {folder} cannot be replaced, as its record is unreadable: {error.what}",
            where=path,
            expected="the record that the artifact was written with",
            fix="choose another output path, or look through it, and remove it yourself",
        ) from None
    return [RECORD_FILE, *(file.path for file in (artifact.files if artifact else []))]


def _write_record(
    current: Attempt, draft: Draft, type: str, component: str, location: Location, version: str | None
) -> MadeRecord:
    files = list_files(draft.folder, draft.hashes)
    current.device = draft.device
    record = current.record(
        "succeeded",
        component=component,
        artifact=Artifact(
            type=type,
            uri=absolute_uri(location),
            version=version,
            tree_sha256=tree_sha256(files),
            bytes=sum(file.bytes for file in files),
            rows=draft.rows,
            files=files,
        ),
        metrics={name: float(value) for name, value in draft.metrics.items() if math.isfinite(value)},
    )
    (draft.folder / RECORD_FILE).write_bytes(render_record(record))
    return MadeRecord.model_validate(record.model_dump())


def _of_version(data: bytes, where: object) -> tuple[MadeRecord, str]:
    """Parses the record beside an artifact in Cloud Storage, and the artifact's version.

    Raises:
        DamagedError: the data are not a record, or not an artifact's.
    """
    record = parse_record_of_artifact(data, where)
    if record.artifact.version is None:
        raise DamagedError(
            "The lineage record is of an artifact on a disk.",
            where=where,
            expected="one that a step wrote to gs://",
            fix="copy the folder to this machine, and pass that",
        )
    return record, record.artifact.version


def _version_and_files(data: bytes) -> tuple[str, list[str]]:
    record, version = _of_version(data, RECORD_FILE)
    return version, [file.path for file in record.artifact.files]


def _matches(folder: Path, record: MadeRecord) -> bool:
    """Whether a folder's contents match the record byte for byte."""
    return tree_sha256(list_files(folder)) == record.artifact.tree_sha256
