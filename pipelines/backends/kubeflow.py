"""Kubeflow Pipelines, through its own client."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from paligemma.errors import DamagedError
from paligemma.foreign_json import parse_json
from paligemma.google import rest
from paligemma.google.rest import BackendError, BackendUnavailableError
from paligemma.retry import RETRYABLE, urllib3_retry
from paligemma.terminal import printable
from paligemma.yaml_text import dump_documents
from pipelines.backends.job import Job, Scheduled, difference, find_task, no_such_schedule, step_names

TOKEN_VARIABLE = "KFP_TOKEN"
"""Bearer token for an API that needs one; never a flag."""

_FILLED_IN = ("pipeline-runner", "default-editor")
"""KFP's default service accounts, for single-user and multi-user installations."""
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


class Kubeflow:
    """A KFP installation."""

    def __init__(self, host: str, namespace: str, experiment: str) -> None:
        """Connects.

        Args:
            host: address of the API, e.g. `https://HASH-dot-REGION.pipelines.googleusercontent.com`.
            namespace: namespace of the experiment, in a multi-user installation.
            experiment: experiment of the runs; created if missing.
        """
        import kfp

        class Client(kfp.Client):
            def _load_config(self, *arguments, **more):
                config: Any = super()._load_config(*arguments, **more)
                config.retries = urllib3_retry(rest.SECONDS, final={500})  # its answer for a log that is gone
                return config

            def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
                """Tries once: the client's own method tries five times for any answer, and then hides the answer."""
                return self._healthz_api.healthz_service_get_healthz()

        with _errors(host):
            self._client = Client(
                host=host, namespace=namespace or "kubeflow", existing_token=os.environ.get(TOKEN_VARIABLE), verify_ssl=True
            )
        self._host, self._namespace, self._experiment = host, namespace, experiment

    def submit(self, job: Job) -> str:
        """Starts a run."""
        with _errors(self._host), _package(job) as package:
            run = self._client.run_pipeline(
                experiment_id=self._experiment_id(),
                job_name=job.name,
                pipeline_package_path=str(package),
                params=dict(job.parameters),
                pipeline_root=job.root or None,
                service_account=job.service_account or None,
            )
        return str(run.run_id)

    def schedule(self, job: Job, cron: str, dry_run: bool, show: Callable[[str], None]) -> None:
        """Creates a recurring run (one at a time, without catch-up), unless an equal one exists.

        A run of the replaced one continues to its end, perhaps after the new one's first run has begun.
        """
        wanted = _canonical(job, cron)
        with _errors(self._host):
            experiment = self._experiment_id()
            recurring = self._all(self._client.list_recurring_runs, "recurring_runs", experiment)
            there = [one for one in recurring if one.display_name == job.name]
            same = [one for one in there if not difference(_of_server(one, wanted), wanted)]
            changes = difference(_of_server(there[0], wanted) if there else {}, wanted) if not same else ""
        show(changes)
        if dry_run:
            return
        with _errors(self._host):
            if not same:
                with _package(job) as package:
                    self._client.create_recurring_run(
                        experiment_id=experiment,
                        job_name=job.name,
                        cron_expression=cron,
                        max_concurrency=1,
                        no_catchup=True,
                        pipeline_package_path=str(package),
                        params=dict(job.parameters),
                        pipeline_root=job.root or None,
                        service_account=job.service_account or None,
                    )
            # The old one is deleted last: a crash in between leaves one too many, which the next call removes.
            old = [one.recurring_run_id for one in there if not same or one is not same[0]]
            for one in old:
                self._delete(one)
            going_on = [*self._under_way(experiment, old)] if old else []
        for run in going_on:
            show(f"the run {run} of the schedule before goes on to its end")

    def status(self, run: str) -> str:
        """The states of the run and its tasks."""
        with _errors(self._host):
            found = self._client.get_run(run)
        steps = step_names(_documents(found.pipeline_spec)[0])
        nodes = (found.run_details.task_details or []) if found.run_details else []  # includes drivers, attempts and DAGs
        tasks = sorted((node for node in nodes if node.display_name in steps), key=lambda node: str(node.start_time))
        lines = [f"{found.display_name}: {found.state}", *(f"  {task.display_name}: {task.state}" for task in tasks)]
        return "\n".join(map(printable, lines))

    def cancel(self, run: str) -> None:
        """Terminates the run."""
        with _errors(self._host):
            self._client.terminate_run(run)

    def schedules(self) -> list[Scheduled]:
        """Recurring runs of the experiment."""
        with _errors(self._host):
            found = list(self._recurring())
        return [
            Scheduled(one.display_name, _cron(one) or "", "paused" if one.status == "DISABLED" else "active", "")
            for one in found
        ]

    def unschedule(self, name: str) -> None:
        """Deletes the recurring runs of this name."""
        self._each(name, self._delete)

    def pause(self, name: str) -> None:
        """Disables the recurring runs of this name."""
        self._each(name, self._client.disable_recurring_run)

    def resume(self, name: str) -> None:
        """Enables the recurring runs of this name."""
        self._each(name, self._client.enable_recurring_run)

    def logs(self, run: str, task: str) -> list[str]:
        """Asks KFP for the logs of a task's pods, one after the other, as its page does (ReadRunLogV1 of run_log_server.go)."""
        with _errors(self._host):
            found = self._client.get_run(run)
            nodes = (found.run_details.task_details or []) if found.run_details else []
            steps = step_names(_documents(found.pipeline_spec)[0])
            task = find_task(task, run, (node.display_name for node in nodes if node.display_name in steps))
            lines: list[str] = []
            for pod in _pods(nodes, task):
                lines += [f"== {pod}", *self._log(run, pod).splitlines()]
        return [printable(line) for line in lines]

    def _log(self, run: str, pod: str) -> str:
        """A pod's log, or a note that KFP no longer has it: KFP reads the pod itself, or an archive if one is set up."""
        from kfp_server_api import ApiException

        path = f"/apis/v1alpha1/runs/{quote(run, safe='')}/nodes/{quote(pod, safe='')}/log"
        client = self._client._run_api.api_client  # the generated client lacks this call
        try:
            answer: Any = client.call_api(
                path, "GET", auth_settings=["Bearer"], _preload_content=False, _return_http_data_only=True
            )
        except ApiException as error:
            if error.status not in (400, 404, 500):
                raise
            namespace = self._namespace or "kubeflow"
            return (
                f"Kubeflow Pipelines has this log no more. While the pod is there: kubectl logs {pod} --namespace={namespace}; "
                f"on GKE also later: gcloud logging read 'resource.labels.pod_name=\"{pod}\"' --order=asc"
            )
        return answer.data.decode(errors="replace")

    def _each(self, name: str, call: Callable[[str], object]) -> None:
        with _errors(self._host):
            found = list(self._recurring())
            named = [one.recurring_run_id for one in found if one.display_name == name]
            for one in named:
                call(one)
        if not named:
            raise no_such_schedule(name, (one.display_name for one in found))

    def _recurring(self) -> Iterator:
        return self._all(self._client.list_recurring_runs, "recurring_runs", self._experiment_id())

    def _experiment_id(self) -> str:
        namespace: Any = self._namespace or None  # which is its default, but for its types
        return str(self._client.create_experiment(self._experiment, namespace=namespace).experiment_id)

    def _under_way(self, experiment: str, recurring: Collection[str]) -> Iterator[str]:
        """Unfinished runs of recurring runs."""
        for run in self._all(self._client.list_runs, "runs", experiment):
            if run.recurring_run_id in recurring and run.state not in _ENDED:
                yield run.run_id

    def _delete(self, recurring: str) -> None:
        """Deletes a recurring run, but keeps its unfinished runs, which belong to it and would be deleted too."""
        api = self._client._recurring_run_api  # the client's delete_recurring_run lacks this argument
        api.recurring_run_service_delete_recurring_run(recurring_run_id=recurring, propagation_policy="ORPHAN")

    def _all(self, call: Callable, kind: str, experiment: str) -> Iterator:
        token = ""
        while True:
            page = call(page_token=token, page_size=100, experiment_id=experiment)
            yield from getattr(page, kind) or ()
            token = page.next_page_token
            if not token:
                return


