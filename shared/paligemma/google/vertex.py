"""Client for Vertex AI's REST API (https://cloud.google.com/vertex-ai/docs/reference/rest): pipelines, custom jobs, models.

google-cloud-aiplatform would add a hundred packages and generated clients for some ten calls; google-auth is here already.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from paligemma.errors import InputError
from paligemma.google.rest import BackendError, Service

ENDPOINT_VARIABLE = "PALIGEMMA_VERTEX_ENDPOINT"
"""Overrides the API's address, for private access, or for local tests, which need no credentials."""

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class VertexApi:
    """Vertex AI in a project and a region. `parent` is the prefix of all its resources' names."""

    def __init__(self, project: str, location: str) -> None:
        """Finds credentials (https://cloud.google.com/docs/authentication/application-default-credentials)."""
        import google.auth
        from google.auth.credentials import AnonymousCredentials
        from google.auth.exceptions import DefaultCredentialsError
        from google.auth.transport.requests import AuthorizedSession

        for name, value, pattern in (
            ("--project", project, r"[a-z][a-z0-9-]+|[0-9]+"),
            ("--location", location, r"[a-z][a-z0-9-]+"),
        ):
            if not re.fullmatch(pattern, value):
                raise InputError(f"{name} is {value!r}.", expected="the name of a project, and of a region such as us-central1")
        endpoint = os.environ.get(ENDPOINT_VARIABLE) or f"https://{location}-aiplatform.googleapis.com"
        local = urlsplit(endpoint).hostname == "127.0.0.1"
        if not local and not endpoint.startswith("https://"):
            raise InputError(f"{endpoint} is not secure.", where=f"${ENDPOINT_VARIABLE}", expected="https://")
        try:
            credentials = AnonymousCredentials() if local else google.auth.default(scopes=[_SCOPE])[0]
        except DefaultCredentialsError:
            raise BackendError("There are no Google credentials.", fix="gcloud auth application-default login") from None
        self.parent = f"projects/{project}/locations/{location}"
        send = AuthorizedSession(credentials).request
        self._logging = Service(
            "Cloud Logging",
            f"{endpoint if local else 'https://logging.googleapis.com'}/v2/",
            send,
            "ask for the role Logs Viewer (roles/logging.viewer)",
            lambda answer: answer["error"]["message"],
        )
        self._service = Service(
            "Vertex AI",
            f"{endpoint}/v1/",
            send,
            "gcloud auth application-default login, or ask for the role Vertex AI User",
            lambda answer: answer["error"]["message"],
        )

    def get(self, path: str, **query: str) -> dict:
        """Reads a resource, or a page of resources."""
        return self._service.call("GET", path, None, again=True, made=None, **query)

    def post(self, path: str, body: Mapping, **query: str) -> dict:
        """Creates a resource or calls a method, without retries."""
        return self._service.call("POST", path, body, again=False, made=None, **query)

    def make(self, path: str, body: Mapping, made: Mapping, **query: str) -> dict:
        """Creates a resource under a name that the caller chose. Returns `made` if a retry is refused because it exists."""
        return self._service.call("POST", path, body, again=True, made=made, **query)

    def patch(self, path: str, body: Mapping, fields: str) -> dict:
        """Changes the fields of a resource that `fields` names, separated by commas."""
        return self._service.call("PATCH", path, body, again=True, updateMask=fields)

    def delete(self, path: str) -> dict:
        """Deletes a resource; returns the operation that does so."""
        return self._service.call("DELETE", path, again=False)

    def log_of(self, job: str) -> list[str]:
        """A custom job's log in Cloud Logging, which keeps it for 30 days by default
        (https://cloud.google.com/logging/docs/reference/v2/rest/v2/entries/list). Needs the role Logs Viewer.
        """
        wanted = f'resource.type="ml_job" AND resource.labels.job_id="{job}"'
        body = {"resourceNames": ["/".join(self.parent.split("/")[:2])], "filter": wanted, "orderBy": "timestamp asc"}
        lines: list[str] = []
        token = ""
        while True:
            page = self._logging.call("POST", "entries:list", {**body, "pageSize": 1000, "pageToken": token}, again=True)
            for entry in page.get("entries", ()):
                said = entry.get("textPayload") or entry.get("jsonPayload", {}).get("message", "")
                lines += str(said).splitlines()
            token = page.get("nextPageToken", "")
            if not token:
                return lines

    def find(self, path: str, kind: str, filter: str) -> list[dict]:
        """All resources of a kind that match a filter."""
        found, token = [], ""
        while True:
            page = self.get(path, filter=filter, pageToken=token)
            found += page.get(kind, ())
            token = page.get("nextPageToken", "")
            if not token:
                return found
