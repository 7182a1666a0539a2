"""Kubeflow Pipelines' API v2beta1 on 127.0.0.1, as far as the project asks it: experiments, runs and recurring runs.

It rejects what the real one rejects: fields that kfp-server-api's models (generated from the API's own protocol buffers) do not
have, enumeration values that they do not allow, pipelines that are not KFP's IR, parameters that the pipeline does not have or
whose values are of another type, and cron expressions without seconds (the API server uses robfig/cron with six fields).

It fills in what the real one fills in (toApiRecurringRun and toApiRun of backend/src/apiserver/server/api_converter.go, 2.17.0;
the service account: resource_manager.go:1414 and :751). A run belongs to the schedule that started it, and dies with that,
unless it is deleted with the propagation policy ORPHAN (resource_manager.go:1458, util/scheduled_workflow.go:188). It starts
none while as many as its max_concurrency run (util/scheduled_workflow.go:207). Lists come in pages.
Logs are those of pods, by their names, while these are there (ReadRunLogV1 of server/run_log_server.go, readRunLogFromPod of
resource/resource_manager.go), at a path of v1alpha1 that kfp-server-api does not have (main.go).
"""

from __future__ import annotations

import itertools
import json
import re
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs

import kfp_server_api
from google.protobuf import json_format

from servers.compiled import check_compiled
from servers.local_http import Exchange, LocalServer
from servers.struct import as_kept

API = "/apis/v2beta1/"
JSON = [("Content-Type", "application/json")]
SERVICE_ACCOUNT = "pipeline-runner"
"""DefaultPipelineRunnerServiceAccount of backend/src/apiserver/common/const.go:59."""
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_KINDS = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": (int, float), "BOOLEAN": bool}


