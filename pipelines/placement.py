"""Places each task of the DAG on its profile's machine, with image, retries and secrets."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from paligemma.errors import InputError
from paligemma.foreign_json import SMALL_BYTES, read_json
from paligemma.launch.watch import LAUNCH_VARIABLE
from paligemma.runtime.accelerator import ACCELERATOR_VARIABLE
from paligemma.storage.disk_space import DISK_VARIABLE
from paligemma.web_address import RefusedError, is_nobodys, parse_web_address
from paligemma.web_client import HOSTS_VARIABLE
from pipelines.job_specs import custom_job, train_job
from pipelines.profiles import ACCELERATED, ROBUSTNESS, SMALL, Machine, find_profile

if TYPE_CHECKING:
    from kfp import dsl

PlaceTask = Callable[[str, "dsl.PipelineTask"], None]

_SCRATCH_FOLDER = "/tmp"
"""Folder for everything that a step writes to a disk, including caches."""
_SIGNING_FOLDER = "/etc/paligemma/signing"
_FETCHING = ("fetch_checkpoint", "prepare_data")
"""Steps that read addresses which a checkpoint's source or a row names."""

_PAUSES: dict[str, dict] = {
    # Argo's maxDuration limits the time from the first attempt's start to the end of the last; here it is too long to matter.
    # Argo has no maximum pause: with a factor of 2, the twentieth pause would be half a year.
    "kfp": {"backoff_duration": "60s", "backoff_factor": 1, "backoff_max_duration": f"{365 * 24}h"},
    # Vertex AI uses the same field as the maximum pause.
    "vertex": {"backoff_duration": "30s", "backoff_factor": 2, "backoff_max_duration": "600s"},
}
"""Pauses between a step's attempts, by how each backend reads KFP's settings."""


def read_images(path: Path) -> dict[str, str]:
    """The images from `make images` by target, each with its digest.

    Raises:
        InputError: the file is invalid, or an image has no digest.
    """
    images = read_json(path, "The list of images", most=SMALL_BYTES, error=InputError, fix="make images")
    for target, image in images.items():
        if not isinstance(image, str) or not re.fullmatch(r"[^@\s]+@sha256:[0-9a-f]{64}", image):
            raise InputError(
                f"The image of {target!r}, {image!r}, is not pinned: its contents may change between two steps.",
                where=path,
                expected="REPOSITORY@sha256:...",
                fix="make images, and push what it built",
            )
    return images


