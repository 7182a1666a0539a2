"""TPUs, or several hosts with GPUs, on Vertex AI, as a custom job with worker pools, made and watched from a pipeline's step.

https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.customJobs. Each replica finds the others in
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
"""What Vertex AI tells a container of its place."""

_STATES: dict[str, State] = {"JOB_STATE_SUCCEEDED": "done"}
_STATES |= {f"JOB_STATE_{name}": "failed" for name in ("FAILED", "CANCELLED", "CANCELLING", "EXPIRED", "PAUSED")}


class CustomJobs:
    """Custom jobs of a project and region, made from one specification."""

    def __init__(self, spec: Mapping, project: str = "", location: str = "") -> None:
        """Finds credentials.

        Args:
            spec: a CustomJobSpec, with the field names of its protocol buffer, as Google's pipeline components have them.
            project: empty: that of the step.
            location: likewise.

        Raises:
            InputError: it is not known where.
        """
        project, location = project or os.environ.get(PROJECT_VARIABLE, ""), location or os.environ.get(REGION_VARIABLE, "")
        if not project or not location:
            raise InputError(
                "It is not said in which project and region the custom job is to run.",
                expected="--project and --location, when the pipeline is compiled",
            )
        self._api, self._spec = VertexApi(project, location), spec
        self._path = f"{self._api.parent}/customJobs"
        self.logs = "https://console.cloud.google.com/vertex-ai/training/custom-jobs, job "

    def search(self, name: str) -> str | None:
        """The last one of this name. The list lags behind what was made, so it is not asked about what was just made."""
        found = self._api.find(self._path, "customJobs", f'display_name="{name}"')
        return max(found, key=lambda job: job["createTime"], default={"name": None})["name"]

    def find(self, job: str) -> JobState | None:
        """How one is, by its full name."""
        try:
            found = self._api.get(job)
        except BackendError as error:
            if error.status == 404:
                return None
            raise
        return JobState(_STATES.get(found["state"], "running"), found.get("error", {}).get("message", ""))

    def create(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> str:
        """Makes one; returns its full name."""
        spec = copy.deepcopy(dict(self._spec))
        for pool in spec["worker_pool_specs"]:
            pool["container_spec"]["command"] = list(command)
            pool["container_spec"]["env"] = [{"name": key, "value": value} for key, value in environment.items()]
        body = {"displayName": name, "jobSpec": as_json(spec), "labels": {"pipeline": "paligemma-finetune"}}
        return self._api.post(self._path, body)["name"]

    def adopt(self, job: str) -> None:
        """Vertex AI's jobs belong to nobody: only what the job hears of whoever waits counts (`paligemma.launch.heartbeat`)."""

    def remove(self, job: str) -> None:
        """Cancels it, if it runs: at once, as whoever is told to stop may have no time to ask first."""
        try:
            self._api.post(f"{job}:cancel", {})
        except BackendError as error:
            if error.status not in (400, 404):  # it has ended, or is gone
                raise


def as_json(spec: object) -> object:
    """A message with the field names that JSON has for it: machine_spec is machineSpec."""
    if isinstance(spec, Mapping):
        return {_camel(key): as_json(value) for key, value in spec.items()}
    return [as_json(value) for value in spec] if isinstance(spec, list) else spec


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
