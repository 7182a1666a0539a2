"""Vertex AI Pipelines, by its REST API: https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.pipelineJobs.

google-cloud-aiplatform would be a hundred packages and generated clients for seven calls; google-auth is here already.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import urlencode, urlsplit

from paligemma.errors import InputError
from pipelines.backends.job import BackendError, BackendUnavailableError, Job, canonical, difference

ENDPOINT_VARIABLE = "PALIGEMMA_VERTEX_ENDPOINT"
"""Another address of the API, for private access, or for tests on this machine, where no credentials are asked for."""

_TRIES = 4
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class Vertex:
    """Vertex AI in a project and a region."""

    def __init__(self, project: str, location: str) -> None:
        """Finds credentials (https://cloud.google.com/docs/authentication/application-default-credentials)."""
        import google.auth
        from google.auth.credentials import AnonymousCredentials
        from google.auth.exceptions import DefaultCredentialsError
        from google.auth.transport.requests import AuthorizedSession

        for name, value in (("--project", project), ("--location", location)):
            if not re.fullmatch(r"[a-z][a-z0-9-]+", value):
                raise InputError(f"{name} is {value!r}.", expected="the name of a project, and of a region such as us-central1")
        endpoint = os.environ.get(ENDPOINT_VARIABLE) or f"https://{location}-aiplatform.googleapis.com"
        local = urlsplit(endpoint).hostname == "127.0.0.1"
        if not local and not endpoint.startswith("https://"):
            raise InputError(f"{endpoint} is not secure.", where=f"${ENDPOINT_VARIABLE}", expected="https://")
        try:
            credentials = AnonymousCredentials() if local else google.auth.default(scopes=[_SCOPE])[0]
        except DefaultCredentialsError:
            raise BackendError("There are no Google credentials.", fix="gcloud auth application-default login") from None
        self._session = AuthorizedSession(credentials)
        self._parent = f"projects/{project}/locations/{location}"
        self._base = f"{endpoint}/v1/"

    def submit(self, job: Job) -> str:
        """Makes a pipeline job."""
        identity = f"paligemma-finetune-{datetime.now(UTC):%Y%m%d%H%M%S}-{secrets.token_hex(3)}"
        made = self._call("POST", f"{self._parent}/pipelineJobs", _pipeline_job(job), pipelineJobId=identity)
        return made["name"].rsplit("/", 1)[-1]

    def schedule(self, job: Job, cron: str, dry_run: bool) -> str:
        """Makes a schedule, one run at a time, or changes the one of this name if it differs. Vertex never catches up."""
        request = {"parent": self._parent, "pipelineJob": _pipeline_job(job)}
        wanted = {"displayName": job.name, "cron": cron, "maxConcurrentRunCount": "1", "createPipelineJobRequest": request}
        there = self._find_schedule(job.name)
        before = {key: there.get(key) for key in wanted} if there else {}
        changes = difference(before, wanted)
        if changes and not dry_run:
            if there:
                fields = ",".join(key for key in wanted if canonical(before[key]) != canonical(wanted[key]))
                self._call("PATCH", there["name"], {"name": there["name"], **wanted}, updateMask=fields)
            else:
                self._call("POST", f"{self._parent}/schedules", wanted)
        return changes

    def status(self, run: str) -> str:
        """The job's state and that of its tasks."""
        found = self._call("GET", self._job(run))
        lines = [f"{found['displayName']}: {found['state']}"]
        if error := found.get("error"):
            lines.append(f"  {error.get('message', error)}")
        lines += [f"  {task['taskName']}: {task['state']}" for task in found.get("jobDetail", {}).get("taskDetails", ())]
        return "\n".join(lines)

    def cancel(self, run: str) -> None:
        """Cancels the job."""
        self._call("POST", f"{self._job(run)}:cancel", {})

    def _job(self, run: str) -> str:
        if not re.fullmatch(r"[a-z0-9-]{1,128}", run):
            raise InputError(f"{run!r} is not the name of a pipeline job.", fix="see what submit printed")
        return f"{self._parent}/pipelineJobs/{run}"

    def _find_schedule(self, name: str) -> dict | None:
        """The schedule of this name that has not ended."""
        token = ""
        while True:
            page = self._call("GET", f"{self._parent}/schedules", filter=f'display_name="{name}"', pageToken=token)
            for found in page.get("schedules", ()):
                if found["displayName"] == name and found.get("state") != "COMPLETED":
                    return found
            token = page.get("nextPageToken", "")
            if not token:
                return None

    def _call(self, method: str, path: str, body: Mapping | None = None, **query: str) -> dict:
        """One request; a failure of the service is tried again where that cannot do anything twice."""
        from google.auth.exceptions import GoogleAuthError
        from requests import RequestException

        given = {key: value for key, value in query.items() if value}
        url = f"{self._base}{path}" + (f"?{urlencode(given)}" if given else "")
        # A job's name makes it unique, so that making it twice is refused.
        again = method in ("GET", "PATCH") or "pipelineJobId" in query
        tries = _TRIES if again else 1
        for left in reversed(range(tries)):
            try:
                answer = self._session.request(method, url, json=body, timeout=60)
            except (RequestException, GoogleAuthError) as error:
                if left:
                    time.sleep(0.2 * 2 ** (_TRIES - left))
                    continue
                raise BackendUnavailableError(
                    f"Vertex AI did not answer: {type(error).__name__}.", where=self._base, fix="run the same command later"
                ) from None
            if answer.status_code < 300:
                return answer.json()
            if answer.status_code == 409 and "pipelineJobId" in query and left < tries - 1:
                return {"name": f"{path}/{query['pipelineJobId']}"}  # made by the try whose answer was lost
            if answer.status_code in (429, 500, 502, 503, 504):
                if left:
                    time.sleep(0.2 * 2 ** (_TRIES - left))
                    continue
                raise BackendUnavailableError(
                    f"Vertex AI answered {answer.status_code}.", where=self._base, fix="run the same command later"
                )
            try:
                said = answer.json()["error"]["message"]
            except (ValueError, LookupError, TypeError):
                said = answer.reason
            login = "gcloud auth application-default login, or ask for the role Vertex AI User"
            fix = login if answer.status_code in (401, 403) else None
            raise BackendError(f"Vertex AI refused ({answer.status_code}): {said}", where=path, fix=fix)
        raise AssertionError


def _pipeline_job(job: Job) -> dict:
    (pipeline,) = job.documents
    made = {
        "displayName": job.name,
        "pipelineSpec": pipeline,
        "runtimeConfig": {"gcsOutputDirectory": job.root, "parameterValues": dict(job.parameters)},
        "labels": {"pipeline": "paligemma-finetune"},
    }
    return made | ({"serviceAccount": job.service_account} if job.service_account else {})
