"""Registers a release as a model version in Vertex AI's Model Registry, for deployment. The files stay in place.

https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.models/upload
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from typing import cast

from components.publish.serving import Serving, parse_serving
from paligemma.artifacts.record import RECORD_FILE, parse_record_of_artifact
from paligemma.errors import InputError
from paligemma.google.rest import BackendError
from paligemma.google.vertex import VertexApi
from paligemma.registry.releases import Release, release_part
from paligemma.storage import gcs
from paligemma.storage.location import SCHEME, GcsLocation
from paligemma.storage.versions import folder_of

POLL_SECONDS = 2.0
_NAME = re.compile(r"projects/([a-z][a-z0-9-]+)/locations/([a-z][a-z0-9-]+)/models/([a-z0-9][a-z0-9_-]{0,62})")

log = logging.getLogger("paligemma.publish")


@dataclass(frozen=True)
class VertexModel:
    """A model of the Model Registry, and how to serve it."""

    project: str
    location: str
    identity: str
    serving: Serving

    @classmethod
    def parse(cls, name: str, serving: str, registry: str) -> VertexModel:
        """Checks the arguments before anything is written.

        Args:
            name: `projects/PROJECT/locations/REGION/models/MODEL`.
            serving: YAML text for `components.publish.serving`; Vertex AI requires it.
            registry: the registry of releases.

        Raises:
            InputError: the name is invalid, `serving` is missing, or Vertex AI could not reach the files.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise InputError(
                f"{name!r} is not a model of Vertex AI.",
                where="--vertex-model",
                expected="projects/PROJECT/locations/REGION/models/MODEL",
            )
        if not registry.startswith(SCHEME):
            raise InputError("Vertex AI reaches files in Cloud Storage only.", where="--registry", expected="gs://BUCKET/...")
        return cls(found[1], found[2], found[3], parse_serving(serving, "--serving"))

    def upload(self, release: Release) -> str:
        """Registers a release as a version of the model; returns the version's name. Repeating it changes nothing.

        Raises:
            BackendError: Vertex AI refused.
            BackendUnavailableError: Vertex AI did not answer.
        """
        api = VertexApi(self.project, self.location)
        name, alias = f"{api.parent}/models/{self.identity}", f"release-{release.version}"
        there = _find(api, f"{name}@{alias}")
        if there is not None:
            return f"{name}@{there['versionId']}"
        part = _part(release)
        files = _files(release, part)
        metrics = release.metrics
        score = metrics["metrics"][metrics["primary"]]
        model = {
            "displayName": self.identity,
            "versionDescription": f"{metrics['primary']} {score['value']:.4f} ({score['low']:.4f} to {score['high']:.4f})",
            "versionAliases": [alias],
            "artifactUri": files,
            "containerSpec": self.serving.container(files),
            "labels": {"release": release.version, "format": part.replace("_", "-")},
        }
        place = {"parentModel": name} if _find(api, name) is not None else {"modelId": self.identity}
        operation = api.post(f"{api.parent}/models:upload", {"model": model, **place})
        while not operation.get("done"):
            time.sleep(POLL_SECONDS)
            operation = api.get(operation["name"])
        if error := operation.get("error"):
            raise BackendError(f"Vertex AI did not take the model: {error.get('message', error)}", where=name)
        made = f"{name}@{operation['response']['modelVersionId']}"
        log.info("release %s is %s", release.version, made)
        return made


def _find(api: VertexApi, name: str) -> dict | None:
    try:
        return api.get(name)
    except BackendError as error:
        if error.status == 404:
            return None
        raise


def _part(release: Release) -> str:
    """The part with the format that most servers read, if the release has it."""
    parts = [one.folder for one in release.manifest.formats]
    return "huggingface" if "huggingface" in parts else parts[0]


def _files(release: Release, part: str) -> str:
    """The folder of the model's files, below the artifact's prefix, which has one folder per version."""
    location = cast(GcsLocation, release_part(release.registry, release.version, part))  # `parse` has seen to that
    record = parse_record_of_artifact(gcs.read_bytes(location / RECORD_FILE)[0], location / RECORD_FILE)
    return str(folder_of(location, str(record.artifact.version)))
