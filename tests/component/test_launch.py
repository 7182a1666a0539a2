"""Steps whose work is done on machines of its own: TrainJobs on Kubernetes, custom jobs on Vertex AI."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import pytest
import typer
import yaml
from kfp import dsl
from lineage_runs import at_place

from components.evaluate.__main__ import run as evaluate_command
from components.evaluate.component import evaluate
from components.finetune.component import finetune
from conftest import ONE_DEVICE, REPOSITORY
from paligemma.artifacts.record import read_record
from paligemma.artifacts.recording import attempt
from paligemma.decoding.settings import DecodeSettings
from paligemma.errors import InputError, StoppedError
from paligemma.google.rest import BackendError
from paligemma.google.vertex import ENDPOINT_VARIABLE
from paligemma.launch import trainjob, watch
from paligemma.launch.customjob import PROJECT_VARIABLE, REGION_VARIABLE
from paligemma.launch.watch import LAUNCH_VARIABLE, LaunchedError, run_elsewhere
from paligemma.runtime.processes import Processes, described
from pipelines.job_specs import custom_job, train_job
from pipelines.profiles import PROFILES
from servers.schema import read_schema, violations
from servers.trainer import TrainerServer, repository_environment
from servers.vertex import VertexServer

IMAGE = f"pkg.dev/p/tpu@sha256:{'0' * 64}"
TPUS = train_job(PROFILES["kfp-tpu-v5e-16"].accelerated, IMAGE, 60, 0, [], {"cloud.google.com/gke-tpu-topology": "4x4"})
FLAGS = {"records": "gs://b/r", "set": ["steps=1", 'remat="none"'], "state": "", "seed": 0}
COMMAND = [
    "python",
    "-m",
    "components.x.main",
    "--records",
    "gs://b/r",
    "--set",
    "steps=1",
    "--set",
    'remat="none"',
    "--seed",
    "0",
]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(watch, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("paligemma.artifacts.recording._place", ContextVar("place", default=None))
    known = ("PALIGEMMA_RUN", "PALIGEMMA_TASK", "PALIGEMMA_LINEAGE_ROOT", trainjob.POD_NAME, trainjob.POD_UID)
    for name in (PROJECT_VARIABLE, REGION_VARIABLE, *known):
        monkeypatch.delenv(name, raising=False)


def cluster(server: TrainerServer, account: Path, monkeypatch: pytest.MonkeyPatch) -> TrainerServer:
    monkeypatch.setenv(trainjob.ENDPOINT_VARIABLE, server.url)
    monkeypatch.setattr(trainjob, "ACCOUNT_FOLDER", account)
    return server


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainerServer]:
    with TrainerServer(tmp_path / "account") as server:
        yield cluster(server, tmp_path / "account", monkeypatch)


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[VertexServer]:
    with VertexServer() as server:
        monkeypatch.setenv(ENDPOINT_VARIABLE, server.url)
        yield server


@contextmanager
def vanishing() -> Iterator[None]:
    """A step that is gone as soon as it waits, and tells nobody."""

    def vanish(seconds: float) -> None:
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", vanish)
        yield


def ended(kind: str, message: str = "") -> list[dict]:
    return [{"type": kind, "status": "True", "message": message}]


def test_a_train_job_as_kubernetes_takes_it(kubernetes: TrainerServer) -> None:
    kubernetes.conditions = ended("Complete")
    run_elsewhere(TPUS, "components.x.main", FLAGS, "gs://b/out")
    ((name, job),) = kubernetes.jobs.items()
    resources = {"cpu": "32", "memory": "128G", "google.com/tpu": "4", "ephemeral-storage": "80G"}
    pod = {"nodeSelector": {"cloud.google.com/gke-tpu-topology": "4x4"}, "tolerations": []}
    pod["serviceAccountName"] = "pipeline-runner"
    template = {"spec": {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]}}
    assert job["spec"] == {
        "activeDeadlineSeconds": 60,
        "runtimeRef": {"name": "paligemma-jax"},
        "trainer": {
            "image": IMAGE,
            "numNodes": 4,
            "resourcesPerNode": {"requests": resources, "limits": resources},
            "command": COMMAND,
            "env": [{"name": "PALIGEMMA_IMAGE", "value": IMAGE}, {"name": "PALIGEMMA_ACCELERATOR", "value": "tpu 4"}],
        },
        "runtimePatches": [{"manager": "paligemma.pipeline/launcher", "trainingRuntimeSpec": {"template": template}}],
    }
    assert [method for method, _, _ in kubernetes.log] == ["GET", "POST", "GET"]
    run_elsewhere(TPUS, "components.x.main", FLAGS, "gs://b/out")  # a step that is tried again finds what it made
    assert list(kubernetes.jobs) == [name]
    run_elsewhere(TPUS, "components.x.main", FLAGS, "gs://b/another")
    assert len(kubernetes.jobs) == 2


def test_one_that_failed_is_said_and_makes_room_for_the_next_try(kubernetes: TrainerServer) -> None:
    kubernetes.conditions = ended("Failed", "a pod was taken away")
    with pytest.raises(LaunchedError, match="a pod was taken away") as caught:
        run_elsewhere(TPUS, "components.x.main", FLAGS, "gs://b/out")
    assert "kubectl logs --namespace=kubeflow" in str(caught.value)
    kubernetes.conditions = ended("Complete")
    run_elsewhere(TPUS, "components.x.main", FLAGS, "gs://b/out")
    assert [method for method, _, _ in kubernetes.log][3:] == ["GET", "DELETE", "GET", "POST", "GET"]
    assert kubernetes.log[4][2]["propagationPolicy"] == "Foreground"


def test_what_went_wrong_there_is_told_here(kubernetes: TrainerServer, tmp_path: Path) -> None:
    kubernetes.conditions = ended("Failed", "BackoffLimitExceeded")
    root = str(tmp_path / "root")
    with at_place("1234", "finetune", root):
        with pytest.raises(LaunchedError, match="BackoffLimitExceeded"):
            run_elsewhere(TPUS, "components.x.main", FLAGS, "gs://b/out")
        with pytest.raises(InputError), attempt("finetune", "gs://b/out", {}):  # what the process on the first host does
            raise InputError("The records are of another image size.", fix="run prepare_data again")
        with pytest.raises(LaunchedError, match=r"on its machines\. The records are of another image size"):
            run_elsewhere(TPUS, "components.x.main", FLAGS, "gs://b/out")


def test_no_accelerator_outlives_a_step_that_is_told_to_stop(kubernetes: TrainerServer) -> None:
    kubernetes.polled = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StoppedError):
        run_elsewhere(TPUS, "components.x.main", FLAGS, "gs://b/out")
    assert kubernetes.jobs == {}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_job_belongs_to_the_pod_that_waits_for_it_and_goes_with_it(
    kubernetes: TrainerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Kubernetes' garbage collection has it; a pod that vanished tells its job nothing."""
    monkeypatch.setenv(trainjob.POD_NAME, "finetune-1")
    monkeypatch.setenv(trainjob.POD_UID, "pod-1")

    with vanishing(), pytest.raises(SystemExit):
        run_elsewhere(TPUS, "components.x.main", FLAGS, "gs://b/out")
    (job,) = kubernetes.jobs.values()
    assert job["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "finetune-1", "uid": "pod-1"}]
    monkeypatch.setenv(trainjob.POD_NAME, "finetune-2")
    monkeypatch.setenv(trainjob.POD_UID, "pod-2")

    def lose_the_first_and_end(seconds: float) -> None:
        kubernetes.lose_pod("pod-1")
        job["status"] = {"conditions": ended("Complete")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", lose_the_first_and_end)
        run_elsewhere(TPUS, "components.x.main", FLAGS, "gs://b/out")  # the second attempt adopts it, then the first pod goes
    assert [method for method, _, _ in kubernetes.log].count("POST") == 1
    kubernetes.lose_pod("pod-2")
    assert kubernetes.jobs == {}


def test_a_job_that_fails_is_made_again_as_often_as_its_profile_says(kubernetes: TrainerServer, tmp_path: Path) -> None:
    """A spot slice of four hosts that loses one of them seven times: more than Job's default of six failures."""
    kubernetes.outcomes = [ended("Failed", "a host was taken away")] * 7
    kubernetes.conditions = ended("Complete")
    with at_place("1234", "finetune", str(tmp_path)):
        run_elsewhere({**TPUS, "retries": 7}, "components.x.main", FLAGS, "gs://b/out")
        assert [method for method, _, _ in kubernetes.log].count("POST") == 8
        (job,) = kubernetes.jobs.values()
        told = {entry["name"]: entry["value"] for entry in job["spec"]["trainer"]["env"]}
        heard = Path(told["PALIGEMMA_HEARTBEAT"])
        assert heard.parent == tmp_path / "launched"
        assert not heard.exists()  # what it made is there
        kubernetes.outcomes = [ended("Failed", "a host was taken away")] * 8
        for _ in range(3):  # the step itself is tried again too, which does not multiply: the tries are counted beside the job
            with pytest.raises(LaunchedError, match="at the last of 3 tries"):
                run_elsewhere({**TPUS, "retries": 2}, "components.x.main", FLAGS, "gs://b/another")
    assert [method for method, _, _ in kubernetes.log].count("POST") == 11


def test_wrong_input_is_not_tried_again(kubernetes: TrainerServer, tmp_path: Path) -> None:
    kubernetes.conditions = ended("Failed", "BackoffLimitExceeded")
    with at_place("1234", "finetune", str(tmp_path)):
        with pytest.raises(InputError), attempt("finetune", "gs://b/out", {}):
            raise InputError("The records are of another image size.")
        with pytest.raises(LaunchedError, match="another image size"):
            run_elsewhere({**TPUS, "retries": 20}, "components.x.main", FLAGS, "gs://b/out")
    assert len(kubernetes.jobs) == 1


def test_our_runtime_is_one_that_trainer_takes_and_ends_all_hosts_with_the_first() -> None:
    runtime = yaml.safe_load((REPOSITORY / "pipelines/kubernetes/training-runtime.yaml").read_text())
    assert [*violations(runtime, read_schema("clustertrainingruntime"), "runtime")] == []
    assert runtime["metadata"]["name"] == TPUS["spec"]["runtimeRef"]["name"]
    template = runtime["spec"]["template"]["spec"]
    (job,) = template["replicatedJobs"]
    assert template["failurePolicy"] == {"maxRestarts": 0}
    assert job["template"]["spec"]["backoffLimit"] == 0
    assert job["template"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    bad = {**runtime, "spec": {**runtime["spec"], "failurePolicy": {}}}
    assert [*violations(bad, read_schema("clustertrainingruntime"), "runtime")] == [
        "runtime.spec.failurePolicy: there is no such field"
    ]


@pytest.mark.parametrize(
    "name", [n for n, profile in PROFILES.items() if (profile.backend, profile.accelerated.hosts > 1) == ("kfp", True)]
)
def test_trainer_takes_the_train_job_of_every_profile(kubernetes: TrainerServer, name: str) -> None:
    kubernetes.conditions = ended("Complete")
    machine = PROFILES[name].accelerated
    toleration = [{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
    run_elsewhere(train_job(machine, IMAGE, 60, 3, toleration, dict(machine.selectors)), "components.x.main", FLAGS, "gs://b/o")
    (job,) = kubernetes.jobs.values()
    assert job["spec"]["trainer"]["numNodes"] == machine.hosts


def test_the_first_request_after_sigterm_ends_the_job(
    kubernetes: TrainerServer, google: VertexServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be no time for a second one: the container goes with KFP's launcher, in less than a second."""
    custom = custom_job(PROFILES["vertex-tpu-v5e-4"].accelerated, IMAGE, 60, 0, True, "my-project", "us-central1", "")
    for machines, log, wanted in ((TPUS, kubernetes.log, "DELETE"), (custom, google.log, "POST")):
        before: list[int] = []

        def stop(seconds: float, log: list = log, before: list = before) -> None:
            if not before:
                before.append(len(log))
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr("time.sleep", stop)
            with pytest.raises(StoppedError):
                run_elsewhere(machines, "components.x.main", FLAGS, "gs://b/out")
        assert log[before[0]][0] == wanted
    assert kubernetes.jobs == {}
    assert [one["state"] for one in google.custom_jobs.values()] == ["JOB_STATE_CANCELLING"]


def test_what_a_cluster_refuses_is_said(kubernetes: TrainerServer, tmp_path: Path) -> None:
    (tmp_path / "account/namespace").write_text("default")
    with pytest.raises(BackendError, match=r"refused \(403\).*forbidden") as caught:
        run_elsewhere(TPUS, "components.x.main", FLAGS, "gs://b/out")
    assert "create, get, patch and delete trainjobs" in str(caught.value)
    (tmp_path / "account/token").unlink()
    with pytest.raises(InputError, match="not in a pod"):
        run_elsewhere(TPUS, "components.x.main", FLAGS, "gs://b/out")


def test_fine_tuning_on_two_hosts_of_a_cluster(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of a pipeline, whose TrainJob is run here by a process for each node."""
    machines = {**TPUS, "accelerator": "", "spec": {**TPUS["spec"], "trainer": {**TPUS["spec"]["trainer"], "numNodes": 2}}}
    monkeypatch.setenv(LAUNCH_VARIABLE, json.dumps(machines))
    monkeypatch.setattr("kfp.dsl.types.artifact_types._GCS_LOCAL_MOUNT_PREFIX", f"{tmp_path}/gcs/")
    made = {
        name: kind(name=name, uri=f"gs://bucket/runner/{name}", metadata={})
        for name, kind in {"tuned": dsl.Model, "metrics": dsl.Metrics, "report": dsl.HTML}.items()
    }
    (tmp_path / "gcs/bucket/runner").mkdir(parents=True)
    inputs = {"checkpoint": dsl.Model(uri="embedded:tiny", metadata={"location": "embedded:tiny"})}
    inputs["records"] = dsl.Dataset(uri=str(records), metadata={"location": str(records)})
    made["tree_sha256"] = str(tmp_path / "sha256")
    root, recipe = str(tmp_path / "root"), "steps: 2\nbatch_size: 4\nremat: none"
    with TrainerServer(tmp_path / "account", repository_environment(REPOSITORY, ONE_DEVICE)) as server:
        cluster(server, tmp_path / "account", monkeypatch)
        finetune.python_func(**inputs, **made, recipe=recipe, artifact_root=root, run="1234", run_task="finetune")
    record = read_record(made["tuned"].metadata["location"], "tuned-model")
    assert record.producer.image == IMAGE
    assert (tmp_path / "sha256").read_text() == record.artifact.tree_sha256
    assert (record.run, record.task, record.producer.device) == ("1234", "finetune", "2 x cpu")
    assert record.producer.parameters["batch_size"] == 4
    kept = [path for path in (tmp_path / "root/lineage/1234").rglob("*.json")]
    assert [path.parent.name for path in kept] == ["finetune"]  # one record, by one of the two
    assert not list((tmp_path / "root/state").glob("*"))
    assert "<svg" in (tmp_path / "gcs/bucket/runner/report").read_text()
    assert made["metrics"].metadata["final_loss"] > 0


def test_a_custom_job_as_vertex_takes_it(google: VertexServer, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = PROFILES["vertex-tpu-v5e-4"].accelerated
    job = custom_job(machine, IMAGE, 60, 0, True, "my-project", "us-central1", "r@p.iam.gserviceaccount.com")
    google.state_of_new = "JOB_STATE_SUCCEEDED"
    run_elsewhere(job, "components.x.main", FLAGS, "gs://b/out")
    (made,) = google.custom_jobs.values()
    told = {"PALIGEMMA_IMAGE": IMAGE, "PALIGEMMA_ACCELERATOR": "tpu 4"}
    container = {"imageUri": IMAGE, "command": COMMAND, "env": [{"name": name, "value": told[name]} for name in told]}
    assert made["jobSpec"] == {
        "workerPoolSpecs": [
            {
                "machineSpec": {"machineType": "ct5lp-hightpu-4t", "tpuTopology": "2x2"},
                "replicaCount": 1,
                "containerSpec": container,
                "diskSpec": {"bootDiskSizeGb": 150},
            }
        ],
        "scheduling": {"timeout": "60s", "strategy": "SPOT"},
        "serviceAccount": "r@p.iam.gserviceaccount.com",
    }
    assert made["displayName"].startswith("paligemma-")
    run_elsewhere(job, "components.x.main", FLAGS, "gs://b/out")
    assert len(google.custom_jobs) == 1
    (number,) = google.custom_jobs
    assert not google.unlisted
    google.custom_jobs[number] |= {"state": "JOB_STATE_FAILED", "error": {"code": 8, "message": "no capacity"}}
    run_elsewhere(job, "components.x.main", FLAGS, "gs://b/out")
    assert [one["state"] for one in google.custom_jobs.values()] == ["JOB_STATE_FAILED", "JOB_STATE_SUCCEEDED"]
    google.state_of_new = "JOB_STATE_FAILED"
    with pytest.raises(LaunchedError, match="failed on its machines"):
        run_elsewhere(job, "components.x.main", FLAGS, "gs://b/another")


@pytest.mark.parametrize("name", [name for name, profile in PROFILES.items() if profile.accelerated.machine_type])
def test_vertex_takes_the_custom_job_of_every_profile(google: VertexServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROJECT_VARIABLE, "my-project")  # as a step on Vertex AI finds it
    monkeypatch.setenv(REGION_VARIABLE, "us-central1")
    google.state_of_new = "JOB_STATE_SUCCEEDED"
    machine = PROFILES[name].accelerated
    run_elsewhere(custom_job(machine, IMAGE, 60, 0, False, "", "", ""), "components.x.main", FLAGS, "gs://b/out")
    (made,) = google.custom_jobs.values()
    assert sum(pool["replicaCount"] for pool in made["jobSpec"]["workerPoolSpecs"]) == machine.hosts


def test_a_custom_job_is_cancelled_with_the_step_and_needs_a_place(google: VertexServer) -> None:
    job = custom_job(PROFILES["vertex-gpu-a100-16"].accelerated, IMAGE, 60, 0, False, "", "", "")
    with pytest.raises(InputError, match="project or region"):
        run_elsewhere(job, "components.x.main", FLAGS, "gs://b/out")
    job |= {"project": "my-project", "location": "us-central1"}

    def stop_once_it_is_there(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", stop_once_it_is_there)
        with pytest.raises(StoppedError):
            run_elsewhere(job, "components.x.main", FLAGS, "gs://b/out")
    assert [one["state"] for one in google.custom_jobs.values()] == ["JOB_STATE_CANCELLING"]


def test_a_custom_job_that_fails_is_made_again_and_the_one_that_was_just_made_is_asked_for_by_name(
    google: VertexServer, tmp_path: Path
) -> None:
    job = custom_job(PROFILES["vertex-tpu-v5e-4"].accelerated, IMAGE, 60, 2, True, "my-project", "us-central1", "")
    google.states = ["JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_SUCCEEDED"]
    with at_place("1234", "finetune", str(tmp_path)):
        run_elsewhere(job, "components.x.main", FLAGS, "gs://b/out")
    assert len(google.custom_jobs) == 3
    searched = [path for method, path, _, _ in google.log if method == "GET" and path.endswith("/customJobs")]
    assert len(searched) == 1  # before anything was made: a list lags behind


def test_an_attempt_that_follows_another_finds_its_custom_job_though_no_list_has_it(
    google: VertexServer, tmp_path: Path
) -> None:
    job = custom_job(PROFILES["vertex-tpu-v5e-4"].accelerated, IMAGE, 60, 2, True, "my-project", "us-central1", "")
    with at_place("1234", "finetune", str(tmp_path)):
        with vanishing(), pytest.raises(SystemExit):
            run_elsewhere(job, "components.x.main", FLAGS, "gs://b/out")
        (made,) = google.custom_jobs.values()
        google.unlisted = {*google.custom_jobs}
        made["state"] = "JOB_STATE_SUCCEEDED"
        run_elsewhere(job, "components.x.main", FLAGS, "gs://b/out")
    assert len(google.custom_jobs) == 1


def test_an_evaluation_is_sent_with_all_its_flags(
    google: VertexServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = custom_job(PROFILES["vertex-tpu-v6e-1"].accelerated, IMAGE, 60, 0, False, "my-project", "us-central1", "")
    monkeypatch.setenv(LAUNCH_VARIABLE, json.dumps(job))
    google.state_of_new = "JOB_STATE_FAILED"
    made = {name: dsl.Artifact(name=name, uri=str(tmp_path / name), metadata={}) for name in ("evaluation", "summary")}
    made |= {name: dsl.Artifact(name=name, uri=str(tmp_path / name), metadata={}) for name in ("confusion", "report")}
    made["tree_sha256"] = str(tmp_path / "sha256")
    taken = {
        name: dsl.Artifact(uri=f"gs://b/{name}", metadata={"location": f"gs://b/{name}"}) for name in ("checkpoint", "records")
    }
    decoding = "temperature: 0.7\nbest_of: 4\nmax_new_tokens: 8\nseed: 3"
    with pytest.raises(LaunchedError):
        evaluate.python_func(
            **taken, **made, artifact_root=str(tmp_path / "root"), run="1", run_task="evaluate", task="ocr", decoding=decoding
        )
    ((container,),) = [
        [pool["containerSpec"] for pool in one["jobSpec"]["workerPoolSpecs"]] for one in google.custom_jobs.values()
    ]
    words = container["command"][3:]
    alone = typer.Typer()
    alone.command()(evaluate_command)
    taken = typer.main.get_command(alone).make_context("evaluate", words).params  # as the job's program reads them
    assert (taken["checkpoint"], taken["task"], taken["margin"]) == ("gs://b/checkpoint", "ocr", 0.0)
    settings = {field.name: taken[field.name] for field in dataclasses.fields(DecodeSettings)}
    assert DecodeSettings(**settings) == DecodeSettings(max_new_tokens=8, temperature=0.7, best_of=4, seed=3)
    assert {entry["name"]: entry["value"] for entry in container["env"]}["PALIGEMMA_LINEAGE_ROOT"] == str(tmp_path / "root")


def test_worker_pools_of_vertex_know_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    cluster = {"workerpool0": ["first-0:2222"], "workerpool1": ["second-0:2222", "second-1:2222"]}

    def seen(pool: str, index: int) -> Processes | None:
        monkeypatch.setenv("CLUSTER_SPEC", json.dumps({"cluster": cluster, "task": {"type": pool, "index": index}}))
        return described()

    assert seen("workerpool0", 0) == Processes("first-0:2222", 3, 0)
    assert seen("workerpool1", 1) == Processes("first-0:2222", 3, 2)
    with pytest.raises(InputError, match="cannot be read"):
        seen("workerpool2", 0)
    cluster.pop("workerpool1")
    assert seen("workerpool0", 0) is None
