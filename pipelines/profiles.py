"""Profiles: a table from profile names to the machines of a pipeline's steps; and how often a step is tried.

GKE's selectors: https://cloud.google.com/kubernetes-engine/docs/concepts/tpus and .../docs/how-to/gpus; Vertex's accelerators:
https://cloud.google.com/vertex-ai/docs/pipelines/machine-types.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from paligemma.errors import InputError, did_you_mean
from paligemma.runtime.accelerator import Accelerator

Backend = Literal["local", "kfp", "vertex"]

ACCELERATED = ("finetune", "evaluate")
"""Steps that use an accelerator; other steps run on a plain machine."""

_HOUR = 3600


@dataclass(frozen=True)
class Machine:
    """The machine of a task.

    Attributes:
        image: target of `docker/Dockerfile`.
        cpu: cores, as Kubernetes writes them.
        memory: memory, as Kubernetes writes it.
        accelerator: the backend's name of the accelerator; empty for none.
        count: number of accelerators; for TPUs, of chips.
        selectors: labels of suitable nodes on GKE.
        hosts: number of such machines that work together, with a process on each.
        machine_type: machine type of a custom job on Vertex AI; empty: the task itself gets the resources above.
        topology: topology of the TPU chips.
        disk: GB for a step's files: a checkpoint, records and a release.
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
        """Whether the step runs as a separate job, because a task is a single container."""
        return self.hosts > 1 or bool(self.machine_type)

    @property
    def given(self) -> Accelerator | None:
        """The accelerator that a process on one of its hosts should find."""
        return Accelerator(self.image, self.count) if self.count else None


@dataclass(frozen=True)
class Profile:
    """The machines of a pipeline.

    Attributes:
        backend: the backend that runs it.
        accelerated: machine of the steps in `ACCELERATED`.
        target: target of `preflight`.
        evaluating: machine of `evaluate`, if different: decoding uses one host.
    """

    backend: Backend
    accelerated: Machine
    target: str = "cpu"
    evaluating: Machine | None = None

    def machine(self, step: str) -> Machine:
        """The machine of a step."""
        if step == "preflight":  # a plain machine, with the accelerator's compiler
            return replace(SMALL, image=self.accelerated.image)
        if step not in ACCELERATED:
            return SMALL
        return self.evaluating if step == "evaluate" and self.evaluating is not None else self.accelerated


@dataclass(frozen=True)
class Robustness:
    """A step's time limit and number of tries.

    Attributes:
        retries: number of retries after a failure or preemption; `finetune` continues from its saved state.
        timeout: seconds for one attempt on Kubernetes, or for a separate job.
        spot_retries: replaces `retries` on spot machines, which may be preempted many times. Not used elsewhere: neither KFP
            nor Vertex AI distinguishes exit codes, so a wrong recipe would hold an accelerator through all retries.
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
"""Machine for steps without an accelerator. Merging and decoding process one block of an array at a time."""


def _gke_gpu(name: str, cpu: int, memory: int, target: str, count: int = 1, hosts: int = 1) -> Profile:
    """GPUs of one host, with `cpu` cores and `memory` GB per GPU. With several hosts, one GPU evaluates."""

    def machine(count: int, hosts: int) -> Machine:
        selectors = {"cloud.google.com/gke-accelerator": name}
        return Machine("gpu", str(count * cpu), f"{count * memory}G", "nvidia.com/gpu", count, selectors, hosts)

    if hosts > 1:  # preflight asks whether the job fits one of them
        return Profile("kfp", machine(count, hosts), target, evaluating=machine(1, 1))
    return Profile("kfp", machine(count, 1), _several(target, count))


def _several(target: str, count: int) -> str:
    """preflight's name for `count` GPUs of a target in one machine."""
    return target if count == 1 else f"{target}-{count}"


_GKE_TPUS = {"v5e": "tpu-v5-lite-podslice", "v6e": "tpu-v6e-slice"}
_TPU_MACHINES = {"v5e": "ct5lp-hightpu-{}t", "v6e": "ct6e-standard-{}t"}
_ONE_HOST = {1: "1x1", 4: "2x2", 8: "2x4"}


def _gke_tpu(generation: str, chips: int, topology: str = "", hosts: int = 1) -> Profile:
    """Chips of one host. With several hosts, four chips per host, and one host with four chips evaluates."""

    def machine(count: int, topology: str, hosts: int) -> Machine:
        accelerator = {"cloud.google.com/gke-tpu-accelerator": _GKE_TPUS[generation]}
        selectors = {**accelerator, "cloud.google.com/gke-tpu-topology": topology}
        return Machine("tpu", str(8 * count), f"{32 * count}G", "google.com/tpu", count, selectors, hosts)

    training = machine(chips // hosts, topology or _ONE_HOST[chips], hosts)
    evaluating = machine(4, _ONE_HOST[4], 1) if hosts > 1 else None
    return Profile("kfp", training, f"{generation}-{chips}", evaluating)


def _vertex_gpu(name: str, cpu: int, memory: int, target: str, count: int = 1) -> Profile:
    """GPUs of one host; cores and GB are those of Vertex AI's machine with this number of GPUs."""
    return Profile("vertex", Machine("gpu", str(cpu), f"{memory}G", name, count), _several(target, count))


def _vertex_gpus(one: Profile, machine_type: str, hosts: int) -> Profile:
    """Several hosts with eight GPUs each; one GPU evaluates."""
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
    "pipelines/profiles.py",
    r".*multi-?host": "kfp-tpu-v5e-16, kfp-tpu-v6e-16, kfp-gpu-a100-16, kfp-gpu-h100-16, vertex-gpu-a100-16 or -h100-16",
}
"""Why a profile does not exist, by a pattern for the beginning of its name."""


def find_profile(name: str) -> Profile:
    """A profile by name.

    Raises:
        InputError: there is no such profile.
    """
    if name not in PROFILES:
        why = next((reason for pattern, reason in CANNOT.items() if re.match(pattern, name)), None)
        raise InputError(f"There is no profile {name!r}.", where="--profile", expected=why, fix=did_you_mean(name, PROFILES))
    return PROFILES[name]
