"""Vertex AI Pipelines, through its REST API:
https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.pipelineJobs.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from paligemma.errors import InputError
from paligemma.google.vertex import VertexApi
from paligemma.terminal import printable
from pipelines.backends.job import Job, Scheduled, canonical, difference, find_task, no_such_schedule, step_names

_LABEL = "paligemma-finetune"
_DEFAULT_ACCOUNT = "-compute@developer.gserviceaccount.com"


class Vertex:
    """Vertex AI in a project and a region."""

    def __init__(self, project: str, location: str) -> None:
        """Finds credentials."""
        self._api = VertexApi(project, location)
        self._parent = self._api.parent

    def submit(self, job: Job) -> str:
        """Creates a pipeline job."""
        identity = f"paligemma-finetune-{datetime.now(UTC):%Y%m%d%H%M%S}-{secrets.token_hex(3)}"
        made = {"name": f"{self._parent}/pipelineJobs/{identity}"}
        made = self._api.make(f"{self._parent}/pipelineJobs", _pipeline_job(job), made, pipelineJobId=identity)
        return made["name"].rsplit("/", 1)[-1]

    def schedule(self, job: Job, cron: str, dry_run: bool, show: Callable[[str], None]) -> None:
        """Creates a schedule with one run at a time, or updates one of this name if it differs. Vertex AI never catches up."""
        request = {"parent": self._parent, "pipelineJob": _pipeline_job(job)}
        # The first count limits runs started at a time, the second limits active runs.
        counts = {"maxConcurrentRunCount": "1", "maxConcurrentActiveRunCount": "1"}
        wanted = {"displayName": job.name, "cron": cron, **counts, "createPipelineJobRequest": request}
        there = self._find_schedule(job.name)
        before = _asked_for(there, wanted) if there else {}
        changes = difference(before, wanted)
        show(changes)
        if changes and not dry_run:
            if there:
                fields = ",".join(key for key in wanted if canonical(before.get(key)) != canonical(wanted[key]))
                self._api.patch(there["name"], {"name": there["name"], **wanted}, fields)
            else:
                self._api.post(f"{self._parent}/schedules", wanted)

    def status(self, run: str) -> str:
        """The states of the job and its tasks."""
        found = self._api.get(self._job(run))
        lines = [f"{found['displayName']}: {found['state']}"]
        if error := found.get("error"):
            lines.append(f"  {error.get('message', error)}")
        steps = step_names(found["pipelineSpec"])
        tasks = [task for task in found.get("jobDetail", {}).get("taskDetails", ()) if task["taskName"] in steps]
        if named := _run_in_lineage(tasks):
            lines.append(f"  run in lineage: {named}")
        lines += [f"  {task['taskName']}: {task['state']}" for task in tasks]
        return "\n".join(map(printable, lines))

    def cancel(self, run: str) -> None:
        """Cancels the job."""
        self._api.post(f"{self._job(run)}:cancel", {})

    def schedules(self) -> list[Scheduled]:
        """Schedules that have not ended and start this pipeline."""
        found = [one for one in self._api.find(f"{self._parent}/schedules", "schedules", "") if _is_ours(one)]
        return [
            Scheduled(
                one["displayName"],
                one.get("cron", ""),
                str(one.get("state", "")).lower(),
                one.get("nextRunTime", "") if one.get("state") == "ACTIVE" else "",
            )
            for one in found
        ]

    def unschedule(self, name: str) -> None:
        """Deletes the schedule of this name."""
        self._api.delete(self._named(name)["name"])

    def pause(self, name: str) -> None:
        """Pauses the schedule of this name."""
        found = self._named(name)
        if found.get("state") != "PAUSED":
            self._api.post(f"{found['name']}:pause", {})

    def resume(self, name: str) -> None:
        """Resumes the schedule if it is paused; Vertex AI refuses otherwise."""
        found = self._named(name)
        if found.get("state") == "PAUSED":
            self._api.post(f"{found['name']}:resume", {"catchUp": False})

    def logs(self, run: str, task: str) -> list[str]:
        """The Cloud Logging entries of a task's jobs, including failed jobs that were recreated."""
        found = self._api.get(self._job(run))
        steps = step_names(found["pipelineSpec"])
        tasks = [one for one in found.get("jobDetail", {}).get("taskDetails", ()) if one["taskName"] in steps]
        task = find_task(task, run, (one["taskName"] for one in tasks))
        details = [one.get("executorDetail", {}).get("containerDetail", {}) for one in tasks if one["taskName"] == task]
        jobs = [job for one in details for job in (*one.get("failedMainJobs", ()), one.get("mainJob", "")) if job]
        lines = []
        for job in dict.fromkeys(jobs):
            lines += [f"== {job}", *self._api.log_of(job.rpartition("/")[2])]
        return list(map(printable, lines))

    def _named(self, name: str) -> dict:
        found = self._find_schedule(name)
        if found is None:
            raise no_such_schedule(name, (one.name for one in self.schedules()))
        return found

    def _job(self, run: str) -> str:
        if not re.fullmatch(r"[a-z0-9-]{1,128}", run):
            raise InputError(f"{run!r} is not the name of a pipeline job.", fix="see what submit printed")
        return f"{self._parent}/pipelineJobs/{run}"

    def _find_schedule(self, name: str) -> dict | None:
        """The schedule of this name that has not ended."""
        found = self._api.find(f"{self._parent}/schedules", "schedules", f'display_name="{name}"')
        return next((one for one in found if one["displayName"] == name and one.get("state") != "COMPLETED"), None)


def _is_ours(schedule: Mapping) -> bool:
    """Whether a schedule starts this pipeline, and has not ended."""
    labels = schedule.get("createPipelineJobRequest", {}).get("pipelineJob", {}).get("labels", {})
    return labels.get("pipeline") == _LABEL and schedule.get("state") != "COMPLETED"


def _run_in_lineage(tasks: Iterable[Mapping]) -> str | None:
    """The run id in a job's lineage, from the metadata of the first step's artifact."""
    for task in tasks:
        for made in task.get("outputs", {}).values():
            for artifact in made.get("artifacts", ()):
                if run := artifact.get("metadata", {}).get("run"):
                    return str(run)
    return None


def _asked_for(found: Mapping, wanted: Mapping) -> dict:
    """A schedule as requested, without what Vertex AI filled in: fields, labels and its own service account."""
    kept = {}
    for key, value in found.items():
        if key in ("pipelineSpec", "parameterValues"):  # all of it is as requested
            kept[key] = value
        elif key == "serviceAccount":
            kept |= {} if key not in wanted and value.endswith(_DEFAULT_ACCOUNT) else {key: value}
        elif key in wanted:
            kept[key] = _asked_for(value, wanted[key]) if isinstance(value, Mapping) else value
    return kept


def _pipeline_job(job: Job) -> dict:
    (pipeline,) = job.documents
    made = {
        "displayName": job.name,
        "pipelineSpec": pipeline,
        "runtimeConfig": {"gcsOutputDirectory": job.root, "parameterValues": dict(job.parameters)},
        "labels": {"pipeline": _LABEL},
    }
    return made | ({"serviceAccount": job.service_account} if job.service_account else {})
