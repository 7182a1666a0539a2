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
from paligemma.foreign_json import SMALL_BYTES, read_json
from paligemma.launch.watch import LAUNCH_VARIABLE
from paligemma.runtime.accelerator import ACCELERATOR_VARIABLE, Accelerator
from paligemma.storage.disk_space import DISK_VARIABLE
from pipelines.job_specs import custom_job, train_job

if TYPE_CHECKING:
    from kfp import dsl

Backend = Literal["local", "kfp", "vertex"]
PlaceTask = Callable[[str, "dsl.PipelineTask"], None]

ACCELERATED = ("finetune", "evaluate")
"""Steps that use an accelerator; every other one runs on a plain machine."""

_HOUR = 3600
_SCRATCH_FOLDER = "/tmp"
"""Where the images have everything that a step writes to a disk, caches too."""
_SIGNING_FOLDER = "/etc/paligemma/signing"

_PAUSES: dict[str, dict] = {
    # What Argo calls maxDuration is the time, from the first attempt's start, in which all attempts have to begin and end: here
    # so long that it does not matter. It knows no longest pause, and by a factor of 2 the twentieth would be half a year.
    "kfp": {"backoff_duration": "60s", "backoff_factor": 1, "backoff_max_duration": f"{365 * 24}h"},
    # Vertex AI takes the same field for the longest pause.
    "vertex": {"backoff_duration": "30s", "backoff_factor": 2, "backoff_max_duration": "600s"},
}
"""Between a step's attempts, by what the backend makes of KFP's settings."""


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
        hosts: how many of it work together, a process on each.
        machine_type: of a custom job on Vertex AI; empty: the task itself is given what is above.
        topology: of its TPU chips.
        disk: GB for what a step holds: a checkpoint, records and a release.
    """

    image: Literal["cpu", "gpu", "tpu"]
    cpu: str
    memory: str
    accelerator: str = ""
    count: int = 0
    selectors: Mapping[str, str] = field(default_factory=dict)
    hosts: int = 1
    machine_type: str = ""
    topology: str = ""
    disk: int = 80

    @property
    def is_launched(self) -> bool:
        """Whether a task cannot be this machine, but only have one made: a task is one container."""
        return self.hosts > 1 or bool(self.machine_type)

    @property
    def given(self) -> Accelerator | None:
        """What a process on one of its hosts is to find."""
        return Accelerator(self.image, self.count) if self.count else None


@dataclass(frozen=True)
class Profile:
    """Machines of a pipeline.

    Attributes:
        backend: what runs it.
        accelerated: machine of the steps in `ACCELERATED`.
        target: what `preflight` compiles for.
        evaluating: machine of `evaluate`, when it is another: decoding has one host.
    """

    backend: Backend
    accelerated: Machine
    target: str = "cpu"
    evaluating: Machine | None = None

    def machine(self, step: str) -> Machine:
        """What a step runs on."""
        if step == "preflight":  # on a plain machine, with the accelerator's compiler
            return replace(SMALL, image=self.accelerated.image)
        if step not in ACCELERATED:
            return SMALL
        return self.evaluating if step == "evaluate" and self.evaluating is not None else self.accelerated


@dataclass(frozen=True)
class Robustness:
    """What a step is allowed, and how often it is tried.

    Attributes:
        retries: after a failure or a machine that was taken away; `finetune` goes on from its saved state.
        timeout: seconds of one attempt, on Kubernetes, or of a job elsewhere.
        spot_retries: in place of `retries` on spot machines, which may be taken away many times. Not always, as neither KFP nor
            Vertex tells an exit code from another: a wrong recipe would hold an accelerator through all of them.
    """

    retries: int
    timeout: int
    spot_retries: int = 0


ROBUSTNESS = {
    "preflight": Robustness(retries=2, timeout=2 * _HOUR),
    "fetch_checkpoint": Robustness(retries=3, timeout=6 * _HOUR),
    "prepare_data": Robustness(retries=3, timeout=24 * _HOUR),
    "finetune": Robustness(retries=3, timeout=7 * 24 * _HOUR, spot_retries=20),
    "evaluate": Robustness(retries=3, timeout=24 * _HOUR, spot_retries=10),
    "publish": Robustness(retries=3, timeout=6 * _HOUR),
    "summarize": Robustness(retries=3, timeout=1 * _HOUR),
}

SMALL = Machine("cpu", cpu="4", memory="16G")
"""For steps that need no accelerator. Merging and decoding work on a block of one array at a time."""


def _gke_gpu(name: str, cpu: int, memory: int, target: str, count: int = 1, hosts: int = 1) -> Profile:
    """GPUs of one host, with what each of them brings of cores and GB; with several hosts, one GPU to evaluate on."""

    def machine(count: int, hosts: int) -> Machine:
        selectors = {"cloud.google.com/gke-accelerator": name}
        return Machine("gpu", str(count * cpu), f"{count * memory}G", "nvidia.com/gpu", count, selectors, hosts)

    if hosts > 1:  # preflight asks whether the job fits one of them
        return Profile("kfp", machine(count, hosts), target, evaluating=machine(1, 1))
    return Profile("kfp", machine(count, 1), _several(target, count))


def _several(target: str, count: int) -> str:
    """What preflight calls so many of a target in one machine."""
    return target if count == 1 else f"{target}-{count}"


_GKE_TPUS = {"v5e": "tpu-v5-lite-podslice", "v6e": "tpu-v6e-slice"}
_TPU_MACHINES = {"v5e": "ct5lp-hightpu-{}t", "v6e": "ct6e-standard-{}t"}
_ONE_HOST = {1: "1x1", 4: "2x2", 8: "2x4"}


def _gke_tpu(generation: str, chips: int, topology: str = "", hosts: int = 1) -> Profile:
    """Chips of one host; with several hosts, four of each, and a host of four to evaluate on."""

    def machine(count: int, topology: str, hosts: int) -> Machine:
        accelerator = {"cloud.google.com/gke-tpu-accelerator": _GKE_TPUS[generation]}
        selectors = {**accelerator, "cloud.google.com/gke-tpu-topology": topology}
        return Machine("tpu", str(8 * count), f"{32 * count}G", "google.com/tpu", count, selectors, hosts)

    training = machine(chips // hosts, topology or _ONE_HOST[chips], hosts)
    evaluating = machine(4, _ONE_HOST[4], 1) if hosts > 1 else None
    return Profile("kfp", training, f"{generation}-{chips}", evaluating)


def _vertex_gpu(name: str, cpu: int, memory: int, target: str, count: int = 1) -> Profile:
    """GPUs of one host; cores and GB are those of Vertex AI's machine with so many."""
    return Profile("vertex", Machine("gpu", str(cpu), f"{memory}G", name, count), _several(target, count))


