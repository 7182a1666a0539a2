"""Kubernetes' API on 127.0.0.1, as far as a pod asks it for TrainJobs; they are run, as Kubeflow Trainer does, or only kept.

Fields, which of them are needed, and their types are those of manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml (v2.3) in
https://github.com/kubeflow/trainer. The processes get what pkg/runtime/framework/plugins/jax gives them. Nothing unknown is let
pass, which the real one would only warn of.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from servers.local_http import Exchange, LocalServer
from servers.vertex import JSON, RefusedError, check_fields

RESOURCES = {"requests": dict, "limits": dict}
POD = {"nodeSelector": dict, "tolerations": list, "serviceAccountName": str, "affinity": dict, "volumes": list}
JOB = {"name!": str, "template": {"metadata": dict, "spec": {"template": {"metadata": dict, "spec": POD}}}}
PATCH = {"manager!": str, "trainingRuntimeSpec": {"template": {"metadata": dict, "spec": {"replicatedJobs": list}}}}
SPEC = {
    "activeDeadlineSeconds": int,
    "runtimeRef!": {"name!": str, "apiGroup": str, "kind": str},
    "runtimePatches": list,
    "suspend": bool,
    "trainer": {
        "image": str,
        "command": list,
        "args": list,
        "env": list,
        "numNodes": int,
        "numProcPerNode": int,
        "resourcesPerNode": RESOURCES,
    },
}
TRAIN_JOB = {"apiVersion!": str, "kind!": str, "metadata!": {"name!": str, "labels": dict, "annotations": dict}, "spec!": SPEC}
TOLERATION = {"key": str, "operator": str, "value": str, "effect": str}
RUNTIMES = ("jax-distributed", "torch-distributed", "mpi-distributed")


class TrainerServer:
    """Keeps the TrainJobs of the namespace `kubeflow` for the length of a `with`.

    `conditions` is what a new one has as its status; with `environment`, it is run instead, with a process for each node.
    `polled` is called for every GET.
    """

    url: str

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        """Writes what a pod finds of its service account into `folder`."""
        claims = base64.urlsafe_b64encode(b'{"sub": "system:serviceaccount:kubeflow:pipeline-runner"}').decode().rstrip("=")
        self.token = f"e30.{claims}.c2lnbmF0dXJl"
        folder.mkdir()
        for name, text in (("token", f"{self.token}\n"), ("namespace", "kubeflow"), ("ca.crt", "")):
            (folder / name).write_text(text)
        self.jobs: dict[str, dict] = {}
        self.log: list[tuple[str, str, dict | None]] = []
        self.conditions: list[dict] = []
        self.polled: Callable[[], None] = lambda: None
        self._environment = environment
        self._processes: dict[str, list[subprocess.Popen]] = {}
        self._http = LocalServer(self._serve)

    def __enter__(self) -> Self:
        self._http.__enter__()
        self.url = self._http.url
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in (process for processes in self._processes.values() for process in processes):
            process.kill()
            process.wait()
        self._http.__exit__(kind, error, trace)

    def _serve(self, exchange: Exchange) -> None:
        data = exchange.read_body()
        body = json.loads(data) if data else None
        self.log.append((exchange.command, exchange.target, body))
        try:
            if exchange.headers.get("Authorization") != f"Bearer {self.token}":
                raise RefusedError(401, "Unauthorized")
            exchange.answer(200, JSON, json.dumps(self._answer(exchange.command, exchange.target, body)).encode())
        except RefusedError as error:
            said = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": str(error), "code": error.status}
            exchange.answer(error.status, JSON, json.dumps(said).encode())

    def _answer(self, method: str, path: str, body: dict | None) -> dict:
        known = re.fullmatch(r"/apis/trainer\.kubeflow\.org/v1alpha1/namespaces/([^/]+)/trainjobs(?:/([^/]+))?", path)
        if known is None:
            raise RefusedError(404, "the server could not find the requested resource")
        namespace, name = known.groups()
        if namespace != "kubeflow":
            raise RefusedError(403, f"trainjobs is forbidden in the namespace {namespace!r}")
        if method == "POST" and name is None:
            check_train_job(body)
            name = body["metadata"]["name"]
            if name in self.jobs:
                raise RefusedError(409, f'trainjobs "{name}" already exists')
            self.jobs[name] = {**body, "status": {"conditions": self.conditions}}
            if self._environment is not None:
                self._start(name, body["spec"]["trainer"])
            return self.jobs[name]
        if name not in self.jobs:
            raise RefusedError(404, f'trainjobs "{name}" not found')
        if method == "DELETE":
            check_fields(body, {"apiVersion": str, "kind!": str, "propagationPolicy": str}, "options")
            del self.jobs[name]
            return {"kind": "Status", "status": "Success"}
        self.polled()
        self._see(name)
        return self.jobs[name]

    def _start(self, name: str, trainer: dict) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        python, *words = trainer["command"]
        assert python == "python"
        given = {entry["name"]: entry["value"] for entry in trainer["env"]}
        given |= {"JAX_NUM_PROCESSES": str(trainer["numNodes"]), "JAX_COORDINATOR_ADDRESS": address}
        self._processes[name] = [
            subprocess.Popen([sys.executable, *words], env={**self._environment, **given, "JAX_PROCESS_ID": str(index)})
            for index in range(trainer["numNodes"])
        ]

    def _see(self, name: str) -> None:
        codes = [process.poll() for process in self._processes.get(name, ())]
        if codes and None not in codes:
            ended = {"type": "Failed" if any(codes) else "Complete", "status": "True", "reason": "x", "message": f"{codes}"}
            self.jobs[name]["status"] = {"conditions": [{"type": "Suspended", "status": "False"}, ended]}


def check_train_job(body: dict) -> None:
    """Raises RefusedError for what is no TrainJob."""
    check_fields(body, TRAIN_JOB, "TrainJob")
    if (body["apiVersion"], body["kind"]) != ("trainer.kubeflow.org/v1alpha1", "TrainJob"):
        raise RefusedError(400, "no TrainJob")
    name, spec = body["metadata"]["name"], body["spec"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 63:
        raise RefusedError(422, "metadata.name must match RFC 1035 DNS label format")
    if spec["runtimeRef"]["name"] not in RUNTIMES:
        raise RefusedError(422, f"ClusterTrainingRuntime {spec['runtimeRef']['name']} is not found")
    trainer = spec["trainer"]
    if len(trainer.get("command", ())) > 128 or not all(isinstance(word, str) for word in trainer.get("command", ())):
        raise RefusedError(422, "spec.trainer.command")
    for entry in trainer.get("env", ()):
        check_fields(entry, {"name!": str, "value": str, "valueFrom": dict}, "env")
    for amounts in trainer.get("resourcesPerNode", {}).values():
        if not all(re.fullmatch(r"[0-9.]+([KMGT]i?|m)?", amount) for amount in amounts.values()):
            raise RefusedError(400, f"quantities must match: {amounts}")
    for patch in spec.get("runtimePatches", ()):
        check_fields(patch, PATCH, "runtimePatches")
        for job in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            check_fields(job, JOB, "replicatedJobs")
            if job["name"] != "node":
                raise RefusedError(422, "the runtime has no such job")
            for toleration in job["template"]["spec"]["template"]["spec"].get("tolerations", ()):
                check_fields(toleration, TOLERATION, "tolerations")


def repository_environment(repository: Path, environment: dict[str, str]) -> dict[str, str]:
    """An environment in which the repository's packages are found from anywhere."""
    places = [str(repository / "shared"), str(repository), environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(place for place in places if place)}
