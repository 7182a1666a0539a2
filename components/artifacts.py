"""KFP artifacts and ours: where an artifact is, and its own record mirrored into KFP's metadata."""

from __future__ import annotations

from pathlib import Path

from kfp import dsl

from paligemma.lineage.artifact import record_of
from paligemma.lineage.attempt import set_place
from paligemma.storage.location import SCHEME


def input_location(artifact: dsl.Artifact | None) -> str:
    """Where an input is: the runner's copy on this machine, else its address in storage; empty for no input."""
    if artifact is None:
        return ""
    in_storage = artifact.uri.startswith(SCHEME) and not Path(artifact.path).exists()
    return artifact.uri if in_storage else artifact.path


def output_location(artifact: dsl.Artifact, artifact_root: str, task: str) -> str:
    """Where an output is to go: where the runner says, or, given a root, to a place of the task's own below it.

    Also has the lineage records of this process name the task, and kept below the root: without one, the folder that the
    runner keeps its runs in.
    """
    if artifact_root:
        artifact.uri = f"{artifact_root.rstrip('/')}/{task}/{artifact.name.rsplit('/', 1)[-1]}"
    location = artifact.uri if artifact_root else artifact.path
    runs_folder, found, _ = location.rpartition(f"/{task.partition('/')[0]}/")
    place_task(artifact_root or (runs_folder if found else ""), task)
    return location


def place_task(root: str, task: str) -> None:
    """Has the lineage records of this process name the task (RUN/TASK), and kept below the root, if there is one."""
    run, _, name = task.partition("/")
    if run and name:
        set_place(run, name, root)


def mirror_record(artifact: dsl.Artifact, location: str) -> None:
    """Copies what identifies an artifact and its making from `lineage.json` into the KFP artifact's metadata.

    A task that KFP serves from its cache shows this metadata too, so that `run` there is the run that did the work.
    """
    record = record_of(location)
    made = record.artifact
    artifact.metadata.update(type=made.type, tree_sha256=made.tree_sha256, bytes=made.bytes, record=record.sha256)
    artifact.metadata.update(run=record.run, task=record.task, attempt=record.attempt)
    artifact.metadata.update(parameters_sha256=record.producer.parameters_sha256)
    known = {"rows": made.rows, "git_sha": record.producer.git_sha, "image": record.producer.image}
    artifact.metadata.update({name: value for name, value in known.items() if value is not None})
