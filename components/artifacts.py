"""KFP artifacts and ours: where an artifact is, and its own record mirrored into KFP's metadata."""

from __future__ import annotations

from pathlib import Path

from kfp import dsl

from paligemma.lineage.artifact import localize
from paligemma.lineage.record import read_record
from paligemma.storage.location import SCHEME


def input_location(artifact: dsl.Artifact | None) -> str:
    """Where an input is: the runner's copy on this machine, else its address in storage; empty for no input."""
    if artifact is None:
        return ""
    in_storage = artifact.uri.startswith(SCHEME) and not Path(artifact.path).exists()
    return artifact.uri if in_storage else artifact.path


def output_location(artifact: dsl.Artifact, artifact_root: str, task: str) -> str:
    """Where an output is to go: where the runner says, or, given a root, to a place of the task's own below it."""
    if not artifact_root:
        return artifact.path
    artifact.uri = f"{artifact_root.rstrip('/')}/{task}/{artifact.name.rsplit('/', 1)[-1]}"
    return artifact.uri


def mirror_record(artifact: dsl.Artifact, location: str) -> None:
    """Copies digest, size and rows from `lineage.json` into the KFP artifact's metadata."""
    record = read_record(localize(location)).artifact
    artifact.metadata.update(type=record.type, tree_sha256=record.tree_sha256, bytes=record.bytes)
    if record.rows is not None:
        artifact.metadata["rows"] = record.rows
