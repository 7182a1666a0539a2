"""Making an artifact: a folder that appears whole, with its lineage record, or not at all."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

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
from paligemma.storage.atomic import write_directory

_PACKAGES = ("paligemma", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-cpu", "sentencepiece", "pillow", "kfp")


@dataclass
class Draft:
    """An artifact being written: its folder, and facts for its record that are known only at the end."""

    folder: Path
    rows: int | None = None
    device: str | None = None


@contextmanager
def produce(
    path: str | Path, type: str, component: str, parameters: Mapping[str, object], inputs: list[Input]
) -> Iterator[Draft]:
    """Yields a draft whose folder becomes the artifact at `path` when the block ends without an exception.

    Args:
        path: where the artifact is to be.
        type: its kind, e.g. `records`.
        component: the step that makes it.
        parameters: everything that determines its contents besides the inputs; JSON values, no secrets.
        inputs: what it is made from.
    """
    started = time.monotonic()
    with write_directory(path, may_replace=RECORD_FILE) as folder:
        draft = Draft(folder)
        yield draft
        files = list_files(folder)
        record = Record(
            artifact=Artifact(
                type=type,
                uri=str(Path(path).absolute()),
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
        (folder / RECORD_FILE).write_text(json.dumps(record.model_dump(), indent=2) + "\n")


def input_of(role: str, path: str | Path) -> Input:
    """An input as the record names it: by the artifact's tree hash, or, of a file outside any artifact, by its own.

    Args:
        role: what it is to the step, e.g. `checkpoint`.
        path: an artifact's folder, a file in one, or a plain file.

    Raises:
        InputError: a folder that is not a whole artifact.
    """
    path = Path(path).absolute()
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and not (folder / RECORD_FILE).is_file():
        return Input(role=role, uri=str(path), sha256=file_sha256(path))
    return Input(role=role, uri=str(folder), sha256=read_record(folder).artifact.tree_sha256)


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