def placer(
    name: str,
    images: Mapping[str, str] | None = None,
    spot: bool = False,
    kaggle_secret: str = "",
    webhook_secret: str = "",
    signing_secret: str = "",
    private_hosts: str = "",
    project: str = "",
    location: str = "",
    service_account: str = "",
) -> PlaceTask:
    """A function that places a task of the DAG.

    Args:
        name: name of a profile.
        images: images from `read_images`; not needed locally.
        spot: whether to use spot accelerators, which are cheaper but may be preempted at any time.
        kaggle_secret: name of the Secret Manager secret with `kaggle.json`, which `fetch_checkpoint` reads itself.
        webhook_secret: name of the Secret Manager secret with the address to which `summarize` posts a run's result.
        signing_secret: name of the Kubernetes secret with `key.pem`, mounted in `publish` to sign releases.
        private_hosts: names of hosts, separated by commas, that steps which fetch from the web may reach although they are
            private; empty: none.
        project: project of custom jobs on Vertex AI; empty: the project of the step that creates them.
        location: region of custom jobs; empty: the region of the step that creates them.
        service_account: service account of custom jobs; empty: Vertex AI's default.

    Raises:
        InputError: the profile is unknown, or has no image; or a name is that of no host that may be reached.
    """
    profile, hosts = find_profile(name), _hosts(private_hosts)
    if profile.backend == "local":
        return lambda step, task: None
    if spot and profile.backend == "vertex" and not profile.accelerated.is_launched:
        raise InputError(
            "Vertex AI Pipelines takes no spot machines for a step.",
            where="--spot",
            expected="a profile whose fine-tuning is a custom job: vertex-tpu-..., vertex-gpu-a100-16",
            fix="leave it out, or use a kfp profile",
        )
    if signing_secret and profile.backend == "vertex":
        raise InputError(
            "Vertex AI Pipelines mounts no secrets, and a signing key is read from a mounted file only.",
            where="--signing-secret",
            fix="sign with a kfp profile, or publish the release again by hand",
        )
    pinned = images or {}
    for target in sorted({SMALL.image, profile.accelerated.image}):
        if target not in pinned:
            raise InputError(
                f"There is no image for {target!r}.", where="--images", expected="a digest of every target", fix="make images"
            )

    def place_task(step: str, task: dsl.PipelineTask) -> None:
        wanted, robustness = profile.machine(step), ROBUSTNESS[step]
        tolerations, selectors = _nodes(wanted, spot and step in ACCELERATED) if profile.backend == "kfp" else ([], {})
        machine = SMALL if wanted.is_launched else wanted
        retries = robustness.spot_retries if spot and step in ACCELERATED else robustness.retries
        if wanted.is_launched:
            image, seconds = pinned[wanted.image], robustness.timeout
            if profile.backend == "kfp":
                launch = train_job(wanted, image, seconds, retries, tolerations, selectors)
            else:
                launch = custom_job(wanted, image, seconds, retries, spot, project, location, service_account)
            task.set_env_variable(LAUNCH_VARIABLE, json.dumps(launch))
            tolerations, selectors, retries = [], {}, robustness.retries
        task.set_container_image(pinned[machine.image])
        task.set_cpu_limit(machine.cpu).set_memory_limit(machine.memory)
        task.set_retry(retries, **_PAUSES[profile.backend])
        if machine.accelerator:
            task.set_accelerator_type(machine.accelerator).set_accelerator_limit(machine.count)
            task.set_env_variable(ACCELERATOR_VARIABLE, str(machine.given))
        if step == "preflight":  # the step uses the accelerator's image without an accelerator
            task.set_env_variable("JAX_PLATFORMS", "cpu")
            task.set_env_variable(DISK_VARIABLE, str(min(SMALL.disk, profile.accelerated.disk) * 10**9))
        task.set_env_variable("PALIGEMMA_IMAGE", pinned[machine.image])  # for the lineage record
        if step == "fetch_checkpoint" and kaggle_secret:
            task.set_env_variable("PALIGEMMA_KAGGLE_SECRET", kaggle_secret)
        if step in _FETCHING and hosts:
            task.set_env_variable(HOSTS_VARIABLE, hosts)
        if step == "summarize" and webhook_secret:
            task.set_env_variable("PALIGEMMA_WEBHOOK_SECRET", webhook_secret)
        if step == "publish" and signing_secret:
            from kfp import kubernetes

            kubernetes.use_secret_as_volume(task, signing_secret, mount_path=_SIGNING_FOLDER)
            task.set_env_variable("PALIGEMMA_SIGNING_KEY", f"{_SIGNING_FOLDER}/key.pem")
        if profile.backend == "kfp":
            _place_on_kubernetes(task, machine, robustness.timeout, tolerations, selectors)

    return place_task


def _hosts(names: str) -> str:
    """Names of hosts in the form in which steps compare them.

    Raises:
        InputError: one is none, or is never reached.
    """
    hosts = []
    for name in filter(None, (name.strip() for name in names.split(","))):
        try:
            host = parse_web_address(f"https://{f'[{name}]' if ':' in name else name}/").host
        except RefusedError:
            host = ""
        if not host or "/" in name or "*" in name:
            what = f"{name!r} is not the name of a host."
            raise InputError(what, where="--private-hosts", expected="names or addresses without port: images.corp,10.1.2.3")
        with contextlib.suppress(ValueError):
            if is_nobodys(ipaddress.ip_address(host)):
                what = f"{name} is link-local, or nobody's address, which is refused always."
                raise InputError(what, where="--private-hosts", expected="a host of your own network")
        hosts.append(host)
    return ",".join(hosts)


def _nodes(machine: Machine, spot: bool) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Tolerations of a machine's pods, and selectors of its nodes, on GKE."""
    tolerations, selectors = [], dict(machine.selectors)
    if machine.accelerator:  # GKE keeps other pods off such nodes with a taint named like the resource
        tolerations.append({"key": machine.accelerator, "operator": "Exists", "effect": "NoSchedule"})
    if spot:
        selectors["cloud.google.com/gke-spot"] = "true"
        spots = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        tolerations.append(spots)
    return tolerations, selectors


def _place_on_kubernetes(
    task: dsl.PipelineTask, machine: Machine, timeout: int, tolerations: list[dict], selectors: dict[str, str]
) -> None:
    from kfp import kubernetes

    kubernetes.set_timeout(task, timeout)
    # KFP cannot request a node's disk space. A limit keeps one step from evicting others; pipelines/guides/cloud-setup.sh sets
    # the disk sizes.
    kubernetes.empty_dir_mount(task, volume_name="scratch", mount_path=_SCRATCH_FOLDER, size_limit=f"{machine.disk}G")
    for key, value in selectors.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in tolerations:
        kubernetes.add_toleration(task, **toleration)
