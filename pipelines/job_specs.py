"""Specifications for steps that run as a separate job: a TrainJob of Kubeflow Trainer, or a custom job on Vertex AI.

The step itself waits on a small machine (`paligemma.launch`). Its task, parameters and artifacts do not depend on the profile.
"""

from __future__ import annotations

from pipelines.profiles import Machine

RUNTIME = "paligemma-jax"
"""Our ClusterTrainingRuntime in pipelines/kubernetes/training-runtime.yaml."""

_SYSTEM_GB = 70
"""GB of a boot disk that the system and the image take."""


def train_job(
    machine: Machine, image: str, timeout: int, retries: int, tolerations: list[dict], selectors: dict[str, str]
) -> dict:
    """A TrainJob with a process on each of the machine's hosts.

    Args:
        machine: one host, and the number of hosts.
        image: image with its digest.
        timeout: maximum active time in seconds.
        retries: how often a failed job is recreated.
        tolerations: tolerations of each pod.
        selectors: node selectors of each pod.
    """
    resources = {"cpu": machine.cpu, "memory": machine.memory, machine.accelerator: str(machine.count)}
    resources["ephemeral-storage"] = f"{machine.disk}G"
    spec = {
        "activeDeadlineSeconds": timeout,
        "runtimeRef": {"name": RUNTIME},
        "trainer": {
            "image": image,
            "numNodes": machine.hosts,
            "resourcesPerNode": {"requests": resources, "limits": resources},
        },
    }
    pod = {"nodeSelector": selectors, "tolerations": tolerations}
    return {"kind": "TrainJob", **_common(machine, image, retries), "spec": spec, "pod": pod}


def custom_job(
    machine: Machine, image: str, timeout: int, retries: int, spot: bool, project: str, location: str, account: str
) -> dict:
    """A custom job with one worker pool for the first host, and one for all others.

    Args:
        machine: one host, and the number of hosts.
        image: image with its digest.
        timeout: maximum running time in seconds.
        retries: how often a failed job is recreated.
        spot: whether to use spot machines, which are cheaper but may be preempted.
        project: project of the job; empty: the step's.
        location: region of the job; empty: the step's.
        account: service account of the job; empty: Vertex AI's default.
    """
    spec: dict[str, object] = {"machine_type": machine.machine_type}
    if machine.topology:
        spec["tpu_topology"] = machine.topology
    else:
        spec |= {"accelerator_type": machine.accelerator, "accelerator_count": machine.count}
    disk = {"boot_disk_size_gb": machine.disk + _SYSTEM_GB}
    pools = [
        {"machine_spec": spec, "replica_count": replicas, "container_spec": {"image_uri": image}, "disk_spec": disk}
        for replicas in (1, machine.hosts - 1)
        if replicas
    ]
    job: dict[str, object] = {
        "worker_pool_specs": pools,
        "scheduling": {"timeout": f"{timeout}s", "strategy": "SPOT" if spot else "STANDARD"},
    }
    if account:
        job["service_account"] = account
    where = {key: value for key, value in (("project", project), ("location", location)) if value}
    return {"kind": "CustomJob", **_common(machine, image, retries), "job_spec": job, **where}


def _common(machine: Machine, image: str, retries: int) -> dict:
    return {"image": image, "accelerator": str(machine.given), "retries": retries}
