"""What an operator does with schedules and logs: list, pause, resume, delete, read; what is wrong is said beforehand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from paligemma.errors import InputError
from paligemma.google.rest import BackendUnavailableError
from paligemma.google.vertex import ENDPOINT_VARIABLE
from pipelines.backends.cron import check_cron
from pipelines.backends.kubeflow import TOKEN_VARIABLE
from pipelines.cli import app
from servers.kubeflow import KubeflowServer
from servers.vertex import VertexServer

ON_VERTEX = ["--backend", "vertex", "--project", "my-project", "--location", "us-central1"]


@pytest.fixture
def files(tmp_path: Path) -> list[object]:
    digests = {target: f"pkg.dev/p/{target}@sha256:{'0' * 64}" for target in ("cpu", "gpu", "tpu")}
    (tmp_path / "digests.json").write_text(json.dumps(digests))
    parameters = {"source": "gs://b/paligemma-3b", "train_data": "gs://b/train.jsonl"}
    parameters |= {"validation_data": "gs://b/validation.jsonl", "artifact_root": "gs://b/a"}
    (tmp_path / "parameters.yaml").write_text(yaml.safe_dump(parameters))
    return ["--images", tmp_path / "digests.json", "--parameters", tmp_path / "parameters.yaml"]


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeflowServer]:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with KubeflowServer() as server:
        yield server


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[VertexServer]:
    with VertexServer() as server:
        monkeypatch.setenv(ENDPOINT_VARIABLE, server.url)
        yield server


def call(command: str, *arguments: object) -> str:
    result = CliRunner().invoke(app, ["pipeline", command, *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.stdout.strip()


def test_a_schedule_on_kubeflow_is_listed_paused_resumed_and_deleted(files: list[object], kubeflow: KubeflowServer) -> None:
    where = ["--backend", "kfp", "--host", kubeflow.url]
    assert call("schedules", *where) == "there is no schedule"
    for name in ("weekly", "nightly"):
        call("schedule", "--profile", "kfp-cpu", *where, *files, "--name", name, "--cron", "0 0 3 * * 1")
    (identity,) = (key for key, one in kubeflow.recurring_runs.items() if one["display_name"] == "weekly")
    under_way = kubeflow.fire(identity)
    call("pause", "weekly", *where)
    kubeflow.runs[under_way]["state"] = "SUCCEEDED"
    assert kubeflow.fire(identity) is None
    assert call("schedules", *where).splitlines() == ["weekly: 0 0 3 * * 1, paused", "nightly: 0 0 3 * * 1, active"]
    call("resume", "weekly", *where)
    under_way = kubeflow.fire(identity)
    assert under_way is not None
    call("unschedule", "weekly", *where)
    assert [one["display_name"] for one in kubeflow.recurring_runs.values()] == ["nightly"]
    assert kubeflow.runs[under_way]["state"] == "RUNNING"  # it goes on
    for command in ("pause", "resume", "unschedule"):
        with pytest.raises(InputError, match="no schedule 'nigtly'") as error:
            call(command, "nigtly", *where)
        assert "nightly" in str(error.value)


def test_a_schedule_on_vertex_is_listed_paused_resumed_and_deleted(files: list[object], google: VertexServer) -> None:
    call("schedule", "--profile", "vertex-cpu", *ON_VERTEX, *files, "--name", "weekly", "--cron", "0 3 * * 1")
    (identity,) = google.schedules
    google.schedules["77"] = {**google.schedules[identity], "createPipelineJobRequest": {}, "displayName": "of others"}
    assert call("schedules", *ON_VERTEX) == "weekly: 0 3 * * 1, active"
    for _ in range(2):  # again changes nothing, where Vertex AI would refuse
        call("pause", "weekly", *ON_VERTEX)
    assert google.fire(identity) is None
    assert call("schedules", *ON_VERTEX) == "weekly: 0 3 * * 1, paused"
    for _ in range(2):
        call("resume", "weekly", *ON_VERTEX)
    assert google.fire(identity) is not None
    call("unschedule", "weekly", *ON_VERTEX)
    assert list(google.schedules) == ["77"]
    with pytest.raises(InputError, match="no schedule 'weekly'"):
        call("unschedule", "weekly", *ON_VERTEX)


@pytest.mark.parametrize(
    ("backend", "cron", "said"),
    [
        ("kfp", "0 3 * * 1", 'seconds in front: "0 0 3 \\* \\* 1"'),
        ("kfp", "0 61 3 * * 1", "'61' in .* is no minute"),
        ("kfp", "0 0 3 * * monday", "'monday' in .* is no day of the week"),
        ("vertex", "0 0 3 * * 1", 'leave the seconds out: "0 3 \\* \\* 1"'),
        ("vertex", "0 3 * 13 1", "'13' in .* is no month"),
        ("vertex", "0 3 * * 5-1", "'5-1' in .* is no day of the week"),
        ("vertex", "", "has 0 fields"),
    ],
)
def test_a_wrong_cron_expression_is_said_before_anything_is_asked(
    files: list[object], backend: str, cron: str, said: str
) -> None:
    where = ["--backend", backend, "--profile", f"{backend}-cpu", "--host", "http://127.0.0.1:9", *ON_VERTEX[2:]]
    with pytest.raises(InputError, match=said):
        call("schedule", *where, *files, "--cron", cron)


@pytest.mark.parametrize(
    ("backend", "cron"),
    [
        ("kfp", "0 */15 9-17 ? jan,Feb MON-FRI"),
        ("kfp", "@weekly"),
        ("vertex", "0 3 1,15 * *"),
        ("vertex", "TZ=America/New_York 0 3 * * 1"),
    ],
)
def test_a_right_cron_expression_passes(backend: str, cron: str) -> None:
    check_cron(backend, cron)


@pytest.mark.parametrize(
    "where",
    [
        ["--backend", "kfp", "--profile", "kfp-cpu", "--cron", "0 0 3 * * 1"],
        ["--backend", "kfp", "--profile", "kfp-cpu", "--cron", "0 0 3 * * 1", "--host", "http://127.0.0.1:9"],
        ["--backend", "vertex", "--profile", "vertex-cpu", "--cron", "0 3 * * 1"],
    ],
)
def test_a_dry_run_needs_no_server(files: list[object], where: list[str]) -> None:
    result = CliRunner().invoke(app, ["pipeline", "schedule", "--dry-run", *where, *map(str, files)])
    assert result.exit_code == 0
    assert f"+cron: {where[5]}" in result.stdout
    assert "+  train_data: gs://b/train.jsonl" in result.stdout
    assert "not compared with the existing schedule" in result.stderr


def test_a_refused_connection_to_this_machine_names_the_port_forward(files: list[object]) -> None:
    with pytest.raises(BackendUnavailableError, match=r"kubectl port-forward .* service/ml-pipeline 9:8888"):
        call("status", "run-1", "--backend", "kfp", "--host", "http://localhost:9")


def node(name: str, pod: str, minute: int, *children: str) -> dict:
    time = f"2026-01-01T00:{minute:02d}:00Z"
    return {"display_name": name, "pod_name": pod, "start_time": time, "child_tasks": [{"pod_name": one} for one in children]}


def test_the_log_of_a_step_on_kubeflow_is_that_of_its_attempts_pods(files: list[object], kubeflow: KubeflowServer) -> None:
    where = ["--backend", "kfp", "--host", kubeflow.url]
    run = call("submit", "--profile", "kfp-cpu", *where, *files)
    kubeflow.runs[run]["run_details"]["task_details"] = [
        node("finetune-driver", "p-driver", 1, "p-finetune"),
        node("finetune", "p-finetune", 2, "p-retry"),
        node("executor", "p-retry", 2, "p-1", "p-2"),
        node("executor(0)", "p-1", 3),
        node("executor(1)", "p-2", 4, "p-next"),
        node("evaluate-driver", "p-next", 5, "p-evaluate"),  # what comes next is a child of what was before it
        node("evaluate", "p-evaluate", 6, "p-3"),
        node("executor", "p-3", 7),
    ]
    kubeflow.pods = {"p-2": "step 1\nstep 2\x1b[2J\n", "p-3": "answers\n", "p-driver": "driver"}
    first, gone, second, *printed = call("logs", run, *where).splitlines()
    assert (first, second, printed) == ("== p-1", "== p-2", ["step 1", "step 2\\x1b[2J"])
    assert "kubectl logs p-1 --namespace=kubeflow" in gone
    assert call("logs", run, "--task", "evaluate", *where).splitlines() == ["== p-3", "answers"]
    with pytest.raises(InputError, match="no task 'fintune'"):
        call("logs", run, "--task", "fintune", *where)


def test_the_log_of_a_step_on_vertex_comes_from_cloud_logging(files: list[object], google: VertexServer) -> None:
    run = call("submit", "--profile", "vertex-cpu", *ON_VERTEX, *files)
    jobs = [f"{google.numbered}/customJobs/{number}" for number in (11, 12)]
    done = {"containerDetail": {"failedMainJobs": [jobs[0]], "mainJob": jobs[1]}}
    google.jobs[run]["jobDetail"] = {"taskDetails": [{"taskName": "finetune", "state": "RUNNING", "executorDetail": done}]}
    google.entries = {
        "11": [{"textPayload": "preempted"}],
        "12": [
            {"jsonPayload": {"message": "step 1"}},
            {"textPayload": "step 2\nstep 3"},
            {"jsonPayload": {}},
            {"textPayload": "end"},
        ],
    }
    assert call("logs", run, *ON_VERTEX).splitlines() == [
        f"== {jobs[0]}",
        "preempted",
        f"== {jobs[1]}",
        "step 1",
        "step 2",
        "step 3",
        "end",
    ]
