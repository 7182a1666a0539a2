"""Connects KFP artifacts to ours: locates an artifact, and mirrors its record into KFP's metadata.

With `artifact_root`, an artifact goes to our own location, and KFP's artifact only names it. Its `uri` stays the runner's:
KFP's launcher fails a task whose artifact leaves the pipeline root, and copies everything below an input's `uri` onto every
pod's disk (uploadOutputArtifacts and downloadArtifacts of backend/src/v2/component/launcher_v2.go).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from kfp import dsl

from paligemma.artifacts.record import RECORD_FILE, parse_record
from paligemma.artifacts.recording import safe_name, set_place
from paligemma.artifacts.store import LOCATION, artifact_at, file_of, point_to, record_of
from paligemma.errors import DamagedError
from paligemma.safe_names import parse_relative_path
from paligemma.storage.folders import read_file
from paligemma.storage.location import SCHEME, parse_location


def input_location(artifact: dsl.Artifact | None, sha256: str = "") -> str:
    """The location of an input: as its step recorded it, else the runner's local copy; empty without an input.

    Args:
        artifact: the input.
        sha256: its tree hash, as output by its step; empty: not compared.

    Raises:
        DamagedError: another artifact is at its location.
    """
    if artifact is None:
        return ""
    location = _location(artifact)
    if sha256:
        place = parse_location(location) / RECORD_FILE
        data = read_file(place)
        made = parse_record(data, place).artifact if data else None
        if made is None or made.tree_sha256 != sha256:
            raise DamagedError(
                "Another artifact has taken the place of what its step made.",
                where=location,
                expected=f"tree_sha256 {sha256}",
                fix="run the pipeline again",
            )
    return location


def _location(artifact: dsl.Artifact) -> str:
    if location := artifact.metadata.get(LOCATION):
        return str(location)
    folder = Path(artifact.path or "")
    if (found := artifact_at(folder)) != folder:  # some runners pass on files but no metadata
        return str(found)
    in_storage = artifact.uri.startswith(SCHEME) and not Path(artifact.path).exists()
    return artifact.uri if in_storage else artifact.path


def output_location(artifact: dsl.Artifact, artifact_root: str, run: str, task: str, fresh: bool = False) -> str:
    """The location for an output: the runner's, or, given a root, a separate location for the task below it.

    Also makes this process's lineage records name the task, and stores them below the root; without a root, in the runner's
    folder of runs. There too are earlier results, which the task takes if nothing has changed and `fresh` is false.
    """
    run = run_name(artifact, run)
    name = parse_relative_path(artifact.name.rsplit("/", 1)[-1], "The artifact's name")
    location = f"{artifact_root.rstrip('/')}/{run}/{safe_name(task)}/{name}" if artifact_root else artifact.path
    runs_folder, found, _ = location.rpartition(f"/{run}/")
    place_task(artifact_root or (runs_folder if found else ""), run, task, fresh)
    return location


def state_location(artifact_root: str) -> str:
    """Root for what a task keeps until it is done, so that it can go on after a stop; empty: beside the output."""
    return f"{artifact_root.rstrip('/')}/state" if artifact_root else ""


def run_name(artifact: dsl.Artifact, run: str) -> str:
    """The name of an output's run: the cluster's run id, or the local runner's folder name."""
    return safe_name(run if "://" in artifact.uri else Path(artifact.path).parts[-3])


def place_task(root: str, run: str, task: str, fresh: bool = False) -> None:
    """Makes this process's lineage records name the task, and stores them below the root if given."""
    if run and task:
        set_place(run, task, root, reuse=not fresh)


def copy_file(location: str, name: str, path: str) -> bool:
    """Copies one file of an artifact to a runner's output. Of an artifact on `gs://`, nothing else is fetched.

    Returns:
        Whether the artifact has the file.
    """
    found, record = artifact_at(location), record_of(location)
    if record.artifact.file(name) is None:
        return False
    with tempfile.TemporaryDirectory(prefix="paligemma-") as folder:
        shutil.copyfile(found / name if isinstance(found, Path) else file_of(record, name, Path(folder)), path)
    return True


def mirror_record(artifact: dsl.Artifact, location: str, sha256_file: str = "") -> None:
    """Copies an artifact's identity and origin from `lineage.json` into the KFP artifact's metadata.

    Also writes the tree hash to the output parameter `sha256_file`, which later steps take as a parameter.

    A task from KFP's cache shows the same metadata, so its `run` is the run that did the work.
    """
    record = record_of(location)
    made = record.artifact
    artifact.metadata.update(type=made.type, tree_sha256=made.tree_sha256, bytes=made.bytes, record=record.sha256)
    artifact.metadata.update(run=record.run, task=record.task, attempt=record.attempt)
    artifact.metadata.update(parameters_sha256=record.producer.parameters_sha256)
    known = {"rows": made.rows, "git_sha": record.producer.git_sha, "image": record.producer.image}
    artifact.metadata.update({name: value for name, value in known.items() if value is not None})
    if sha256_file:
        Path(sha256_file).write_text(made.tree_sha256)
    if location != artifact.path:
        artifact.metadata[LOCATION] = location
        point_to(Path(artifact.path), location, record)
