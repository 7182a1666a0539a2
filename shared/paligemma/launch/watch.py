"""Runs a command as a separate job: creates or finds the job, watches it, and ends it when its step ends."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping

from paligemma.artifacts.record import Failure, parse_record
from paligemma.artifacts.recording import (
    FOLDER,
    MARK_ENDING,
    ROOT_VARIABLE,
    RUN_VARIABLE,
    TASK_VARIABLE,
    place_environment,
    safe_name,
)
from paligemma.errors import InputError, PaliGemmaError, StoppedError
from paligemma.foreign_json import SMALL_BYTES, parse_json
from paligemma.launch.customjob import CustomJobs
from paligemma.launch.heartbeat import HEARTBEAT_VARIABLE, Heartbeat
from paligemma.launch.jobs import Jobs, JobState
from paligemma.launch.trainjob import TrainJobs
from paligemma.runtime.accelerator import ACCELERATOR_VARIABLE
from paligemma.runtime.signals import sigterm_raises
from paligemma.storage.folders import list_files, read_file
from paligemma.storage.location import parse_location

LAUNCH_VARIABLE = "PALIGEMMA_LAUNCH"
"""JSON that describes the separate job for a step's work; set by the pipeline's profile."""
POLL_SECONDS = 10.0
PAUSE_SECONDS = 30.0
"""Seconds before a failed job is recreated."""

_FINAL = ("InputError", "DamagedError", "DivergedError")
"""Kinds of failure that another try would repeat."""

log = logging.getLogger("paligemma.launch")


class LaunchedError(PaliGemmaError):
    """The job failed. Started again, the command continues from its saved state."""

    exit_code = 4


def launched() -> dict | None:
    """The value of `LAUNCH_VARIABLE`; None if the work runs here."""
    said = os.environ.get(LAUNCH_VARIABLE)
    if not said:
        return None
    where, what = f"${LAUNCH_VARIABLE}", "The description of the separate job"
    return parse_json(said, where, what, most=SMALL_BYTES, error=InputError, fix="compile the pipeline again")


def run_elsewhere(machines: Mapping, module: str, flags: Mapping[str, object], output: str) -> None:
    """Runs a step's command as a separate job and waits until it ends; recreates a job that fails.

    A job is named by its output, so a restarted step finds the job of its previous attempt. The job is ended when the step is
    told to stop (SIGTERM), and ends itself when the step is gone. So no accelerator outlives its pipeline.

    Args:
        machines: the value from `launched`.
        module: the module to run, e.g. `components.finetune`.
        flags: its flags without dashes, with their values. Empty values are left out; a list repeats its flag.
        output: where the step writes its artifact.

    Raises:
        LaunchedError: the job failed in every allowed try, or for a reason that another try would not fix.
    """
    jobs = _connect(machines)
    name = f"paligemma-{hashlib.sha256(output.encode()).hexdigest()[:16]}"
    command = ["python", "-m", module, *(word for flag, value in flags.items() for word in _words(flag, value))]
    environment = {**place_environment(), "PALIGEMMA_IMAGE": machines["image"], ACCELERATOR_VARIABLE: machines["accelerator"]}
    heart = Heartbeat.open(environment.get(ROOT_VARIABLE, ""), name)
    if heart.place:
        environment[HEARTBEAT_VARIABLE] = heart.place
    with sigterm_raises():
        job = ""
        try:
            job = heart.job or jobs.search(name) or ""
            found = jobs.find(job) if job else None
            if found is not None and found.state == "running":
                heart.beat(now=True)
                jobs.adopt(job)
                log.info("waiting for %s; logs: %s%s", job, jobs.logs, name)
            while found is None or found.state != "done":
                if found is not None and found.state == "running":
                    time.sleep(POLL_SECONDS)
                    heart.beat()
                else:
                    if heart.tries:
                        _check_another_try(found, heart.tries, machines["retries"], module, environment, f"{jobs.logs}{name}")
                        time.sleep(PAUSE_SECONDS)
                    if found is not None:
                        jobs.remove(job)
                    heart.tries += 1
                    heart.beat(now=True)  # the job must find a heartbeat at its start
                    job = jobs.create(name, command, environment)
                    heart.made(job)
                    log.info("started %s, try %d; logs: %s%s", job, heart.tries, jobs.logs, name)
                found = jobs.find(job)
        except (StoppedError, KeyboardInterrupt):
            if job:
                jobs.remove(job)
            raise
    heart.remove()


def _check_another_try(
    found: JobState | None, tries: int, retries: int, module: str, environment: Mapping[str, str], logs: str
) -> None:
    """Raises LaunchedError if a failed or vanished job should not be recreated."""
    failure = _last_failure(environment)
    why = failure.message if failure else found.message if found else "It is gone."
    final = failure is not None and failure.kind in _FINAL
    if final or tries > retries:
        times = "" if final or tries == 1 else f", at the last of {tries} tries"
        raise LaunchedError(
            f"{module} failed on its machines{times}. {why}", where=environment.get(RUN_VARIABLE), fix=f"see {logs}"
        )
    log.warning("%s failed on its machines, try %d of %d: %s", module, tries, retries + 1, why)


def _last_failure(environment: Mapping[str, str]) -> Failure | None:
    """The failure in the job's last record; None if the job was killed or left no record."""
    root, run, task = (environment.get(name, "") for name in (ROOT_VARIABLE, RUN_VARIABLE, TASK_VARIABLE))
    if not root:
        return None
    folder = parse_location(root) / FOLDER / safe_name(run) / safe_name(task)
    try:
        last = max(list_files(folder), default=MARK_ENDING)
        data = None if last.endswith(MARK_ENDING) else read_file(folder / last)
        return parse_record(data, folder / last).error if data else None
    except PaliGemmaError:  # the job's failure is what matters
        return None


def _connect(machines: Mapping) -> Jobs:
    if machines["kind"] == "TrainJob":
        return TrainJobs(machines["spec"], machines["pod"])
    return CustomJobs(machines["job_spec"], machines.get("project", ""), machines.get("location", ""))


def _words(flag: str, value: object) -> list[str]:
    if isinstance(value, list):
        return [word for one in value for word in _words(flag, one)]
    return [] if value is None or value == "" else [f"--{flag}", str(value)]
