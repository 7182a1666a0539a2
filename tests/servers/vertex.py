"""Vertex AI's API v1 on 127.0.0.1, as far as the project asks it: pipeline jobs, schedules, custom jobs and models.

Fields, which of them are needed, and their types are those of the REST reference (projects.locations.pipelineJobs,
projects.locations.schedules and projects.locations.customJobs of
https://cloud.google.com/vertex-ai/docs/reference/rest/v1). Like the real one it rejects what it
does not know; 64-bit integers may be strings, as in all of protocol buffers' JSON. It calls the project by its number in the
names of jobs that it makes, and a job that was just made is in no list before somebody has asked for it by its name.
"""

from __future__ import annotations

import itertools
import json
import re
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs

from google.protobuf import json_format

from servers.compiled import check_compiled
from servers.local_http import Exchange, LocalServer
from servers.struct import as_kept

JSON = [("Content-Type", "application/json")]
RUNTIME_CONFIG = {"gcsOutputDirectory!": str, "parameterValues": dict, "failurePolicy": str, "inputArtifacts": dict}
PIPELINE_JOB = {
    "name": str,
    "displayName": str,
    "pipelineSpec": dict,
    "labels": dict,
    "runtimeConfig": RUNTIME_CONFIG,
    "encryptionSpec": dict,
    "serviceAccount": str,
    "network": str,
    "reservedIpRanges": list,
    "templateUri": str,
    "preflightValidations": bool,
}
CREATE_PIPELINE_JOB = {"parent!": str, "pipelineJob!": PIPELINE_JOB, "pipelineJobId": str}
SCHEDULE = {
    "name": str,
    "displayName!": str,
    "startTime": str,
    "endTime": str,
    "maxRunCount": (str, int),
    "allowQueueing": bool,
    "maxConcurrentRunCount!": (str, int),
    "maxConcurrentActiveRunCount": (str, int),
    "cron!": str,
    "createPipelineJobRequest!": CREATE_PIPELINE_JOB,
}


MACHINE_SPEC = {"machineType!": str, "acceleratorType": str, "acceleratorCount": int, "tpuTopology": str}
CONTAINER_SPEC = {"imageUri!": str, "command": list, "args": list, "env": list}
DISK_SPEC = {"bootDiskType": str, "bootDiskSizeGb": int}
WORKER_POOL = {"machineSpec!": MACHINE_SPEC, "replicaCount!": int, "containerSpec!": CONTAINER_SPEC, "diskSpec": DISK_SPEC}
SCHEDULING = {"timeout": str, "strategy": str, "restartJobOnWorkerRestart": bool, "disableRetries": bool}
CUSTOM_JOB_SPEC = {"workerPoolSpecs!": list, "scheduling": SCHEDULING, "serviceAccount": str, "network": str}
CUSTOM_JOB = {"displayName!": str, "jobSpec!": CUSTOM_JOB_SPEC, "labels": dict, "encryptionSpec": dict}
MODEL_CONTAINER_SPEC = {  # google/cloud/aiplatform_v1/types/model.py:1106-1167 of google-cloud-aiplatform 2.7.0
    "imageUri!": str,
    "command": list,
    "args": list,
    "env": list,
    "ports": list,
    "predictRoute": str,
    "healthRoute": str,
    "invokeRoutePrefix": str,
    "grpcPorts": list,
    "deploymentTimeout": str,
    "sharedMemorySizeMb": (str, int),
    "startupProbe": dict,
    "healthProbe": dict,
    "livenessProbe": dict,
}
MODEL = {
    "displayName!": str,
    "description": str,
    "versionDescription": str,
    "versionAliases": list,
    "artifactUri": str,
    "containerSpec!": MODEL_CONTAINER_SPEC,
    "labels": dict,
}
TPU_MACHINES = {  # https://cloud.google.com/vertex-ai/docs/training/configure-compute#tpu
    "ct5lp-hightpu-1t": {"1x1"},
    "ct5lp-hightpu-4t": {"2x2"},
    "ct5lp-hightpu-8t": {"2x4"},
    "ct6e-standard-1t": {"1x1"},
    "ct6e-standard-4t": {"2x2"},
    "ct6e-standard-8t": {"2x4"},
}


