"""Compiles the DAG to the YAML that a KFP cluster runs."""

from __future__ import annotations

from pathlib import Path


def compile_pipeline(output: Path) -> None:
    """Writes the compiled pipeline to `output`; equal sources give equal bytes."""
    from kfp import compiler

    from pipelines.finetune import finetune_pipeline

    output.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(finetune_pipeline, str(output))
