"""Making an artifact: a folder that appears whole, with its lineage record, or not at all."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from paligemma.errors import DamagedError
from paligemma.lineage.record import (
    RECORD_FILE,
    Artifact,
    Input,
    Producer,
    Record,
    canonical_sha256,
    file_sha256,
    list_files,
    read_record,
    tree_sha256,
)
from paligemma.progress import WorkProgress
from paligemma.storage import cache, gcs, versions
from paligemma.storage.atomic import write_directory
from paligemma.storage.location import GcsLocation, Location, absolute_uri, parse_location

_PACKAGES = ("paligemma", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-cpu", "sentencepiece", "pillow", "kfp")

_verified: dict[tuple[GcsLocation, int], Path] = {}
"""Artifacts whose local copies this process has hashed already, by address and the generation of their record."""


@dataclass
class Draft:
    """An artifact being written: its folder, and facts for its record that are known only at the end."""

    folder: Path
    rows: int | None = None
    device: str | None = None


@contextmanager
def produce(
    output: str | Path, type: str, component: str, parameters: Mapping[str, object], inputs: list[Input]
) -> Iterator[Draft]:
    """Yields a draft whose folder becomes the artifact at `output` when the block ends without an exception.

    Args:
        output: where the artifact is to be: a local folder, or a `gs://` prefix.
        type: its kind, e.g. `records`.
        component: the step that makes it.
        parameters: everything that determines its contents besides the inputs; JSON values, no secrets.
        inputs: what it is made from.
    """
    started, location = time.monotonic(), parse_location(output)

    def write_record(draft: Draft, version: str | None) -> None:
        files = list_files(draft.folder)
        record = Record(
            artifact=Artifact(
                type=type,
                uri=absolute_uri(location),
                version=version,
                tree_sha256=tree_sha256(files),
                bytes=sum(file.bytes for file in files),
                rows=draft.rows,
                files=files,
            ),
            producer=_producer(component, dict(parameters), draft.device),
            inputs=inputs,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 3),
        )
        (draft.folder / RECORD_FILE).write_text(json.dumps(record.model_dump(), indent=2) + "\n")

    if isinstance(location, Path):
        with write_directory(location, may_replace=RECORD_FILE) as folder:
            draft = Draft(folder)
            yield draft
            write_record(draft, None)
        return
    with tempfile.TemporaryDirectory(prefix="paligemma-") as folder:
        draft = Draft(Path(folder))
        yield draft
        write_record(draft, secrets.token_hex(8))
        versions.publish(draft.folder, location, RECORD_FILE, _version_and_files)


def localize(location: str | Path | Location) -> Path:
    """A path on this machine with what is at `location`: itself when it is local, else a cached, verified copy.

    Args:
        location: a local path, or the `gs://` address of an artifact or of an object.

    Raises:
        InputError: there is nothing there.
        DamagedError: it is an artifact that is not whole, or an object whose bytes do not match its checksum.
    """
    location = parse_location(location)
    if isinstance(location, Path):
        return location
    manifest = gcs.stat(location / RECORD_FILE)
    if manifest is None:
        return cache.local_copy(location)
    if (location, manifest.generation) in _verified:
        return _verified[location, manifest.generation]
    record = _parse_record(gcs.read_bytes(location / RECORD_FILE)[0], location)
    folder = cache.cache_folder() / "artifacts" / record.artifact.tree_sha256
    with cache.exclusive(folder):
        if not (folder.is_dir() and _matches(folder, record)):
            with (
                write_directory(folder, may_replace=RECORD_FILE) as partial,
                WorkProgress(f"fetching {location}", "bytes", record.artifact.bytes) as progress,
            ):
                versions.fetch(location, partial, RECORD_FILE, _version_and_files, progress.advance)
                if not _matches(partial, read_record(partial)):
                    raise DamagedError(f"What arrived of {location} is not what was recorded.", fix="run its step again")
    _verified[location, manifest.generation] = folder
    return folder


def input_of(role: str, location: str | Path) -> Input:
    """An input as the record names it: by the artifact's tree hash, or, of a file outside any artifact, by its own.

    Args:
        role: what it is to the step, e.g. `checkpoint`.
        location: an artifact, a file in one, or a plain file; local or `gs://`.

    Raises:
        InputError: a folder that is not a whole artifact.
    """
    path = localize(location).absolute()
    uri = str(path) if isinstance(parse_location(location), Path) else str(location)
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and not (folder / RECORD_FILE).is_file():
        return Input(role=role, uri=uri, sha256=file_sha256(path))
    record = read_record(folder)
    # A cached copy goes by its address in storage, which outlives this machine.
    in_storage = record.artifact.version is not None
    return Input(role=role, uri=record.artifact.uri if in_storage else str(folder), sha256=record.artifact.tree_sha256)


def _parse_record(data: bytes, location: GcsLocation) -> Record:
    try:
        return Record.model_validate_json(data)
    except ValidationError as error:
        message = f"The lineage record is damaged: {error.errors()[0]['msg']}."
        raise DamagedError(message, where=location / RECORD_FILE) from None


def _version_and_files(data: bytes) -> tuple[str, list[str]]:
    artifact = Record.model_validate_json(data).artifact
    return str(artifact.version), [file.path for file in artifact.files]


def _matches(folder: Path, record: Record) -> bool:
    """Whether a folder holds, byte for byte, what the record says."""
    return tree_sha256(list_files(folder)) == record.artifact.tree_sha256


def _producer(component: str, parameters: dict, device: str | None) -> Producer:
    sha, dirty = _git_state()
    return Producer(
        component=component,
        parameters=parameters,
        parameters_sha256=canonical_sha256(parameters),
        image=os.environ.get("PALIGEMMA_IMAGE"),
        git_sha=os.environ.get("PALIGEMMA_GIT_SHA", sha),
        git_dirty=dirty,
        packages=_package_versions(),
        python=platform.python_version(),
        device=device,
    )


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git_state() -> tuple[str | None, bool | None]:
    """Commit of the source tree, and whether it was changed since; nothing outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None