ENDED = ("PIPELINE_STATE_SUCCEEDED", "PIPELINE_STATE_FAILED", "PIPELINE_STATE_CANCELLED")
JOB_ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED")
SERVICE_ACCOUNT = "123456789-compute@developer.gserviceaccount.com"


class RefusedError(Exception):
    """The request is not one of the API's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class VertexServer:
    """Keeps jobs and schedules of one project and region for the length of a `with`.

    `fail` holds what to do with the next requests: a status to answer with, or "lose" to do what is asked and break off;
    `refuse` is the method of requests to refuse, and how their path ends.
    """

    url: str
    parent = "projects/my-project/locations/us-central1"
    numbered = "projects/123456789/locations/us-central1"

    def __init__(self) -> None:
        self.jobs: dict[str, dict] = {}
        self.schedules: dict[str, dict] = {}
        self.custom_jobs: dict[str, dict] = {}
        self.unlisted: set[str] = set()
        self.state_of_new = "JOB_STATE_PENDING"
        self.states: list[str] = []  # of the next ones, as long as there are any
        self.models: dict[str, list[dict]] = {}
        self.entries: dict[str, list[dict]] = {}  # of Cloud Logging, by custom job
        self.operations: dict[str, dict] = {}
        self.log: list[tuple[str, str, str, dict | None]] = []
        self.refuse = ("", "")
        self.fail: list[int | str] = []
        self._numbers = itertools.count(1)
        self._http = LocalServer(self._serve)

    def __enter__(self) -> Self:
        self._http.__enter__()
        self.url = self._http.url
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.__exit__(kind, error, trace)

    def fire(self, identity: str) -> str | None:
        """The time of a schedule has come: the run that it starts, if it does. Only one field limits runs that have not ended;
        the other one is about starting them (google/cloud/aiplatform_v1/types/schedule.py:116-129 of google-cloud-aiplatform).
        """
        schedule = self.schedules[identity]
        if schedule["state"] != "ACTIVE":
            return None
        active = [
            one for one in self.jobs.values() if one.get("scheduleName") == schedule["name"] and one["state"] not in ENDED
        ]
        limit = schedule.get("maxConcurrentActiveRunCount")
        if limit is not None and len(active) >= int(limit):
            return None
        name = f"paligemma-finetune-{next(self._numbers)}"
        job = schedule["createPipelineJobRequest"]["pipelineJob"]
        full = f"{self.numbered}/pipelineJobs/{name}"
        self.jobs[name] = {**job, "name": full, "state": "PIPELINE_STATE_RUNNING", "scheduleName": schedule["name"]}
        return name

    def _serve(self, exchange: Exchange) -> None:
        path, _, query = exchange.target.partition("?")
        data = exchange.read_body()
        body = json.loads(data) if data else None
        self.log.append((exchange.command, path, query, body))
        told = self.fail.pop(0) if self.fail else None
        try:
            if exchange.command == self.refuse[0] and path.endswith(self.refuse[1]):
                raise RefusedError(400, "told to refuse")
            if isinstance(told, int):
                raise RefusedError(told, "told to fail")
            answer = self._answer(exchange.command, path.removeprefix("/v1/"), parse_qs(query), body)
            if told == "lose":
                exchange.reset()
                return
            exchange.answer(200, JSON, json.dumps(answer).encode())
        except RefusedError as error:
            said = {"error": {"code": error.status, "message": str(error), "status": "INVALID_ARGUMENT"}}
            exchange.answer(error.status, JSON, json.dumps(said).encode())

    def _answer(self, method: str, path: str, query: dict, body: dict | None) -> dict:
        if (method, path) == ("POST", "/v2/entries:list"):
            return self._list_entries(body)
        if not path.startswith((f"{self.parent}/", f"{self.numbered}/")):
            raise RefusedError(403, f"Permission denied on resource {path}")
        rest = path.removeprefix(f"{self.parent}/").removeprefix(f"{self.numbered}/")
        match method, *rest.split("/"):
            case "POST", "pipelineJobs":
                identity = query.get("pipelineJobId", ["x-1"])[0]
                if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,127}", identity):
                    raise RefusedError(400, "invalid pipelineJobId")
                if identity in self.jobs:
                    raise RefusedError(409, f"{identity} already exists")
                check_job(body)
                self.jobs[identity] = {
                    **body,
                    "name": f"{self.parent}/pipelineJobs/{identity}",
                    "state": "PIPELINE_STATE_PENDING",
                }
                return self.jobs[identity]
            case "GET", "pipelineJobs", identity:
                return self._find(self.jobs, identity)
            case "POST", "pipelineJobs", call if call.endswith(":cancel"):
                self._find(self.jobs, call.removesuffix(":cancel"))["state"] = "PIPELINE_STATE_CANCELLING"
                return {}
            case "POST", "customJobs":
                check_custom_job(body)
                identity = str(next(self._numbers))
                times = {"createTime": f"2026-01-01T00:00:{int(identity):02d}.000000Z"}
                state = self.states.pop(0) if self.states else self.state_of_new
                name = f"{self.numbered}/customJobs/{identity}"
                self.custom_jobs[identity] = {**body, "name": name, "state": state, **times}
                self.unlisted.add(identity)
                return self.custom_jobs[identity]
            case "GET", "customJobs":
                wanted = re.fullmatch(r'display_name="([^"]*)"', query["filter"][0])
                listed = [one for number, one in self.custom_jobs.items() if number not in self.unlisted]
                return {"customJobs": [one for one in listed if one["displayName"] == wanted[1]]}
            case "GET", "customJobs", identity:
                self.unlisted.discard(identity)
                return self._find(self.custom_jobs, identity)
            case "POST", "customJobs", call if call.endswith(":cancel"):
                job = self._find(self.custom_jobs, call.removesuffix(":cancel"))
                if job["state"] in JOB_ENDED:
                    raise RefusedError(400, f"the job is in state {job['state']}")
                job["state"] = "JOB_STATE_CANCELLING"
                return {}
            case "POST", "models:upload":
                return self._upload(body)
            case "GET", "models", name:
                identity, _, wanted = name.partition("@")
                for one in reversed(self._find(self.models, identity)):
                    if not wanted or wanted in (one["versionId"], *one["versionAliases"]):
                        return one
                raise RefusedError(404, f"{name} is not found")
            case "GET", "models", _, "operations", identity:
                return self._find(self.operations, identity)
            case "POST", "schedules":
                self._check_schedule(body)
                identity = str(next(self._numbers))
                times = dict.fromkeys(("createTime", "updateTime", "startTime"), "2026-01-01T00:00:00Z")
                filled = {"name": f"{self.numbered}/schedules/{identity}", "state": "ACTIVE", "startedRunCount": "0", **times}
                self.schedules[identity] = {**body, **filled}
                self._fill_in(self.schedules[identity])
                return self.schedules[identity]
            case "GET", "schedules":
                wanted = re.fullmatch(r'display_name="([^"]*)"', query.get("filter", ['display_name=""'])[0])
                if wanted is None:
                    raise RefusedError(400, "invalid filter")
                return {"schedules": [one for one in self.schedules.values() if wanted[1] in ("", one["displayName"])]}
            case "POST", "schedules", call if call.endswith(":pause"):
                check_fields(body, {}, "pause")
                return self._change_state(call.removesuffix(":pause"), "ACTIVE", "PAUSED")
            case "POST", "schedules", call if call.endswith(":resume"):
                check_fields(body, {"catchUp": bool}, "resume")
                return self._change_state(call.removesuffix(":resume"), "PAUSED", "ACTIVE")
            case "DELETE", "schedules", identity:
                self._find(self.schedules, identity)
                del self.schedules[identity]
                return {"name": f"{self.numbered}/operations/{next(self._numbers)}", "done": False}
            case "PATCH", "schedules", identity:
                found = self._find(self.schedules, identity)
                fields = query["updateMask"][0].split(",")
                if unknown := set(fields) - {key.rstrip("!") for key in SCHEDULE}:
                    raise RefusedError(400, f"invalid updateMask: {unknown}")
                self._check_schedule(body)
                found.update({field: body[field] for field in fields})
                self._fill_in(found)
                return found
        raise RefusedError(404, f"{method} {path} is not there")

    def _change_state(self, identity: str, before: str, after: str) -> dict:
        """Only an active schedule can be paused, and only a paused one resumed (schedule_service.proto)."""
        found = self._find(self.schedules, identity)
        if found["state"] != before:
            raise RefusedError(400, f"the schedule is {found['state']}")
        found["state"] = after
        return {}

    def _list_entries(self, body: dict) -> dict:
        """Cloud Logging's entries.list (https://cloud.google.com/logging/docs/reference/v2/rest/v2/entries/list)."""
        fields = {"resourceNames!": list, "filter": str, "orderBy": str, "pageSize": int, "pageToken": str}
        check_fields(body, fields, "entries:list")
        wanted = re.fullmatch(r'resource.type="ml_job" AND resource.labels.job_id="(\d+)"', body["filter"])
        if wanted is None or body["orderBy"] != "timestamp asc" or body["resourceNames"] != ["projects/my-project"]:
            raise RefusedError(400, "Unparseable filter")
        entries = self.entries.get(wanted[1], [])
        start = int(body.get("pageToken") or 0)
        page = {"entries": entries[start : start + 2]} if entries[start:] else {}
        return page | ({"nextPageToken": str(start + 2)} if entries[start + 2 :] else {})

    def _upload(self, body: dict) -> dict:
        check_fields(body, {"parentModel": str, "modelId": str, "model!": MODEL, "serviceAccount": str}, "upload")
        model = body["model"]
        if not model["artifactUri"].startswith("gs://"):
            raise RefusedError(400, "artifactUri is not in Cloud Storage")
        if bad := [one for one in model["versionAliases"] if not re.fullmatch("[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]", one)]:
            raise RefusedError(400, f"invalid alias: {bad}")
        for entry in model["containerSpec"].get("env", ()):
            check_fields(entry, {"name!": str, "value!": str}, "env")
        for port in model["containerSpec"].get("ports", ()):
            check_fields(port, {"containerPort!": int}, "ports")
        identity = body.get("modelId") or body["parentModel"].rpartition("/")[2]
        if ("modelId" in body) == (identity in self.models):
            raise RefusedError(400, f"{identity} is {'' if identity in self.models else 'not '}there")
        versions = self.models.setdefault(identity, [])
        name = f"{self.parent}/models/{identity}"
        versions.append({**model, "name": name, "versionId": str(len(versions) + 1)})
        number = str(next(self._numbers))
        operation = {"name": f"{name}/operations/{number}", "done": False}
        response = {"model": name, "modelVersionId": versions[-1]["versionId"]}
        self.operations[number] = {**operation, "done": True, "response": response}
        return operation

    def _fill_in(self, schedule: dict) -> None:
        """As it is given back: with what was left to the service."""
        request = schedule["createPipelineJobRequest"]
        job = {"serviceAccount": SERVICE_ACCOUNT, **request["pipelineJob"]}
        job["runtimeConfig"] = {"failurePolicy": "PIPELINE_FAILURE_POLICY_FAIL_SLOW", **job["runtimeConfig"]}
        job["labels"] = {**job.get("labels", {}), "vertex-ai-pipelines-run-billing-id": "1"}
        schedule["createPipelineJobRequest"] = {**request, "pipelineJob": job}

    def _find(self, place: dict[str, dict], identity: str) -> dict:
        if identity not in place:
            raise RefusedError(404, f"{identity} is not found")
        return place[identity]

    def _check_schedule(self, body: dict) -> None:
        check_fields(body, SCHEDULE, "schedule")
        if len(body["cron"].split()) != 5 and not body["cron"].startswith(("TZ=", "CRON_TZ=")):
            raise RefusedError(400, f"invalid cron: {body['cron']}")
        if body["createPipelineJobRequest"]["parent"] != self.parent:
            raise RefusedError(400, "parent is of another region")
        check_job(body["createPipelineJobRequest"]["pipelineJob"])
        job = body["createPipelineJobRequest"]["pipelineJob"]
        job["pipelineSpec"] = as_kept(job["pipelineSpec"], float)
        job["runtimeConfig"]["parameterValues"] = as_kept(job["runtimeConfig"]["parameterValues"], float)


