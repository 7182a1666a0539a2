"""Kubernetes' API on 127.0.0.1, as far as a pod asks it for TrainJobs; they are run, as Kubeflow Trainer does, or only kept.

Fields, which of them are needed, and their types are those of the published schema (`schemas/trainjob.json`). The processes get
what pkg/runtime/framework/plugins/jax gives them. Nothing unknown is let pass, which the real one would only warn of. What is
owned by a pod goes when the pod does, and a patch is taken as a merge patch only.
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
from servers.schema import read_schema, violations
from servers.vertex import JSON, RefusedError, check_fields

RUNTIMES = {"torch-distributed", "jax-distributed", "mpi-distributed"}
"""What Kubeflow Trainer brings; `runtimes` of a server are those that were applied besides."""
SCHEMA = read_schema("trainjob")
OWNER = {"apiVersion!": str, "kind!": str, "name!": str, "uid!": str, "controller": bool, "blockOwnerDeletion": bool}


class TrainerServer:
    """Keeps the TrainJobs of the namespace `kubeflow` for the length of a `with`.

    `conditions` is what a new one has as its status, and `outcomes`, as long as there are any, that of the next ones; with
    `environment`, it is run instead, with a process for each node. `polled` is called for every GET.
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
        self.outcomes: list[list[dict]] = []
        self.pods = {"pod-1", "pod-2"}  # their uids
        self.runtimes = RUNTIMES | {"paligemma-jax"}
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
            if exchange.command == "PATCH" and exchange.headers.get("Content-Type") != "application/merge-patch+json":
                raise RefusedError(415, "the body of the request was in an unknown format")
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
            check_train_job(body, self.runtimes)
            name = body["metadata"]["name"]
            if name in self.jobs:
                raise RefusedError(409, f'trainjobs "{name}" already exists')
            conditions = self.outcomes.pop(0) if self.outcomes else self.conditions
            self.jobs[name] = {**body, "status": {"conditions": conditions}}
            self._collect_garbage()
            if self._environment is not None:
                self._start(name, body["spec"]["trainer"])
            return body
        if name not in self.jobs:
            raise RefusedError(404, f'trainjobs "{name}" not found')
        if method == "PATCH":
            check_fields(body, {"metadata!": {"ownerReferences": list}}, "patch")
            check_owners(body["metadata"])
            self.jobs[name]["metadata"].update(body["metadata"])
            found = self.jobs[name]
            self._collect_garbage()
            return found
        if method == "DELETE":
            check_fields(body, {"apiVersion": str, "kind!": str, "propagationPolicy": str}, "options")
            del self.jobs[name]
            return {"kind": "Status", "status": "Success"}
        self.polled()
        self._see(name)
        return self.jobs[name]

    def lose_pod(self, uid: str) -> None:
        """A pod is deleted, by whom or what it may."""
        self.pods.discard(uid)
        self._collect_garbage()

    def _collect_garbage(self) -> None:
        """What had owners goes with the last of them."""
        for name, job in list(self.jobs.items()):
            owners = job["metadata"].get("ownerReferences") or ()
            if owners and self.pods.isdisjoint(owner["uid"] for owner in owners):
                del self.jobs[name]

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


def check_train_job(body: dict, runtimes: set[str]) -> None:
    """Raises RefusedError for what is no TrainJob."""
    if found := [*violations(body, SCHEMA, "TrainJob")]:
        raise RefusedError(422, "; ".join(found))
    if (body["apiVersion"], body["kind"]) != ("trainer.kubeflow.org/v1alpha1", "TrainJob"):
        raise RefusedError(400, "no TrainJob")
    name, spec = body["metadata"]["name"], body["spec"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 63:
        raise RefusedError(422, "metadata.name must match RFC 1035 DNS label format")
    check_owners(body["metadata"])
    if spec["runtimeRef"]["name"] not in runtimes:
        raise RefusedError(422, f"ClusterTrainingRuntime {spec['runtimeRef']['name']} is not found")
    for patch in spec.get("runtimePatches", ()):
        for job in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            if job["name"] != "node":
                raise RefusedError(422, "the runtime has no such job")


def check_owners(metadata: dict) -> None:
    """Raises RefusedError for what is no owner."""
    for owner in metadata.get("ownerReferences", ()):
        check_fields(owner, OWNER, "ownerReferences")


def repository_environment(repository: Path, environment: dict[str, str]) -> dict[str, str]:
    """An environment in which the repository's packages are found from anywhere."""
    places = [str(repository / "shared"), str(repository), environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(place for place in places if place)}
