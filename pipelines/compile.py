"""Compiles a pipeline to the YAML that a KFP cluster, or Vertex AI, runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipelines.placement import PlaceTask, placer


def compile_pipeline(
    output: Path, name: Literal["finetune", "prepare"] = "finetune", place_task: PlaceTask | None = None
) -> None:
    """Writes a compiled pipeline to `output`; equal sources give equal bytes.

    Args:
        output: the file.
        name: `finetune` for the DAG, `prepare` for data preparation alone.
        place_task: sets where tasks run; None leaves it open.
    """
    from kfp import compiler

    from pipelines.finetune import make_pipeline
    from pipelines.prepare import make_prepare_pipeline

    output.parent.mkdir(parents=True, exist_ok=True)
    make = make_prepare_pipeline if name == "prepare" else make_pipeline
    compiler.Compiler().compile(make(place_task or placer("local")), str(output))
