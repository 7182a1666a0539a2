"""Compiles a pipeline to the YAML that a KFP cluster runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def compile_pipeline(output: Path, name: Literal["finetune", "prepare"] = "finetune") -> None:
    """Writes a compiled pipeline to `output`; equal sources give equal bytes."""
    from kfp import compiler

    from pipelines.finetune import finetune_pipeline
    from pipelines.prepare import prepare_pipeline

    output.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile({"finetune": finetune_pipeline, "prepare": prepare_pipeline}[name], str(output))
