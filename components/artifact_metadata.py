"""Mirrors an artifact's own record into its KFP metadata, so that the KFP page shows its digest."""

from __future__ import annotations

from kfp import dsl

from paligemma.lineage.record import read_record


def mirror_record(artifact: dsl.Artifact) -> None:
    """Copies digest, size and rows from `lineage.json` into the KFP artifact's metadata."""
    record = read_record(artifact.path).artifact
    artifact.metadata.update(type=record.type, tree_sha256=record.tree_sha256, bytes=record.bytes)
    if record.rows is not None:
        artifact.metadata["rows"] = record.rows