def _canonical(job: Job, cron: str) -> dict:
    pipeline, *platform = job.documents
    return {
        "cron": cron,
        "parameters": dict(job.parameters),
        "root": job.root,
        "service_account": job.service_account,
        "pipeline": pipeline,
        "platform": platform[0] if platform else None,
    }


def _of_server(found, wanted: dict) -> dict:
    """A recurring run in the form of `_canonical`, without defaults that the server filled in."""
    (pipeline, platform), settings = _documents(found.pipeline_spec), found.runtime_config
    account = found.service_account or ""
    return {
        "cron": _cron(found),
        "parameters": (settings.parameters if settings else None) or {},
        "root": (settings.pipeline_root if settings else None) or "",
        "service_account": "" if account in _FILLED_IN and not wanted["service_account"] else account,
        "pipeline": pipeline,
        "platform": platform,
    }


def _cron(found) -> str | None:
    return found.trigger.cron_schedule.cron if found.trigger and found.trigger.cron_schedule else None


def _pods(nodes: Collection, task: str) -> list[str]:
    """The pods that ran a task, in order of start: a step's node links to its attempts and to the next steps."""
    own = re.compile(rf"{re.escape(task)}(\(\d+\))?|executor(\(\d+\))?")
    by_pod = {node.pod_name or node.task_id: node for node in nodes if own.fullmatch(node.display_name or "")}
    waiting = [pod for pod, node in by_pod.items() if node.display_name == task]
    reached: dict[str, list[str]] = {}
    while waiting:
        pod = waiting.pop()
        if pod not in reached:
            children = (child.pod_name or child.task_id for child in by_pod[pod].child_tasks or ())
            reached[pod] = [child for child in children if child in by_pod]
            waiting += reached[pod]
    ran = [pod for pod, below in reached.items() if not below and by_pod[pod].display_name.startswith("executor")]
    return sorted(ran, key=lambda pod: (str(by_pod[pod].start_time), pod))