def _vertex_gpus(one: Profile, machine_type: str, hosts: int) -> Profile:
    """Hosts with eight GPUs each; one GPU evaluates."""
    whole = replace(one.accelerated, count=8, hosts=hosts, machine_type=machine_type)
    return Profile("vertex", whole, one.target, evaluating=one.accelerated)


def _vertex_tpu(generation: str, chips: int) -> Profile:
    machine_type, topology = _TPU_MACHINES[generation].format(chips), _ONE_HOST[chips]
    machine = Machine("tpu", cpu="", memory="", count=chips, machine_type=machine_type, topology=topology)
    return Profile("vertex", machine, f"{generation}-{chips}")


_A100, _H100 = ("nvidia-tesla-a100", 11, 78, "a100-40"), ("nvidia-h100-80gb", 24, 200, "h100-80")
_VERTEX_A100 = _vertex_gpu("NVIDIA_TESLA_A100", 12, 85, "a100-40")
_VERTEX_H100 = _vertex_gpu("NVIDIA_H100_80GB", 26, 234, "h100-80")

PROFILES: dict[str, Profile] = {
    "local": Profile("local", SMALL),
    "kfp-cpu": Profile("kfp", Machine("cpu", cpu="8", memory="32G")),
    "kfp-gpu-t4": _gke_gpu("nvidia-tesla-t4", 7, 26, "t4"),
    "kfp-gpu-l4": _gke_gpu("nvidia-l4", 7, 28, "l4"),
    "kfp-gpu-l4-2": _gke_gpu("nvidia-l4", 11, 42, "l4", count=2),  # of g2-standard-24
    "kfp-gpu-l4-4": _gke_gpu("nvidia-l4", 11, 42, "l4", count=4),  # of g2-standard-48
    "kfp-gpu-a100": _gke_gpu(*_A100),
    "kfp-gpu-a100-8": _gke_gpu(*_A100, count=8),
    "kfp-gpu-a100-16": _gke_gpu(*_A100, count=8, hosts=2),
    "kfp-gpu-h100": _gke_gpu(*_H100),
    "kfp-gpu-h100-8": _gke_gpu(*_H100, count=8),
    "kfp-gpu-h100-16": _gke_gpu(*_H100, count=8, hosts=2),
    **{f"kfp-tpu-{name}-{chips}": _gke_tpu(name, chips) for name in _GKE_TPUS for chips in _ONE_HOST},
    **{f"kfp-tpu-{name}-16": _gke_tpu(name, 16, "4x4", hosts=4) for name in _GKE_TPUS},
    "vertex-cpu": Profile("vertex", Machine("cpu", cpu="8", memory="32G")),
    "vertex-gpu-t4": _vertex_gpu("NVIDIA_TESLA_T4", 8, 30, "t4"),
    "vertex-gpu-l4": _vertex_gpu("NVIDIA_L4", 8, 32, "l4"),
    "vertex-gpu-l4-2": _vertex_gpu("NVIDIA_L4", 24, 96, "l4", count=2),
    "vertex-gpu-l4-4": _vertex_gpu("NVIDIA_L4", 48, 192, "l4", count=4),
    "vertex-gpu-a100": _VERTEX_A100,
    "vertex-gpu-a100-8": _vertex_gpu("NVIDIA_TESLA_A100", 96, 680, "a100-40", count=8),
    "vertex-gpu-h100": _VERTEX_H100,
    "vertex-gpu-h100-8": _vertex_gpu("NVIDIA_H100_80GB", 208, 1872, "h100-80", count=8),
    "vertex-gpu-a100-16": _vertex_gpus(_VERTEX_A100, "a2-highgpu-8g", hosts=2),
    "vertex-gpu-h100-16": _vertex_gpus(_VERTEX_H100, "a3-highgpu-8g", hosts=2),
    **{f"vertex-tpu-{name}-{chips}": _vertex_tpu(name, chips) for name in _TPU_MACHINES for chips in _ONE_HOST},
}

