"""Where a pipeline's steps run: one table from the name of a profile to machines, and its application to the DAG's tasks.

GKE's selectors: https://cloud.google.com/kubernetes-engine/docs/concepts/tpus and .../docs/how-to/gpus; Vertex's accelerators:
https://cloud.google.com/vertex-ai/docs/pipelines/machine-types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paligemma.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from kfp import dsl

Backend = Literal["local", "kfp", "vertex"]
PlaceTask = Callable[[str, "dsl.PipelineTask"], None]

ACCELERATED = ("finetune", "evaluate")
"""Steps that use an accelerator; every other one runs on a plain machine."""

_HOUR = 3600


@dataclass(frozen=True)
class Machine:
    """What a task is given.

    Attributes:
        image: target of `docker/Dockerfile`.
        cpu: cores, as Kubernetes writes them.
        memory: likewise.
        accelerator: what the backend calls it; none if empty.
        count: of them; TPU chips count one by one.
        selectors: labels of the nodes that will do, on GKE.
    """

    image: Literal["cpu", "gpu", "tpu"]
    cpu: str
    memory: str
    accelerator: str = ""
    count: int = 0
    selectors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """Machines of a pipeline.

    Attributes:
        backend: what runs it.
        accelerated: machine of the steps in `ACCELERATED`.
        target: what `preflight` compiles for.
    """

    backend: Backend
    accelerated: Machine
    target: str = "cpu"


@dataclass(frozen=True)
class Robustness:
    """What a step is allowed, and how often it is tried.

    Attributes:
        retries: after a failure or a machine that was taken away; `finetune` goes on from its saved state.
        timeout: seconds of one attempt, on Kubernetes.
    """

    retries: int
    timeout: int


ROBUSTNESS = {
    "preflight": Robustness(retries=2, timeout=2 * _HOUR),
    "fetch_checkpoint": Robustness(retries=3, timeout=6 * _HOUR),
    "prepare_data": Robustness(retries=3, timeout=24 * _HOUR),
    "finetune": Robustness(retries=20, timeout=7 * 24 * _HOUR),  # a spot machine may be taken away many times
    "evaluate": Robustness(retries=5, timeout=24 * _HOUR),
    "publish": Robustness(retries=3, timeout=6 * _HOUR),
    "summarize": Robustness(retries=3, timeout=1 * _HOUR),
}

SMALL = Machine("cpu", cpu="4", memory="16G")
"""For steps that need no accelerator. Merging and decoding work on a block of one array at a time."""


def _gke_gpu(name: str, cpu: str, memory: str, target: str) -> Profile:
    machine = Machine("gpu", cpu, memory, "nvidia.com/gpu", 1, {"cloud.google.com/gke-accelerator": name})
    return Profile("kfp", machine, target)


def _gke_tpu(name: str, topology: str, chips: int) -> Profile:
    target = f"{'v6e' if 'v6e' in name else 'v5e'}-{chips}"
    selectors = {"cloud.google.com/gke-tpu-accelerator": name, "cloud.google.com/gke-tpu-topology": topology}
    return Profile("kfp", Machine("tpu", str(8 * chips), f"{32 * chips}G", "google.com/tpu", chips, selectors), target)


def _vertex_gpu(name: str, cpu: str, memory: str, target: str) -> Profile:
    return Profile("vertex", Machine("gpu", cpu, memory, name, 1), target)


PROFILES: dict[str, Profile] = {
    "local": Profile("local", SMALL),
    "kfp-cpu": Profile("kfp", Machine("cpu", cpu="8", memory="32G")),
    "kfp-gpu-t4": _gke_gpu("nvidia-tesla-t4", cpu="7", memory="26G", target="t4"),
    "kfp-gpu-l4": _gke_gpu("nvidia-l4", cpu="7", memory="28G", target="l4"),
    "kfp-gpu-a100": _gke_gpu("nvidia-tesla-a100", cpu="11", memory="78G", target="a100-40"),
    "kfp-gpu-h100": _gke_gpu("nvidia-h100-80gb", cpu="24", memory="200G", target="h100-80"),
    "kfp-tpu-v5e-1": _gke_tpu("tpu-v5-lite-podslice", "1x1", 1),
    "kfp-tpu-v5e-4": _gke_tpu("tpu-v5-lite-podslice", "2x2", 4),
    "kfp-tpu-v5e-8": _gke_tpu("tpu-v5-lite-podslice", "2x4", 8),
    "kfp-tpu-v6e-1": _gke_tpu("tpu-v6e-slice", "1x1", 1),
    "kfp-tpu-v6e-4": _gke_tpu("tpu-v6e-slice", "2x2", 4),
    "kfp-tpu-v6e-8": _gke_tpu("tpu-v6e-slice", "2x4", 8),
    "vertex-cpu": Profile("vertex", Machine("cpu", cpu="8", memory="32G")),
    "vertex-gpu-t4": _vertex_gpu("NVIDIA_TESLA_T4", cpu="8", memory="30G", target="t4"),
    "vertex-gpu-l4": _vertex_gpu("NVIDIA_L4", cpu="8", memory="32G", target="l4"),
    "vertex-gpu-a100": _vertex_gpu("NVIDIA_TESLA_A100", cpu="12", memory="85G", target="a100-40"),
}

CANNOT = {
    "vertex-tpu": "Vertex AI Pipelines runs a step on a TPU only as a custom job of its own, which this DAG does not make: "
    "use a kfp-tpu profile, or run components.finetune.main in a custom job",
    r".*multi-?host|kfp-tpu-v\w+-(?!(1|4|8)$)\d+": "one host (1, 4 or 8 chips), because a KFP task is one pod: on several, run "
    "components.finetune.main on each host (its page says how)",
}
"""Why a profile is not there, by what the beginning of its name matches."""


def find_profile(name: str) -> Profile:
    """A profile by its name.

    Raises:
        InputError: there is none.
    """
    if name not in PROFILES:
        why = next((reason for pattern, reason in CANNOT.items() if re.match(pattern, name)), None)
        raise InputError(f"There is no profile {name!r}.", where="--profile", expected=why, fix=did_you_mean(name, PROFILES))
    return PROFILES[name]


def read_images(path: Path) -> dict[str, str]:
    """The images that `make images` built and pushed: by target, each with its digest.

    Raises:
        InputError: the file is not one, or an image may change under its name.
    """
    try:
        images = json.loads(path.read_text())
        valid = isinstance(images, dict) and all(isinstance(image, str) for image in images.values())
    except (OSError, ValueError):
        valid = False
    if not valid:
        raise InputError(
            "The images cannot be read.", where=path, expected='{"cpu": "REPOSITORY@sha256:..."}', fix="make images"
        )
    for target, image in images.items():
        if not re.fullmatch(r"[^@\s]+@sha256:[0-9a-f]{64}", image):
            raise InputError(
                f"The image of {target!r}, {image!r}, is not pinned: its contents may change between two steps.",
                where=path,
                expected="REPOSITORY@sha256:...",
                fix="make images, and push what it built",
            )
    return images


def placer(name: str, images: Mapping[str, str] | None = None, spot: bool = False, kaggle_secret: str = "") -> PlaceTask:
    """What places a task of the DAG.

    Args:
        name: of a profile.
        images: as `read_images` gives them; not needed locally.
        spot: whether accelerators may be taken away at any time, for a lower price.
        kaggle_secret: Secret Manager secret with `kaggle.json`, which `fetch_checkpoint` reads itself; a name, and no secret.

    Raises:
        InputError: there is no such profile, or no image for it.
    """
    profile = find_profile(name)
    if profile.backend == "local":
        return lambda step, task: None
    if spot and profile.backend == "vertex":
        raise InputError(
            "Vertex AI Pipelines takes no spot machines for a step.", where="--spot", fix="leave it out, or use a kfp profile"
        )
    for target in sorted({SMALL.image, profile.accelerated.image}):
        if target not in (images or {}):
            raise InputError(
                f"There is no image for {target!r}.", where="--images", expected="a digest of every target", fix="make images"
            )

    def place_task(step: str, task: dsl.PipelineTask) -> None:
        machine = profile.accelerated if step in ACCELERATED else SMALL
        if step == "preflight":  # on a plain machine, with the accelerator's compiler
            machine = replace(SMALL, image=profile.accelerated.image)
        robustness = ROBUSTNESS[step]
        task.set_container_image(images[machine.image])
        task.set_cpu_limit(machine.cpu).set_memory_limit(machine.memory)
        task.set_retry(robustness.retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
        if machine.accelerator:
            task.set_accelerator_type(machine.accelerator).set_accelerator_limit(machine.count)
        task.set_env_variable("PALIGEMMA_IMAGE", images[machine.image])  # for the lineage record
        if step == "fetch_checkpoint" and kaggle_secret:
            task.set_env_variable("PALIGEMMA_KAGGLE_SECRET", kaggle_secret)
        if profile.backend == "kfp":
            _place_on_kubernetes(task, machine, robustness.timeout, spot and step in ACCELERATED)

    return place_task


def _place_on_kubernetes(task: dsl.PipelineTask, machine: Machine, timeout: int, spot: bool) -> None:
    from kfp import kubernetes

    kubernetes.set_timeout(task, timeout)
    for key, value in machine.selectors.items():
        kubernetes.add_node_selector(task, key, value)
    if machine.accelerator:  # GKE keeps other pods off such nodes by a taint of the resource's name
        kubernetes.add_toleration(task, key=machine.accelerator, operator="Exists", effect="NoSchedule")
    if spot:
        kubernetes.add_node_selector(task, "cloud.google.com/gke-spot", "true")
        kubernetes.add_toleration(task, key="cloud.google.com/gke-spot", operator="Equal", value="true", effect="NoSchedule")