def check_job(body: dict) -> None:
    """Raises RefusedError for what is no pipeline job."""
    check_fields(body, PIPELINE_JOB, "pipelineJob")
    if not body["runtimeConfig"]["gcsOutputDirectory"].startswith("gs://"):
        raise RefusedError(400, "gcsOutputDirectory is not in Cloud Storage")
    try:
        check_compiled(body["pipelineSpec"])
    except json_format.ParseError as error:
        raise RefusedError(400, f"invalid pipelineSpec: {error}") from None
    declared = body["pipelineSpec"]["root"]["inputDefinitions"]["parameters"]
    given = body["runtimeConfig"].get("parameterValues", {})
    if unknown := given.keys() - declared.keys():
        raise RefusedError(400, f"The pipeline parameter {unknown} is not found in the pipeline job input definitions.")
    if missing := {name for name, one in declared.items() if not one.get("isOptional")} - given.keys():
        raise RefusedError(400, f"The input parameter {missing} is missing.")
    for executor in body["pipelineSpec"]["deploymentSpec"]["executors"].values():
        if "@sha256:" not in executor["container"]["image"] and "pkg.dev" not in executor["container"]["image"]:
            raise RefusedError(400, "an image that Vertex cannot reach")


def check_custom_job(body: dict) -> None:
    """Raises RefusedError for what is no custom job."""
    check_fields(body, CUSTOM_JOB, "customJob")
    pools = body["jobSpec"]["workerPoolSpecs"]
    for number, pool in enumerate(pools):
        check_fields(pool, WORKER_POOL, "workerPoolSpecs")
        machine = pool["machineSpec"]
        if number == 0 and pool["replicaCount"] != 1:
            raise RefusedError(400, "the first worker pool has one replica")
        if machine["machineType"].startswith("ct"):
            if machine.get("tpuTopology") not in TPU_MACHINES.get(machine["machineType"], ()) or len(pools) > 1:
                raise RefusedError(400, f"{machine} is no TPU slice of one host")
        elif not {"acceleratorType", "acceleratorCount"} <= machine.keys():
            raise RefusedError(400, "no accelerator")
        for entry in pool["containerSpec"].get("env", ()):
            check_fields(entry, {"name!": str, "value!": str}, "env")
    if not re.fullmatch(r"\d+s", body["jobSpec"]["scheduling"]["timeout"]):
        raise RefusedError(400, "timeout is no duration")
    if body["jobSpec"]["scheduling"].get("strategy", "STANDARD") not in ("STANDARD", "SPOT", "FLEX_START", "ON_DEMAND"):
        raise RefusedError(400, "unknown strategy")


def check_fields(body: object, fields: dict, where: str) -> None:
    """Raises RefusedError for an unknown field, a missing one (marked !), and a value of another type."""
    if not isinstance(body, dict):
        raise RefusedError(400, f"{where} is no object")
    known = {key.rstrip("!"): kind for key, kind in fields.items()}
    for key, value in body.items():
        if key not in known:
            raise RefusedError(400, f"Invalid JSON payload received. Unknown name \"{key}\" at '{where}'")
        if isinstance(known[key], dict):
            check_fields(value, known[key], f"{where}.{key}")
        elif not isinstance(value, known[key]):
            raise RefusedError(400, f"Invalid value at '{where}.{key}'")
    for key in fields:
        if key.endswith("!") and not body.get(key[:-1]):
            raise RefusedError(400, f"Required field '{where}.{key[:-1]}' is missing")
