"""Connects to the backend that a command names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paligemma.errors import InputError
from pipelines.backends.job import Backend
from pipelines.placement import PlaceTask, placer, read_images
from pipelines.profiles import find_profile


def place_on(backend: str, profile: str, images: Path, **more: Any) -> PlaceTask:
    """The function that places tasks on a profile of this backend; for `more`, see `placer`.

    Raises:
        InputError: the profile belongs to another backend, or an image is not pinned or not pushed.
    """
    if find_profile(profile).backend != backend:
        raise InputError(f"{profile} is not a profile of {backend}.", where="--profile", expected=f"{backend}-...")
    pinned = read_images(images)
    if unpushed := [image for image in pinned.values() if image.startswith("localhost/")]:
        raise InputError(
            f"The image {unpushed[0]} is on this machine only.", where=images, fix="make images IMAGE_REPOSITORY=... PUSH=1"
        )
    return placer(profile, pinned, **more)


def connect(backend: str, host: str, namespace: str, experiment: str, project: str, location: str) -> Backend:
    """The backend of this name.

    Raises:
        InputError: the backend's address is missing.
    """
    if backend == "kfp":
        from pipelines.backends.kubeflow import Kubeflow

        if not host:
            raise InputError("The address of Kubeflow Pipelines is missing.", where="--host", expected="https://...")
        return Kubeflow(host, namespace, experiment)
    from pipelines.backends.vertex import Vertex

    return Vertex(project, location)