def _documents(specification: dict | None) -> tuple[dict, dict | None]:
    """The pipeline, and its platform settings if any: the API has both in one field."""
    specification = specification or {}
    both = "pipeline_spec" in specification
    return (specification["pipeline_spec"], specification.get("platform_spec")) if both else (specification, None)


@contextmanager
def _package(job: Job) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="paligemma-") as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_text(dump_documents(job.documents))
        yield path


def refusal_of(body: str | bytes, reason: str) -> str:
    """The message in a refusal's body; without one, the name of the status."""
    try:
        said = parse_json(body or "", "the refusal", "It")
    except DamagedError:
        return reason
    return str(said.get("message") or said.get("error") or reason)


@contextmanager
def _errors(host: str) -> Iterator[None]:
    """Turns the client's exceptions into our own errors, and keeps its messages off standard output."""
    import urllib3
    from kfp_server_api import ApiException

    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="kfp")
            yield
    except ApiException as error:
        if error.status in RETRYABLE:
            raise BackendUnavailableError(
                f"Kubeflow Pipelines answered {error.status}.", where=host, fix="run the same command later"
            ) from None
        said = refusal_of(error.body or "", error.reason or "")
        fix = f"put a token into ${TOKEN_VARIABLE}" if error.status in (401, 403) else "see what it says"
        raise BackendError(f"Kubeflow Pipelines refused ({error.status}): {said}.", where=host, fix=fix) from None
    except (urllib3.exceptions.HTTPError, ConnectionError) as error:
        why = type(getattr(error, "reason", error)).__name__
        fix = "check --host, and run the same command later"
        if urlsplit(host).hostname in ("localhost", "127.0.0.1", "::1"):
            port = urlsplit(host).port or 80
            fix = (
                f"kubectl port-forward --namespace=kubeflow service/ml-pipeline {port}:8888 &, "
                "which has to be running meanwhile; then the same command again"
            )
        raise BackendUnavailableError(f"Kubeflow Pipelines did not answer: {why}.", where=host, fix=fix) from None
