"""Custom jobs on Vertex AI, for TPUs or several hosts with GPUs. A pipeline's step creates and watches them.

https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.customJobs. Each replica finds the others through
CLUSTER_SPEC, which `paligemma.runtime.processes` reads.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence

from paligemma.errors import InputError
from paligemma.google.rest import BackendError
from paligemma.google.vertex import VertexApi
from paligemma.launch.jobs import JobState, State

PROJECT_VARIABLE, REGION_VARIABLE = "CLOUD_ML_PROJECT_ID", "CLOUD_ML_REGION"
"""Variables in which Vertex AI tells a container its project and region."""

_STATES: dict[str, State] = {"JOB_STATE_SUCCEEDED": "done"}
_STATES |= {f"JOB_STATE_{name}": "failed" for name in ("FAILED", "CANCELLED", "CANCELLING", "EXPIRED", "PAUSED")}


class CustomJobs:
    """Custom jobs in a project and region, all made from one specification."""

    def __init__(self, spec: Mapping, project: str = "", location: str = "") -> None:
        """Finds credentials.

        Args:
            spec: a CustomJobSpec with protocol buffer field names, as in Google's pipeline components.
            project: the project; empty: the step's own.
            location: the region; empty: the step's own.

        Raises:
            InputError: the project or region is unknown.
        """
        project, location = project or os.environ.get(PROJECT_VARIABLE, ""), location or os.environ.get(REGION_VARIABLE, "")
        if not project or not location:
            raise InputError(
                "The custom job's project or region is missing.",
                expected="--project and --location, when the pipeline is compiled",
            )
        self._api, self._spec = VertexApi(project, location), spec
        self._path = f"{self._api.parent}/customJobs"
        self.logs = "https://console.cloud.google.com/vertex-ai/training/custom-jobs, job "

    def search(self, name: str) -> str | None:
        """The last job with this name. The list lags behind, so it is not used for jobs that were just made."""
        found = self._api.find(self._path, "customJobs", f'display_name="{name}"')
        return max(found, key=lambda job: job["createTime"], default={"name": None})["name"]

    def find(self, job: str) -> JobState | None:
        """The state of a job, by its full name."""
        try:
            found = self._api.get(job)
        except BackendError as error:
            if error.status == 404:
                return None
            raise
        return JobState(_STATES.get(found["state"], "running"), found.get("error", {}).get("message", ""))

    def create(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> str:
        """Creates a job; returns its full name."""
        spec = copy.deepcopy(dict(self._spec))
        for pool in spec["worker_pool_specs"]:
            pool["container_spec"]["command"] = list(command)
            pool["container_spec"]["env"] = [{"name": key, "value": value} for key, value in environment.items()]
        body = {"displayName": name, "jobSpec": as_json(spec), "labels": {"pipeline": "paligemma-finetune"}}
        return self._api.post(self._path, body)["name"]

    def adopt(self, job: str) -> None:
        """Does nothing: Vertex AI's jobs have no owner. Only the heartbeat of the waiting step counts
        (`paligemma.launch.heartbeat`).
        """

    def remove(self, job: str) -> None:
        """Cancels a job if it runs. Does not check first, since a step that is told to stop may have no time."""
        try:
            self._api.post(f"{job}:cancel", {})
        except BackendError as error:
            if error.status not in (400, 404):  # the job has ended or is gone
                raise


def as_json(spec: object) -> object:
    """A message with JSON field names: machine_spec becomes machineSpec."""
    if isinstance(spec, Mapping):
        return {_camel(key): as_json(value) for key, value in spec.items()}
    return [as_json(value) for value in spec] if isinstance(spec, list) else spec


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