class RefusedError(Exception):
    """The request is not one of the API's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class KubeflowServer:
    """Keeps runs and schedules for the length of a `with`; `fail` holds statuses to answer the next requests with,
    `refuse` the method of requests to refuse, and how their path ends.

    `token`, if given, must come with each request.
    """

    url: str
    page_size = 2

    def __init__(self, token: str = "") -> None:
        self.token = token
        self.experiments: dict[str, dict] = {}
        self.runs: dict[str, dict] = {}
        self.recurring_runs: dict[str, dict] = {}
        self.log: list[tuple[str, str, dict | None]] = []
        self.refuse = ("", "")
        self.fail: list[int] = []
        self.knows_orphans = True  # from 2.16 on
        self.pods: dict[str, str] = {}  # what those that are still there printed
        self.collected: list[str] = []  # runs that died with their schedule
        self._numbers = itertools.count(1)
        self._http = LocalServer(self._serve)

    def __enter__(self) -> Self:
        self._http.__enter__()
        self.url = self._http.url
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.__exit__(kind, error, trace)

    def fire(self, identity: str) -> str | None:
        """The time of a schedule has come: the run that it starts, if it does."""
        schedule = self.recurring_runs[identity]
        active = [run for run in self.runs.values() if run["recurring_run_id"] == identity and run["state"] not in ENDED]
        if schedule["mode"] != "ENABLE" or len(active) >= int(schedule["max_concurrency"]):
            return None
        kept = ("experiment_id", "pipeline_spec", "runtime_config", "service_account")
        run = {key: schedule[key] for key in kept} | {"display_name": f"{schedule['display_name']} {len(self.runs)}"}
        return self._keep(self.runs, "run", {**run, "recurring_run_id": identity, **self._new_run()})["run_id"]

    def _new_run(self) -> dict:
        return {"state": "RUNNING", "storage_state": "AVAILABLE", "run_details": {"task_details": []}, **self._times()}

    def _times(self) -> dict:
        return dict.fromkeys(("created_at", "updated_at"), f"2026-01-01T00:00:{next(self._numbers) % 60:02d}Z")

    def _serve(self, exchange: Exchange) -> None:
        path, _, query = exchange.target.partition("?")
        data = exchange.read_body()
        body = json.loads(data) if data else None
        self.log.append((exchange.command, path, body))
        try:
            if exchange.command == self.refuse[0] and path.endswith(self.refuse[1]):
                raise RefusedError(400, "told to refuse")
            if self.fail:
                raise RefusedError(self.fail.pop(0), "told to fail")
            if self.token and exchange.headers.get("Authorization") != f"Bearer {self.token}":
                raise RefusedError(401, "unauthorized")
            if logged := re.fullmatch("/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", path):
                self._find(self.runs, logged[1])
                if logged[2] not in self.pods:
                    raise RefusedError(400, f"Failed to read logs for run {logged[1]}")
                exchange.answer(200, [("Content-Type", "text/plain")], self.pods[logged[2]].encode())
                return
            answer = self._answer(exchange.command, path.removeprefix(API), parse_qs(query), body)
            exchange.answer(200, JSON, json.dumps(answer).encode())
        except RefusedError as error:
            exchange.answer(error.status, JSON, json.dumps({"code": 3, "message": str(error)}).encode())

    def _answer(self, method: str, path: str, query: dict, body: dict | None) -> dict:
        match method, re.sub(r"(?<=/)[a-z]+-\d+", "ID", path):
            case "GET", "healthz":
                return {}
            case "GET", "experiments":
                return self._page(self.experiments, "experiments", query)
            case "POST", "experiments":
                check_model(body, "V2beta1Experiment", ("display_name",))
                return self._keep(self.experiments, "experiment", {**body, "storage_state": "AVAILABLE"})
            case "POST", "runs":
                self._check_job(body, "V2beta1Run")
                filled = {"service_account": body.get("service_account") or SERVICE_ACCOUNT, "recurring_run_id": ""}
                return self._keep(self.runs, "run", {**body, **filled, **self._new_run(), "state": "PENDING"})
            case "GET", "runs":
                return self._page(self.runs, "runs", query)
            case "GET", "runs/ID":
                return self._find(self.runs, path.split("/")[1])
            case "POST", "runs/ID:terminate":
                self._find(self.runs, path.split("/")[1].partition(":")[0])["state"] = "CANCELING"
                return {}
            case "GET", "recurringruns":
                return self._page(self.recurring_runs, "recurringRuns", query)
            case "POST", "recurringruns":
                self._check_job(body, "V2beta1RecurringRun")
                cron = body["trigger"]["cron_schedule"]["cron"]
                if len(cron.split()) != 6:
                    raise RefusedError(400, f"expected 6 fields, found {len(cron.split())}: [{cron}]")
                if body.get("max_concurrency", 0) not in range(1, 11) and body.get("max_concurrency") != "1":
                    raise RefusedError(400, "max_concurrency must be 1 to 10")
                filled = {"service_account": body.get("service_account") or SERVICE_ACCOUNT, "namespace": "kubeflow"}
                filled |= {"status": "ENABLED", **self._times()}
                return self._keep(self.recurring_runs, "recurring_run", {**body, **filled})
            case "POST", "recurringruns/ID:disable" | "recurringruns/ID:enable":
                identity, _, verb = path.split("/")[1].partition(":")
                found = self._find(self.recurring_runs, identity)
                found |= {"mode": verb.upper(), "status": f"{verb.upper()}D"}
                return {}
            case "DELETE", "recurringruns/ID":
                identity = path.split("/")[1]
                self._find(self.recurring_runs, identity)
                del self.recurring_runs[identity]
                if query.get("propagation_policy") != ["ORPHAN"] or not self.knows_orphans:
                    for name, run in self.runs.items():
                        if run["recurring_run_id"] == identity and run["state"] not in ENDED:
                            self.collected.append(name)
                            run["state"] = "FAILED"
                return {}
        raise RefusedError(404, f"{method} {path} is not there")

    def _keep(self, place: dict[str, dict], kind: str, value: dict) -> dict:
        identity = f"{kind.replace('_', '')}-{next(self._numbers)}"
        place[identity] = {**value, f"{kind}_id": identity}
        for key in ("pipeline_spec", "runtime_config"):
            if key in value:
                place[identity][key] = as_kept(value[key], int)
        return place[identity]

    def _find(self, place: dict[str, dict], identity: str) -> dict:
        if identity not in place:
            raise RefusedError(404, f"{identity} not found")
        return place[identity]

    def _page(self, place: dict[str, dict], key: str, query: dict) -> dict:
        found = list(place.values())
        if "filter" in query:
            (wanted,) = json.loads(query["filter"][0])["predicates"]
            found = [one for one in found if one[wanted["key"]] == wanted["stringValue"]]
        if "experiment_id" in query:
            found = [one for one in found if one["experiment_id"] == query["experiment_id"][0]]
        if query.get("sort_by") == ["created_at desc"]:
            found.sort(key=lambda one: one["created_at"], reverse=True)
        start = int(query.get("page_token", ["0"])[0] or 0)
        stop = start + min(self.page_size, int(query.get("page_size", [10])[0]))
        return {key: found[start:stop], "total_size": len(found), **({"next_page_token": str(stop)} if found[stop:] else {})}

    def _check_job(self, body: dict, model: str) -> None:
        check_model(body, model, ("display_name", "experiment_id", "runtime_config"))
        self._find(self.experiments, body["experiment_id"])
        specification = body["pipeline_spec"]
        both = "pipeline_spec" in specification
        pipeline = specification["pipeline_spec"] if both else specification
        try:
            check_compiled(pipeline, specification["platform_spec"] if both else None)
        except json_format.ParseError as error:
            raise RefusedError(400, f"invalid pipeline spec: {error}") from None
        declared = pipeline["root"]["inputDefinitions"]["parameters"]
        given = body["runtime_config"].get("parameters", {})
        for name, value in given.items():
            if name not in declared:
                raise RefusedError(400, f"parameter {name} is not part of the pipeline")
            kind = declared[name]["parameterType"]
            if not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
                raise RefusedError(400, f"parameter {name} is not of the type {kind}")
        for name, parameter in declared.items():
            if not parameter.get("isOptional") and name not in given:
                raise RefusedError(400, f"parameter {name} is required")


def check_model(body: object, model: str, required: tuple[str, ...] = ()) -> None:
    """Raises RefusedError for a field, at any depth, that a model of kfp-server-api does not have, and a value it forbids."""
    known = getattr(kfp_server_api, model)
    if not hasattr(known, "attribute_map"):
        return
    if not hasattr(known, "openapi_types") or not known.attribute_map:  # an enumeration
        if body not in known.allowable_values:
            raise RefusedError(400, f"{body!r} is no {model}")
        return
    fields = {public: known.openapi_types[name] for name, public in known.attribute_map.items()}
    for key, value in body.items():
        if key not in fields:
            raise RefusedError(400, f"unknown field {key!r} in {model}")
        if fields[key].startswith("V2beta1") and value is not None:
            check_model(value, fields[key])
    for key in required:
        if not body.get(key):
            raise RefusedError(400, f"{key} is missing")
