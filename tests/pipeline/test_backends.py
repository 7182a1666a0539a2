"""submit, schedule, status and cancel, against servers that speak the two APIs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from paligemma import retry
from paligemma.data.source_list import Source, parse_sources
from paligemma.errors import InputError
from paligemma.google.rest import BackendError, BackendUnavailableError
from paligemma.google.vertex import ENDPOINT_VARIABLE
from pipelines.backends.job import canonical, check_parameters
from pipelines.backends.kubeflow import TOKEN_VARIABLE
from pipelines.backends.vertex import Vertex
from pipelines.cli import app
from pipelines.finetune import finetune_pipeline
from servers.gcs import GcsServer
from servers.kubeflow import KubeflowServer
from servers.vertex import VertexServer

PARAMETERS = {
    "train_data": "gs://b/train.jsonl",
    "validation_data": "gs://b/validation.jsonl",
    "source": "gs://b/paligemma-3b",
    "recipe": {"steps": 10, "learning_rate": 0.01},
    "decoding": {"max_new_tokens": 8, "temperature": 0.7},
    "margin": 0,
    "artifact_root": "gs://b/artifacts",
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.01, maximum=0.1, timeout=0.3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    digests = {target: f"pkg.dev/p/{target}@sha256:{'0' * 64}" for target in ("cpu", "gpu", "tpu")}
    (tmp_path / "digests.json").write_text(json.dumps(digests))
    (tmp_path / "parameters.yaml").write_text(yaml.safe_dump(PARAMETERS, sort_keys=False))
    return tmp_path


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


def test_a_recipe_of_several_images_says_so_to_the_steps(folder: Path) -> None:
    inputs, path = finetune_pipeline.component_spec.inputs or {}, folder / "parameters.yaml"

    def checked(**more: object) -> dict[str, object]:
        path.write_text(yaml.safe_dump(PARAMETERS | more, sort_keys=False))
        return check_parameters(path, inputs)

    assert "images_per_example" not in checked()
    assert checked(recipe="nlvr2")["images_per_example"] == 2
    assert checked(recipe={"images_per_example": 3}, images_per_example=3)["images_per_example"] == 3
    for recipe, images in (("nlvr2", 1), ({"steps": 1}, 2)):
        with pytest.raises(InputError, match="Every row of the records has"):
            checked(recipe=recipe, images_per_example=images)


ARGO_NODES = [
    {"display_name": name, "state": state, "start_time": f"2026-01-01T00:{minute:02d}:00Z"}
    for name, state, minute in [
        ("paligemma-finetune-x7b2p", "RUNNING", 0),
        ("root-driver", "SUCCEEDED", 1),
        ("root", "RUNNING", 2),
        ("root(0)", "RUNNING", 2),
        ("exit-handler-1-driver", "SUCCEEDED", 3),
        ("exit-handler-1", "RUNNING", 4),
        ("finetune", "RUNNING", 20),
        ("finetune-driver", "SUCCEEDED", 19),
        ("finetune(0)", "RUNNING", 20),
        ("executor", "RUNNING", 21),
        ("executor(0)", "FAILED", 21),
        ("executor(1)", "RUNNING", 25),
        ("fetch-checkpoint-driver", "SUCCEEDED", 5),
        ("fetch-checkpoint", "SUCCEEDED", 6),
        ("prepare-data", "FAILED", 10),
        ("summarize", "PENDING", 30),
        ("", "PENDING", 31),
    ]
]
"""What KFP shows as a run's tasks: all of Argo's nodes (NodeStatuses of backend/src/common/util/workflow.go:906)."""


def call(command: str, *arguments: object) -> str:
    result = CliRunner().invoke(app, ["pipeline", command, *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.stdout.strip()


def on_kubeflow(folder: Path, server: KubeflowServer) -> list[object]:
    files = ["--images", folder / "digests.json", "--parameters", folder / "parameters.yaml"]
    return ["--backend", "kfp", "--profile", "kfp-gpu-l4", "--host", server.url, "--service-account", "runner", *files]


def on_vertex(folder: Path) -> list[object]:
    files = ["--images", folder / "digests.json", "--parameters", folder / "parameters.yaml"]
    where = ["--project", "my-project", "--location", "us-central1", "--service-account", "r@p.iam.gserviceaccount.com"]
    return ["--backend", "vertex", "--profile", "vertex-gpu-l4", *where, *files]


def sent_parameters() -> dict:
    return {"target": "l4", **PARAMETERS, "recipe": "steps: 10\nlearning_rate: 0.01\n", "margin": 0.0,
            "decoding": "max_new_tokens: 8\ntemperature: 0.7\n"}  # fmt: skip


def compiled(folder: Path, profile: str) -> list[dict]:
    """The documents that `pipeline compile` writes for a profile."""
    call("compile", "--profile", profile, "--images", folder / "digests.json", "--output", folder / "pipeline.yaml")
    return list(yaml.safe_load_all((folder / "pipeline.yaml").read_text()))


def test_a_run_on_kubeflow(folder: Path, kubeflow: KubeflowServer) -> None:
    run = call("submit", *on_kubeflow(folder, kubeflow), "--name", "monday")
    assert kubeflow.experiments["experiment-1"]["display_name"] == "paligemma"
    posted = dict(kubeflow.runs[run])
    documents = posted.pop("pipeline_spec")
    pipeline, platform = compiled(folder, "kfp-gpu-l4")
    assert canonical(documents) == canonical({"pipeline_spec": pipeline, "platform_spec": platform})
    assert posted == {
        "display_name": "monday",
        "experiment_id": "experiment-1",
        "runtime_config": {"parameters": sent_parameters(), "pipeline_root": "gs://b/artifacts/runner"},
        "service_account": "runner",
        "recurring_run_id": "",
        "run_id": run,
        **{name: posted[name] for name in ("state", "storage_state", "run_details", "created_at", "updated_at")},
    }
    where = ["--backend", "kfp", "--host", kubeflow.url]
    kubeflow.runs[run]["run_details"]["task_details"] = ARGO_NODES
    assert call("status", run, *where).splitlines() == [
        "monday: PENDING",
        "  fetch-checkpoint: SUCCEEDED",
        "  prepare-data: FAILED",
        "  finetune: RUNNING",
        "  summarize: PENDING",
    ]
    call("cancel", run, *where)
    assert kubeflow.runs[run]["state"] == "CANCELING"


def test_a_schedule_on_kubeflow_is_replaced_only_when_something_changed(folder: Path, kubeflow: KubeflowServer) -> None:
    command = [*on_kubeflow(folder, kubeflow), "--name", "weekly", "--cron", "0 0 3 * * 1"]
    assert "+cron: 0 0 3 * * 1" in call("schedule", *command, "--dry-run")
    assert kubeflow.recurring_runs == {}
    call("schedule", *command)
    ((first, made),) = kubeflow.recurring_runs.items()
    made = dict(made)
    for filled_in in ("namespace", "status", "created_at", "updated_at"):
        made.pop(filled_in)
    pipeline, platform = compiled(folder, "kfp-gpu-l4")
    assert canonical(made.pop("pipeline_spec")) == canonical({"pipeline_spec": pipeline, "platform_spec": platform})
    assert made == {
        "display_name": "weekly",
        "experiment_id": "experiment-1",
        "max_concurrency": 1,
        "mode": "ENABLE",
        "no_catchup": True,
        "recurring_run_id": first,
        "runtime_config": {"parameters": sent_parameters(), "pipeline_root": "gs://b/artifacts/runner"},
        "service_account": "runner",
        "trigger": {"cron_schedule": {"cron": "0 0 3 * * 1"}},
    }
    assert call("schedule", *command) == "nothing changes"
    assert list(kubeflow.recurring_runs) == [first]
    (folder / "parameters.yaml").write_text(yaml.safe_dump({**PARAMETERS, "batch_size": 7}, sort_keys=False))
    changes = call("schedule", *command)
    assert [line for line in changes.splitlines() if line.startswith(("+ ", "- "))] == ["+  batch_size: 7"]
    ((second, made),) = kubeflow.recurring_runs.items()
    assert second != first
    assert made["runtime_config"]["parameters"]["batch_size"] == 7
    # What a call that was killed after making the new one leaves is tidied up.
    kubeflow.recurring_runs["recurringrun-99"] = {**made, "recurring_run_id": "recurringrun-99", "service_account": "other"}
    assert call("schedule", *command) == "nothing changes"
    assert list(kubeflow.recurring_runs) == [second]


def test_a_schedule_without_a_service_account_is_the_one_that_the_server_filled_it_in_for(
    folder: Path, kubeflow: KubeflowServer
) -> None:
    command = on_kubeflow(folder, kubeflow)
    account = command.index("--service-account")
    with_account = [*command, "--name", "weekly", "--cron", "0 0 3 * * 1"]
    without = [*with_account[:account], *with_account[account + 2 :]]
    call("schedule", *without)
    ((first, made),) = kubeflow.recurring_runs.items()
    assert made["service_account"] == "pipeline-runner"
    assert call("schedule", *without) == "nothing changes"
    assert list(kubeflow.recurring_runs) == [first]
    assert "+service_account: runner" in call("schedule", *with_account)
    assert "-service_account: runner" in call("schedule", *without)


def test_a_schedule_is_replaced_without_killing_the_run_that_is_under_way(folder: Path, kubeflow: KubeflowServer) -> None:
    command = [*on_kubeflow(folder, kubeflow), "--name", "weekly", "--cron", "0 0 3 * * 1"]
    call("schedule", *command)
    (first,) = kubeflow.recurring_runs
    before = []
    for state in ("SUCCEEDED", "FAILED", "CANCELED"):
        before.append(kubeflow.fire(first))
        assert kubeflow.fire(first) is None  # one at a time
        kubeflow.runs[before[-1]]["state"] = state
    under_way = kubeflow.fire(first)
    (folder / "parameters.yaml").write_text(yaml.safe_dump({**PARAMETERS, "batch_size": 7}, sort_keys=False))
    said = call("schedule", *command)
    assert f"the run {under_way} of the schedule before goes on" in said
    assert not [run for run in before if run in said]
    assert kubeflow.collected == []
    assert kubeflow.runs[under_way]["state"] == "RUNNING"
    (second,) = kubeflow.recurring_runs
    assert second != first


def test_a_run_on_vertex(folder: Path, google: VertexServer) -> None:
    run = call("submit", *on_vertex(folder), "--name", "monday")
    job = dict(google.jobs[run])
    (pipeline,) = compiled(folder, "vertex-gpu-l4")
    assert canonical(job.pop("pipelineSpec")) == canonical(pipeline)
    assert job == {
        "name": f"{google.parent}/pipelineJobs/{run}",
        "displayName": "monday",
        "runtimeConfig": {"gcsOutputDirectory": "gs://b/artifacts/runner", "parameterValues": sent_parameters()},
        "labels": {"pipeline": "paligemma-finetune"},
        "serviceAccount": "r@p.iam.gserviceaccount.com",
        "state": "PIPELINE_STATE_PENDING",
    }
    names = ("paligemma-finetune-1", "exit-handler-1", "fetch-checkpoint", "finetune", "condition-2")
    details = [{"taskName": name, "state": "RUNNING"} for name in names]
    # The name that `submit` printed is not the number by which the steps know their run, and by which lineage does.
    details[2]["outputs"] = {"checkpoint": {"artifacts": [{"name": "x", "metadata": {"run": "8410072914"}}]}}
    google.jobs[run]["jobDetail"] = {"taskDetails": details}
    where = ["--backend", "vertex", "--project", "my-project", "--location", "us-central1"]
    assert call("status", run, *where) == (
        "monday: PIPELINE_STATE_PENDING\n  run in lineage: 8410072914\n  fetch-checkpoint: RUNNING\n  finetune: RUNNING"
    )
    call("cancel", run, *where)
    assert google.jobs[run]["state"] == "PIPELINE_STATE_CANCELLING"


def test_a_schedule_on_vertex_is_changed_only_when_something_changed(folder: Path, google: VertexServer) -> None:
    command = [*on_vertex(folder), "--name", "weekly", "--cron", "0 3 * * 1"]
    call("schedule", *command, "--dry-run")
    assert google.schedules == {}
    call("schedule", *command)
    made = dict(google.schedules["1"])
    (pipeline,) = compiled(folder, "vertex-gpu-l4")
    job = {
        "displayName": "weekly",
        "pipelineSpec": pipeline,
        "runtimeConfig": {"gcsOutputDirectory": "gs://b/artifacts/runner", "parameterValues": sent_parameters()},
        "labels": {"pipeline": "paligemma-finetune"},
        "serviceAccount": "r@p.iam.gserviceaccount.com",
    }
    request = {"parent": google.parent, "pipelineJob": job}
    sent = next(body for method, path, _, body in google.log if (method, path[-9:]) == ("POST", "schedules"))
    assert canonical(sent["createPipelineJobRequest"]) == canonical(request)
    assert (made["cron"], made["maxConcurrentRunCount"], made["maxConcurrentActiveRunCount"]) == ("0 3 * * 1", "1", "1")
    assert call("schedule", *command) == "nothing changes"
    command[-1] = "0 4 * * 1"
    changes = call("schedule", *command)
    assert {line for line in changes.splitlines() if "cron" in line} == {"-cron: 0 3 * * 1", "+cron: 0 4 * * 1"}
    assert google.log[-1][0] == "PATCH"
    assert google.log[-1][2] == "updateMask=cron"
    assert {schedule["cron"] for schedule in google.schedules.values()} == {"0 4 * * 1"}


def test_a_schedule_on_vertex_never_has_two_runs_under_way(folder: Path, google: VertexServer) -> None:
    command = [*on_vertex(folder), "--name", "weekly", "--cron", "0 3 * * 1"]
    call("schedule", *command)
    first = google.fire("1")
    assert google.fire("1") is None
    google.jobs[first]["state"] = "PIPELINE_STATE_FAILED"
    assert google.fire("1") not in (None, first)
    del google.schedules["1"]["maxConcurrentActiveRunCount"]  # as one that was made before
    assert google.fire("1") is not None
    assert "+maxConcurrentActiveRunCount: '1'" in call("schedule", *command)


def test_what_vertex_fills_in_is_no_difference_and_what_is_taken_back_is_one(folder: Path, google: VertexServer) -> None:
    command = on_vertex(folder)
    account = command.index("--service-account")
    with_account = [*command, "--name", "weekly", "--cron", "0 3 * * 1"]
    without = [*with_account[:account], *with_account[account + 2 :]]
    call("schedule", *without)
    assert call("schedule", *without) == "nothing changes"
    assert "serviceAccount: r@p.iam.gserviceaccount.com" in call("schedule", *with_account)
    assert "-    serviceAccount: r@p.iam.gserviceaccount.com" in call("schedule", *without)
    (folder / "parameters.yaml").write_text(yaml.safe_dump({**PARAMETERS, "batch_size": 7}, sort_keys=False))
    call("schedule", *without)
    (folder / "parameters.yaml").write_text(yaml.safe_dump(PARAMETERS, sort_keys=False))
    assert "-        batch_size: 7" in call("schedule", *without)


def test_a_schedules_difference_is_shown_before_it_is_made(
    folder: Path, google: VertexServer, kubeflow: KubeflowServer
) -> None:
    for command, server in ((on_vertex(folder), google), (on_kubeflow(folder, kubeflow), kubeflow)):
        server.refuse = "POST", ("schedules" if server is google else "recurringruns")
        cron = "0 3 * * 1" if server is google else "0 0 3 * * 1"
        arguments = ["pipeline", "schedule", *map(str, command), "--name", "weekly", "--cron", cron]
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, BackendError)
        assert f"+cron: {cron}" in result.stdout


def test_a_mixture_is_a_list_in_a_file_of_parameters_and_a_text_in_the_pipeline(folder: Path) -> None:
    sources = [{"data": "gs://b/{date}/a.jsonl", "weight": 3, "images": "gs://b/x"}, "gs://b/c.jsonl,weight=0.5"]
    (folder / "parameters.yaml").write_text(yaml.safe_dump({**PARAMETERS, "train_data": sources}))
    found = check_parameters(folder / "parameters.yaml", finetune_pipeline.component_spec.inputs)
    assert isinstance(found["train_data"], str)
    assert parse_sources(found["train_data"], "train_data") == (
        Source("gs://b/{date}/a.jsonl", "gs://b/x", 3.0),
        Source("gs://b/c.jsonl", "", 0.5),
    )
    assert found["validation_data"] == PARAMETERS["validation_data"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lerning_rate": 1}, "no parameter 'lerning_rate'"),
        ({"batch_sise": 8}, "did you mean 'batch_size'"),
        ({"batch_size": "8"}, "a value of the type Integer"),
        ({"batch_size": True}, "a value of the type Integer"),
        ({"train_data": None}, "a value of the type String"),
        ({"train_data": ["gs://b/x,weight=0", "gs://b/y,weight=1"]}, r"(?s)'0' of gs://b/x.*where:    train_data, in .*yaml"),
        ({"train_data": [{"data": "gs://b/x", "wieght": 1}]}, "did you mean 'weight'"),
        ({"validation_data": [{"data": "gs://b/x", "weight": 1}]}, r"(?s)looked at once.*where:    validation_data, in "),
        ({"artifact_root": "/tmp/x"}, "share no disk"),
        ({"recipe": {"stepz": 1}}, "stepz"),
        ({"decoding": {"beems": 4}}, r"(?s)'beems'.*where:    decoding, in .*parameters.yaml.*did you mean 'beams'"),
        ({"decoding": "top_p: 2"}, r"(?s)top_p is 2.*where:    decoding, in .*expected: more than 0 and at most 1"),
        ({"decoding": 8}, "a value of the type String"),
        ({"max_new_tokens": 8}, r"no parameter 'max_new_tokens'.\n.*\n  to do:    write decoding: {max_new_tokens: 8}$"),
        ({"beams": 4, "max_new_tokens": 8}, r"write decoding: {max_new_tokens: 8, beams: 4}$"),
        ({"vertex_model": "projects/p/locations/r/models/m"}, "serving settings are missing"),
        ({"vertex_model": "projects/p/locations/r/models/m", "serving": {"image": "x"}}, "ports: Field required"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_sent(
    folder: Path, kubeflow: KubeflowServer, change: dict, said: str
) -> None:
    (folder / "parameters.yaml").write_text(yaml.safe_dump({**PARAMETERS, **change}))
    with pytest.raises(InputError, match=said):
        call("submit", *on_kubeflow(folder, kubeflow))
    (folder / "parameters.yaml").write_text("train_data: gs://b/x")
    with pytest.raises(InputError, match="validation_data, source is missing"):
        call("submit", *on_kubeflow(folder, kubeflow))
    assert kubeflow.log == []


def test_a_plan_sends_nothing(folder: Path, kubeflow: KubeflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with GcsServer() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        server.create_bucket("planned")
        (folder / "parameters.yaml").write_text(yaml.safe_dump({**PARAMETERS, "artifact_root": "gs://planned/artifacts"}))
        said = call("submit", *on_kubeflow(folder, kubeflow), "--plan")
    assert "fetch-checkpoint  made    it was not made here before" in said
    assert "0 of 7 steps are reused; 7 have not run here before" in said
    assert kubeflow.runs == {}


def test_the_profile_is_one_of_the_backend(folder: Path, kubeflow: KubeflowServer) -> None:
    command = on_kubeflow(folder, kubeflow)
    command[3] = "vertex-gpu-l4"
    with pytest.raises(InputError, match="not a profile of kfp"):
        call("submit", *command)
    command[3] = "kfp-cpu"
    (folder / "digests.json").write_text(json.dumps({"cpu": f"localhost/paligemma@sha256:{'0' * 64}"}))
    with pytest.raises(InputError, match="on this machine only"):
        call("submit", *command)
    with pytest.raises(InputError, match="address of Kubeflow Pipelines is missing"):
        call("status", "x", "--backend", "kfp")


def test_what_the_backends_refuse_is_said(folder: Path, kubeflow: KubeflowServer, google: VertexServer) -> None:
    with pytest.raises(BackendError, match=r"refused \(404\)"):
        call("status", "run-77", "--backend", "kfp", "--host", kubeflow.url)
    with pytest.raises(BackendError, match=r"refused \(403\).*Permission denied"):
        call("status", "x", "--backend", "vertex", "--project", "other", "--location", "us-central1")
    kubeflow.token = "secret"
    with pytest.raises(BackendError, match=r"refused \(401\)") as caught:
        call("status", "run-77", "--backend", "kfp", "--host", kubeflow.url)
    assert TOKEN_VARIABLE in str(caught.value)


def test_a_token_comes_from_the_environment(folder: Path, kubeflow: KubeflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeflow.token = "secret"
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    assert call("submit", *on_kubeflow(folder, kubeflow)) in kubeflow.runs


def test_failures_of_the_service_are_tried_again_or_exit_4(
    folder: Path, kubeflow: KubeflowServer, google: VertexServer
) -> None:
    google.fail = [503, "lose"]  # the second try makes the job, and its answer is lost
    run = call("submit", *on_vertex(folder))
    assert list(google.jobs) == [run]
    assert len(google.log) == 3
    google.fail = [503] * 999
    with pytest.raises(BackendUnavailableError, match="answered 503") as caught:
        call("submit", *on_vertex(folder))
    assert caught.value.exit_code == 4
    run = call("submit", *on_kubeflow(folder, kubeflow))
    kubeflow.fail = [503, 503]
    assert call("status", run, "--backend", "kfp", "--host", kubeflow.url).endswith("PENDING")
    kubeflow.fail = [500]
    with pytest.raises(BackendUnavailableError, match="answered 500"):
        call("status", run, "--backend", "kfp", "--host", kubeflow.url)


def test_nobody_there_exits_4(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with KubeflowServer() as gone:
        pass
    with pytest.raises(BackendUnavailableError, match="did not answer"):
        call("submit", *on_kubeflow(folder, gone))
    monkeypatch.setenv(ENDPOINT_VARIABLE, gone.url)
    with pytest.raises(BackendUnavailableError, match="did not answer"):
        call("submit", *on_vertex(folder))


def test_credentials_go_nowhere_insecure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT_VARIABLE, "http://example.com")
    with pytest.raises(InputError, match="not secure"):
        Vertex("my-project", "us-central1")