CANNOT = {
    r"vertex-tpu-v\w+-(?!(1|4|8)$)\d+": "the TPU chips of one host (1, 4 or 8): several hosts of a slice are a TrainJob on GKE "
    "(kfp-tpu-v5e-16); on Vertex AI, worker pools of several hosts are for GPUs (vertex-gpu-a100-16)",
    r"kfp-tpu-v\w+-(?!(1|4|8|16)$)\d+": "1, 4 or 8 chips of one host, or 16 of four: other slices need a line in the table of "
    "pipelines/placement.py",
    r".*multi-?host": "kfp-tpu-v5e-16, kfp-tpu-v6e-16, kfp-gpu-a100-16, kfp-gpu-h100-16, vertex-gpu-a100-16 or -h100-16",
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
    project: str = "",
    location: str = "",
    service_account: str = "",
) -> PlaceTask:
    """What places a task of the DAG.

    Args:
        name: of a profile.
        images: as `read_images` gives them; not needed locally.
        spot: whether accelerators may be taken away at any time, for a lower price.
        kaggle_secret: Secret Manager secret with `kaggle.json`, which `fetch_checkpoint` reads itself; a name, and no secret.
        webhook_secret: likewise, with the address that `summarize` posts what became of the run to.
        signing_secret: Kubernetes secret whose `key.pem` signs releases, which `publish` has mounted.
        project: of custom jobs on Vertex AI; empty: that of the step that makes them.
        location: likewise, their region.
        service_account: whose rights custom jobs have; empty: Vertex AI's default.

    Raises:
        InputError: there is no such profile, or no image for it.
    """
    profile = find_profile(name)
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
    for target in sorted({SMALL.image, profile.accelerated.image}):
        if target not in (images or {}):
            raise InputError(
                f"There is no image for {target!r}.", where="--images", expected="a digest of every target", fix="make images"
            )

    def place_task(step: str, task: dsl.PipelineTask) -> None:
        wanted, robustness = profile.machine(step), ROBUSTNESS[step]
        tolerations, selectors = _nodes(wanted, spot and step in ACCELERATED) if profile.backend == "kfp" else ([], {})
        machine = SMALL if wanted.is_launched else wanted
        retries = robustness.spot_retries if spot and step in ACCELERATED else robustness.retries
        if wanted.is_launched:
            image, seconds = images[wanted.image], robustness.timeout
            if profile.backend == "kfp":
                launch = train_job(wanted, image, seconds, retries, tolerations, selectors)
            else:
                launch = custom_job(wanted, image, seconds, retries, spot, project, location, service_account)
            task.set_env_variable(LAUNCH_VARIABLE, json.dumps(launch))
            tolerations, selectors, retries = [], {}, robustness.retries
        task.set_container_image(images[machine.image])
        task.set_cpu_limit(machine.cpu).set_memory_limit(machine.memory)
        task.set_retry(retries, **_PAUSES[profile.backend])
        if machine.accelerator:
            task.set_accelerator_type(machine.accelerator).set_accelerator_limit(machine.count)
            task.set_env_variable(ACCELERATOR_VARIABLE, str(machine.given))
        if step == "preflight":  # it has the accelerator's image, and no accelerator
            task.set_env_variable("JAX_PLATFORMS", "cpu")
            task.set_env_variable(DISK_VARIABLE, str(min(SMALL.disk, profile.accelerated.disk) * 10**9))
        task.set_env_variable("PALIGEMMA_IMAGE", images[machine.image])  # for the lineage record
        if step == "fetch_checkpoint" and kaggle_secret:
            task.set_env_variable("PALIGEMMA_KAGGLE_SECRET", kaggle_secret)
        if step == "summarize" and webhook_secret:
            task.set_env_variable("PALIGEMMA_WEBHOOK_SECRET", webhook_secret)
        if step == "publish" and signing_secret:
            from kfp import kubernetes

            kubernetes.use_secret_as_volume(task, signing_secret, mount_path=_SIGNING_FOLDER)
            task.set_env_variable("PALIGEMMA_SIGNING_KEY", f"{_SIGNING_FOLDER}/key.pem")
        if profile.backend == "kfp":
            _place_on_kubernetes(task, machine, robustness.timeout, tolerations, selectors)

    return place_task


def _nodes(machine: Machine, spot: bool) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Tolerations of a machine's pods, and selectors of its nodes, on GKE."""
    tolerations, selectors = [], dict(machine.selectors)
    if machine.accelerator:  # GKE keeps other pods off such nodes by a taint of the resource's name
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
    # KFP has no request for a node's disk. A limit keeps one step from having others evicted; how large the disks are is said
    # in pipelines/guides/cloud-setup.sh.
    kubernetes.empty_dir_mount(task, volume_name="scratch", mount_path=_SCRATCH_FOLDER, size_limit=f"{machine.disk}G")
    for key, value in selectors.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in tolerations:
        kubernetes.add_toleration(task, **toleration)
