"""Runs the DAG on this machine with KFP's own local runner: one subprocess a task, no cluster, no container engine."""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from paligemma.artifacts.record import RECORD_FILE, parse_record, read_record
from paligemma.artifacts.recording import FOLDER as RECORDS
from paligemma.artifacts.recording import MARK_ENDING, safe_name
from paligemma.artifacts.store import localize
from paligemma.errors import PaliGemmaError
from paligemma.registry.releases import read_champion_release
from paligemma.runtime.host_memory import use_huge_pages
from paligemma.storage.files import exists
from paligemma.storage.folders import list_files, read_file
from paligemma.storage.location import SCHEME, Location, parse_location
from pipelines.run_log import RunLog

if TYPE_CHECKING:
    from kfp.local import DockerRunner, SubprocessRunner


class StepFailedError(PaliGemmaError):
    """A step of the DAG failed. The exit code is that of the step's error."""


_PAGES = {
    "training data": ("prepare-data", "report.html"),
    "validation data": ("prepare-data-2", "report.html"),
    "fit": ("preflight", "preflight.html"),
    "training": ("finetune", "training.html"),
    "base": ("evaluate", "report.html"),
    "base and tuned": ("evaluate-2", "report.html"),
    "run": ("summarize", "report.html"),
}
_ALWAYS = ("fetch-checkpoint", "finetune", "evaluate", "evaluate-2")


@dataclass(frozen=True)
class RunOutputs:
    """The artifacts of a finished run: local paths or `gs://` addresses. There is no release if the model was not better.

    Attributes:
        root: the root of artifacts and lineage records.
        artifacts: the artifact of each task. One that an earlier run made is still where that run wrote it.
    """

    root: str
    artifacts: Mapping[str, str]
    release: str = ""

    @property
    def checkpoint(self) -> str:
        """The checkpoint that was fine-tuned."""
        return self.artifacts["fetch-checkpoint"]

    @property
    def tuned(self) -> str:
        """The tuned model."""
        return self.artifacts["finetune"]

    @property
    def base_evaluation(self) -> str:
        """The evaluation of the checkpoint."""
        return self.artifacts["evaluate"]

    @property
    def tuned_evaluation(self) -> str:
        """The evaluation of the tuned model, beside the checkpoint's."""
        return self.artifacts["evaluate-2"]

    def pages(self) -> dict[str, str]:
        """Every page of the run by subject; on `gs://`, the page's artifact."""
        places = {name: (self.artifacts[task], page) for name, (task, page) in _PAGES.items() if task in self.artifacts}
        return {
            name: folder if folder.startswith(SCHEME) else f"{folder}/{page}"
            for name, (folder, page) in places.items()
            if folder.startswith(SCHEME) or Path(folder, page).is_file()
        }


def run_pipeline(
    parameters: dict[str, object], root: Path, runner: SubprocessRunner | DockerRunner | None = None
) -> RunOutputs:
    """Runs the DAG. Artifacts go to a separate folder for this run below `root`, and logs to `root/logs`.

    Args:
        parameters: arguments of `finetune_pipeline`.
        root: a local folder.
        runner: one of KFP's local runners; without it, each task is a subprocess.

    Raises:
        StepFailedError: names the failed step, and says why.
    """
    from kfp import local

    from pipelines.finetune import finetune_pipeline

    use_huge_pages(os.environ)
    local.init(
        runner or local.SubprocessRunner(use_venv=False),
        pipeline_root=str(root.absolute()),
        workspace_root=str((root / "workspace").absolute()),
    )
    log = RunLog(root / "logs" / f"{datetime.now():%Y-%m-%d-%H-%M-%S}.log")
    with contextlib.closing(log), contextlib.redirect_stdout(log), warnings.catch_warnings():
        # The runner warns about settings that only matter on clusters: image names, display names, resources.
        warnings.filterwarnings("ignore", module=r"kfp\.local")
        try:
            finetune_pipeline(**parameters)
        except RuntimeError as error:
            raise _failure(log, error) from None
    # A pipeline has no outputs from inside an exit handler, but every task leaves a record of its artifact.
    top = str(parameters.get("artifact_root") or root.absolute()).rstrip("/")
    outputs = RunOutputs(top, _artifacts_of(parse_location(top), log.run))
    without = [task for task in _ALWAYS if task not in outputs.artifacts]
    missing = [location for location in outputs.artifacts.values() if not exists(location, RECORD_FILE)]
    if without or missing:  # do not trust the runner: reported outputs must exist
        where = missing[0] if missing else f"{top}/{log.run}/{without[0]}"
        raise StepFailedError("The run left no whole artifact.", where=where, fix=f"see {log.path}")
    return replace(outputs, release=_release_of(outputs, str(parameters.get("registry", ""))))


def _artifacts_of(root: Location, run: str) -> dict[str, str]:
    """The artifact of each task of a run, by the newest of the task's records."""
    folder, found = root / RECORDS / safe_name(run), {}
    for path in sorted(path for path in list_files(folder) if path.endswith(".json") and not path.endswith(MARK_ENDING)):
        record = parse_record(read_file(folder / path) or b"", folder / path)
        if record.artifact is not None:
            found[record.task] = record.artifact.uri
    return found


def _release_of(outputs: RunOutputs, registry: str) -> str:
    """The champion, if this run made it. The publishing task is in a branch of the DAG, which has no outputs."""
    release = read_champion_release(registry) if registry else None
    if release is None:
        return ""
    made_from = {entry.sha256 for entry in release.record.inputs}
    is_ours = read_record(localize(outputs.tuned_evaluation)).artifact.tree_sha256 in made_from
    return str(release.location) if is_ours else ""


def _failure(log: RunLog, error: RuntimeError) -> StepFailedError:
    why = "\n".join(log.error) if log.error else f"{error}\n{log.tail()}"
    failure = StepFailedError(f"The step {log.failed_task or '?'} failed. {why}\n  log:      {log.path}")
    module, _, name = log.error_kind.rpartition(".")
    if module:
        failure.exit_code = getattr(importlib.import_module(module), name).exit_code
    return failure
