"""Vertex AI Pipelines, by its REST API: https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.pipelineJobs."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from paligemma.errors import InputError
from paligemma.launch.vertex import VertexApi
from paligemma.terminal import printable
from pipelines.backends.job import Job, canonical, difference, step_names

_DEFAULT_ACCOUNT = "-compute@developer.gserviceaccount.com"


class Vertex:
    """Vertex AI in a project and a region."""

    def __init__(self, project: str, location: str) -> None:
        """Finds credentials."""
        self._api = VertexApi(project, location)
        self._parent = self._api.parent

    def submit(self, job: Job) -> str:
        """Makes a pipeline job."""
        identity = f"paligemma-finetune-{datetime.now(UTC):%Y%m%d%H%M%S}-{secrets.token_hex(3)}"
        made = {"name": f"{self._parent}/pipelineJobs/{identity}"}
        made = self._api.make(f"{self._parent}/pipelineJobs", _pipeline_job(job), made, pipelineJobId=identity)
        return made["name"].rsplit("/", 1)[-1]

    def schedule(self, job: Job, cron: str, dry_run: bool, show: Callable[[str], None]) -> None:
        """Makes a schedule, one run at a time, or changes the one of this name if it differs. Vertex never catches up."""
        request = {"parent": self._parent, "pipelineJob": _pipeline_job(job)}
        # The first count limits how many are started at a time, and the second one how many are under way.
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
        """The job's state and that of its tasks."""
        found = self._api.get(self._job(run))
        lines = [f"{found['displayName']}: {found['state']}"]
        if error := found.get("error"):
            lines.append(f"  {error.get('message', error)}")
        steps = step_names(found["pipelineSpec"])
        tasks = [task for task in found.get("jobDetail", {}).get("taskDetails", ()) if task["taskName"] in steps]
        if run := _run_in_lineage(tasks):
            lines.append(f"  run in lineage: {run}")
        lines += [f"  {task['taskName']}: {task['state']}" for task in tasks]
        return "\n".join(map(printable, lines))

    def cancel(self, run: str) -> None:
        """Cancels the job."""
        self._api.post(f"{self._job(run)}:cancel", {})

    def _job(self, run: str) -> str:
        if not re.fullmatch(r"[a-z0-9-]{1,128}", run):
            raise InputError(f"{run!r} is not the name of a pipeline job.", fix="see what submit printed")
        return f"{self._parent}/pipelineJobs/{run}"

    def _find_schedule(self, name: str) -> dict | None:
        """The schedule of this name that has not ended."""
        found = self._api.find(f"{self._parent}/schedules", "schedules", f'display_name="{name}"')
        return next((one for one in found if one["displayName"] == name and one.get("state") != "COMPLETED"), None)


def _run_in_lineage(tasks: Iterable[Mapping]) -> str | None:
    """The number by which a job's steps know their run, from the metadata of what the first of them made."""
    for task in tasks:
        for made in task.get("outputs", {}).values():
            for artifact in made.get("artifacts", ()):
                if run := artifact.get("metadata", {}).get("run"):
                    return str(run)
    return None


def _asked_for(found: Mapping, wanted: Mapping) -> dict:
    """What a schedule was asked to be, without what Vertex AI filled in besides: fields, labels and its own service account."""
    kept = {}
    for key, value in found.items():
        if key in ("pipelineSpec", "parameterValues"):  # all of it was ours
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
        "labels": {"pipeline": "paligemma-finetune"},
    }
    return made | ({"serviceAccount": job.service_account} if job.service_account else {})
