"""Runs the DAG on this machine with KFP's own local runner: one subprocess a task, no cluster, no container engine."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from paligemma.errors import PaliGemmaError

log = logging.getLogger("paligemma.pipeline")


class StepFailedError(PaliGemmaError):
    """A step of the DAG failed; its own message is above this one."""


@dataclass(frozen=True)
class RunOutputs:
    """Folders of a finished run's artifacts."""

    tuned: Path
    base_evaluation: Path
    tuned_evaluation: Path


def run_pipeline(parameters: dict[str, object], root: Path) -> RunOutputs:
    """Runs the DAG; its artifacts go below `root`, in a folder of this run's own.

    Args:
        parameters: arguments of `finetune_pipeline`.
        root: a local folder.

    Raises:
        StepFailedError: names the step that failed.
    """
    from kfp import local

    from pipelines.finetune import Outputs, finetune_pipeline

    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(root.absolute()),
        workspace_root=str((root / "workspace").absolute()),
    )
    try:
        task = finetune_pipeline(**parameters)
    except RuntimeError as error:
        raise StepFailedError(
            f"The pipeline did not finish: {error}", fix="see the failed step's message above, then run again"
        ) from None
    outputs = RunOutputs(**{name: Path(task.outputs[name].path) for name in Outputs._fields})
    missing = [path for path in vars(outputs).values() if not path.is_dir()]
    if missing:  # the runner's word is not enough: what it reports as done must be there
        raise StepFailedError(f"The run left no {missing[0].name} at {missing[0]}.")
    return outputs
