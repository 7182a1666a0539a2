"""A command on machines of its own: made, or found again, watched until it ends, and ended with whoever waits for it."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal, Protocol

from paligemma.accelerator import ACCELERATOR_VARIABLE
from paligemma.errors import InputError, PaliGemmaError, StoppedError
from paligemma.foreign_json import SMALL_BYTES, parse_json
from paligemma.lineage.attempt import (
    FOLDER,
    MARK_ENDING,
    ROOT_VARIABLE,
    RUN_VARIABLE,
    TASK_VARIABLE,
    place_environment,
    safe_name,
)
from paligemma.lineage.record import parse_record
from paligemma.storage.folders import list_files, read_file
from paligemma.storage.location import parse_location

LAUNCH_VARIABLE = "PALIGEMMA_LAUNCH"
"""JSON that says on which machines a step's work is to run, when that is not the step's own; the pipeline's profile sets it."""
POLL_SECONDS = 10.0

log = logging.getLogger("paligemma.launch")


class LaunchedError(PaliGemmaError):
    """The command did not end well on its machines. It goes on from what it saved when it is started again."""

    exit_code = 4


@dataclass(frozen=True)
class Found:
    """A job as its service describes it; `message` says why it failed."""

    state: Literal["running", "done", "failed"]
    message: str = ""


class Jobs(Protocol):
    """A service that runs jobs. Each call raises `BackendError` or `BackendUnavailableError`; `logs` says where logs are."""

    logs: str

    def find(self, name: str) -> Found | None:
        """A job by its name."""
        ...

    def create(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Makes one."""
        ...

    def remove(self, name: str) -> None:
        """Ends one, so that another may be made of its name."""
        ...


def launched() -> dict | None:
    """What `LAUNCH_VARIABLE` says; None when the work is to be done here."""
    said = os.environ.get(LAUNCH_VARIABLE)
    if not said:
        return None
    where, what = f"${LAUNCH_VARIABLE}", "What says where the work is to be done"
    return parse_json(said, where, what, most=SMALL_BYTES, error=InputError, fix="compile the pipeline again")


def run_elsewhere(machines: Mapping, module: str, flags: Mapping[str, object], output: str) -> None:
    """Runs a step's command on machines of its own and waits until it has ended.

    A job is known by what it makes: a step that is started again finds the one of the attempt before. It is ended when the step
    is told to stop (SIGTERM), so that no accelerator outlives the pipeline that wants it.

    Args:
        machines: from `launched`.
        module: of the command line, e.g. `components.finetune.main`.
        flags: its flags without dashes, and their values: empty ones are left out, those of a list are repeated.
        output: where the artifact is to be.

    Raises:
        LaunchedError: the command failed there.
    """
    jobs = _connect(machines)
    name = f"paligemma-{hashlib.sha256(output.encode()).hexdigest()[:16]}"
    command = ["python", "-m", module, *(word for flag, value in flags.items() for word in _words(flag, value))]
    environment = {**place_environment(), "PALIGEMMA_IMAGE": machines["image"], ACCELERATOR_VARIABLE: machines["accelerator"]}
    with _stoppable():
        found = jobs.find(name)
        if found is not None and found.state == "failed":
            jobs.remove(name)
            found = None
        try:
            if found is None:
                jobs.create(name, command, environment)
            log.info("%s %s; logs: %s%s", "waiting for" if found else "started", name, jobs.logs, name)
            while (found := jobs.find(name)) is None or found.state == "running":
                if found is None:
                    raise LaunchedError(f"{name} is gone.", fix="run the same again")
                time.sleep(POLL_SECONDS)
        except (StoppedError, KeyboardInterrupt):
            jobs.remove(name)
            raise
    if found.state == "failed":
        why = _own_words(environment) or found.message
        raise LaunchedError(f"{module} failed on its machines. {why}", where=name, fix=f"see {jobs.logs}{name}")


def _own_words(environment: Mapping[str, str]) -> str:
    """What the last process there left on record of its failure, if anything."""
    root, run, task = (environment.get(name, "") for name in (ROOT_VARIABLE, RUN_VARIABLE, TASK_VARIABLE))
    if not root:
        return ""
    folder = parse_location(root) / FOLDER / safe_name(run) / safe_name(task)
    try:
        kept = sorted(name for name in list_files(folder) if not name.endswith(MARK_ENDING))
        data = read_file(folder / kept[-1]) if kept else None
        failure = parse_record(data, folder / kept[-1]).error if data else None
    except PaliGemmaError:  # that the job failed is what matters
        return ""
    return failure.message if failure else ""


def _connect(machines: Mapping) -> Jobs:
    if machines["kind"] == "TrainJob":
        from paligemma.launch.trainjob import TrainJobs

        return TrainJobs(machines["spec"], machines["pod"])
    from paligemma.launch.customjob import CustomJobs

    return CustomJobs(machines["job_spec"], machines.get("project", ""), machines.get("location", ""))


def _words(flag: str, value: object) -> list[str]:
    if isinstance(value, list):
        return [word for one in value for word in _words(flag, one)]
    return [] if value is None or value == "" else [f"--{flag}", str(value)]


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turns SIGTERM into an exception, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedError("The step was told to stop (SIGTERM).", fix="run the same command again")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
