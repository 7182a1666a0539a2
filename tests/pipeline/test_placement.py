"""Every profile: the same DAG, on the machines of the table."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from typer.testing import CliRunner

from conftest import REPOSITORY
from paligemma.errors import InputError
from paligemma.preflight.targets import TARGETS
from pipelines.cli import app
from pipelines.compile import compile_pipeline
from pipelines.placement import placer, read_images
from pipelines.profiles import ACCELERATED, PROFILES, ROBUSTNESS
from servers.compiled import check_compiled

IMAGES = {
    target: f"europe-docker.pkg.dev/x/y/paligemma-{target}@sha256:{index * 64}"
    for index, target in zip("abc", ("cpu", "gpu", "tpu"), strict=True)
}
VERTEX = {"project": "my-project", "location": "us-central1", "service_account": "r@p.iam.gserviceaccount.com"}
FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CLUSTERS = [name for name in PROFILES if name != "local"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """The YAML documents of every profile: the pipeline, and, for Kubernetes, its platform's settings."""
    documents = {}
    for name in PROFILES:
        path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
        compile_pipeline(path, place_task=placer(name, IMAGES))
        documents[name] = list(yaml.load_all(path.read_text(), Loader=FAST))
    return documents


def shape(document: dict) -> dict:
    """What of a pipeline is to be the same everywhere: all but executors' images, resources and environment, and retries."""
    document = json.loads(json.dumps(document))
    for executor in document["deploymentSpec"]["executors"].values():
        for key in ("image", "resources", "env"):
            executor["container"].pop(key, None)
    for dag in [document["root"]["dag"], *(c["dag"] for c in document["components"].values() if "dag" in c)]:
        for task in dag["tasks"].values():
            task.pop("retryPolicy", None)
    return document


def executors(document: dict) -> dict[str, dict]:
    return {name.removeprefix("exec-"): e["container"] for name, e in document["deploymentSpec"]["executors"].items()}


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_the_same_dag_and_valid(compiled: dict[str, list[dict]], name: str) -> None:
    pipeline, *platform = compiled[name]
    assert len(platform) == (1 if PROFILES[name].backend == "kfp" else 0)  # Vertex cannot read a second document
    check_compiled(pipeline, *platform)
    assert shape(pipeline) == shape(compiled["local"][0])


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("kfp-tpu-v5e-16", {"spot": True, "signing_secret": "signing", "kaggle_secret": "k", "webhook_secret": "w"}),
        ("kfp-gpu-l4", {"spot": True, "signing_secret": "signing", "private_hosts": "images.corp"}),
        ("vertex-gpu-a100-16", {"spot": True, "kaggle_secret": "k", "webhook_secret": "w", **VERTEX}),
    ],
)
def test_with_every_option_it_is_valid_too(tmp_path: Path, name: str, more: dict) -> None:
    compile_pipeline(tmp_path / "p.yaml", place_task=placer(name, IMAGES, **more))
    check_compiled(*yaml.load_all((tmp_path / "p.yaml").read_text(), Loader=FAST))


def test_no_field_that_a_server_would_not_know_passes(compiled: dict[str, list[dict]]) -> None:
    """At depths, too, where KFP's own messages hold a Struct, which takes anything."""
    good, platform = compiled["kfp-gpu-l4"]
    for change in (
        lambda document: document["root"].update(unknown=1),
        lambda document: document["deploymentSpec"]["executors"]["exec-finetune"]["container"].update(unknown=1),
        lambda document: document["deploymentSpec"]["executors"]["exec-finetune"]["container"]["resources"].update(disk="1G"),
    ):
        bad = json.loads(json.dumps(good))
        change(bad)
        with pytest.raises(json_format.ParseError):
            check_compiled(bad, platform)
    for change in (
        lambda settings: settings["exec-finetune"].update(ephemeralStorage="1G"),
        lambda settings: settings["exec-finetune"]["emptyDirMounts"][0].update(unknown=1),
        lambda settings: settings.update({"exec-unknown": {}}),
    ):
        bad = json.loads(json.dumps(platform))
        change(bad["platforms"]["kubernetes"]["deploymentSpec"]["executors"])
        with pytest.raises(json_format.ParseError):
            check_compiled(good, bad)


def launch(container: dict) -> dict | None:
    """Which machines of its own a step is told to have made."""
    (said,) = [entry["value"] for entry in container["env"] if entry["name"] == "PALIGEMMA_LAUNCH"] or [None]
    return said and json.loads(said)


@pytest.mark.parametrize("name", CLUSTERS)
def test_only_training_and_evaluation_get_accelerators(compiled: dict[str, list[dict]], name: str) -> None:
    for executor, container in executors(compiled[name][0]).items():
        step = next(step for step in ROBUSTNESS if executor.startswith(step.replace("_", "-")))
        machine = PROFILES[name].machine(step)
        assert bool(machine.accelerator or machine.topology) == (step in ACCELERATED and not name.endswith("-cpu"))
        assert (launch(container) is not None) == machine.is_launched
        assert container["image"] == IMAGES["cpu" if machine.is_launched else machine.image]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        # Each process that is to compute checks that it has what is paid for; preflight, on the same image, is to have none.
        told = launch(container)["accelerator"] if machine.is_launched else environment.get("PALIGEMMA_ACCELERATOR")
        assert told == (f"{machine.image} {machine.count}" if machine.count else None)
        assert environment.get("JAX_PLATFORMS") == ("cpu" if step == "preflight" else None)
        accelerator = container["resources"].get("accelerator")
        if machine.accelerator and not machine.is_launched:
            assert accelerator["resourceType"] == machine.accelerator
            assert int(accelerator["resourceCount"]) == machine.count
        else:
            assert accelerator is None


@pytest.mark.parametrize(
    ("name", "machine_type", "topology"),
    [
        ("vertex-tpu-v5e-1", "ct5lp-hightpu-1t", "1x1"),
        ("vertex-tpu-v5e-4", "ct5lp-hightpu-4t", "2x2"),
        ("vertex-tpu-v5e-8", "ct5lp-hightpu-8t", "2x4"),
        ("vertex-tpu-v6e-1", "ct6e-standard-1t", "1x1"),
        ("vertex-tpu-v6e-4", "ct6e-standard-4t", "2x2"),
        ("vertex-tpu-v6e-8", "ct6e-standard-8t", "2x4"),
    ],
)
def test_a_tpu_on_vertex_is_a_custom_job(compiled: dict, name: str, machine_type: str, topology: str) -> None:
    for step in ACCELERATED:
        job = launch(executors(compiled[name][0])[step])
        (pool,) = job["job_spec"]["worker_pool_specs"]
        assert pool == {
            "machine_spec": {"machine_type": machine_type, "tpu_topology": topology},
            "replica_count": 1,
            "container_spec": {"image_uri": IMAGES["tpu"]},
            "disk_spec": {"boot_disk_size_gb": 150},
        }
        assert (job["kind"], job["job_spec"]["scheduling"]["strategy"]) == ("CustomJob", "STANDARD")


ONE_HOST = {
    "kfp-gpu-l4-2": (2, "l4-2", "nvidia-l4"),
    "kfp-gpu-l4-4": (4, "l4-4", "nvidia-l4"),
    "kfp-gpu-a100-8": (8, "a100-40-8", "nvidia-tesla-a100"),
    "kfp-gpu-h100-8": (8, "h100-80-8", "nvidia-h100-80gb"),
    "vertex-gpu-l4-2": (2, "l4-2", "NVIDIA_L4"),
    "vertex-gpu-l4-4": (4, "l4-4", "NVIDIA_L4"),
    "vertex-gpu-a100-8": (8, "a100-40-8", "NVIDIA_TESLA_A100"),
    "vertex-gpu-h100": (1, "h100-80", "NVIDIA_H100_80GB"),
    "vertex-gpu-h100-8": (8, "h100-80-8", "NVIDIA_H100_80GB"),
}
"""Profiles of one host: GPUs, what preflight compiles for, and what the backend calls them."""


@pytest.mark.parametrize("name", ONE_HOST)
def test_several_gpus_of_one_host_are_the_tasks_own(compiled: dict[str, list[dict]], name: str) -> None:
    count, target, kind = ONE_HOST[name]
    assert PROFILES[name].target == target
    assert target in TARGETS
    pipeline, *platform = compiled[name]
    for step in ACCELERATED:
        container = executors(pipeline)[step]
        accelerator = container["resources"]["accelerator"]
        wanted = "nvidia.com/gpu" if platform else kind
        assert (accelerator["resourceType"], accelerator["resourceCount"]) == (wanted, str(count))
        assert launch(container) is None
        for document in platform:
            assert kubernetes(document, step)["nodeSelector"]["labels"]["cloud.google.com/gke-accelerator"] == kind


def test_the_target_of_every_profile_is_one_that_preflight_knows() -> None:
    assert {profile.target for profile in PROFILES.values()} <= TARGETS.keys()


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_profile_says_how_much_disk_a_step_has(compiled: dict[str, list[dict]], name: str) -> None:
    pipeline, *platform = compiled[name]
    environment = {entry["name"]: entry["value"] for entry in executors(pipeline)["preflight"]["env"]}
    given = int(environment["PALIGEMMA_DISK_BYTES"]) // 10**9
    for document in platform:
        for settings in document["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            assert settings["emptyDirMounts"] == [{"volumeName": "scratch", "mountPath": "/tmp", "sizeLimit": f"{given}G"}]
    for step in ACCELERATED:
        job = launch(executors(pipeline)[step])
        if job and job["kind"] == "TrainJob":
            assert job["spec"]["trainer"]["resourcesPerNode"]["requests"]["ephemeral-storage"] == f"{given}G"
        if job and job["kind"] == "CustomJob":
            assert all(pool["disk_spec"]["boot_disk_size_gb"] >= given + 50 for pool in job["job_spec"]["worker_pool_specs"])
    assert given < 100  # of a task on Vertex AI: its machine's disk has 100 GB, which nothing can change


def test_the_guides_nodes_have_that_disk() -> None:
    """Of a node's disk GKE keeps 35 % and 6 GB, or half of it if that is less, and 10 % more, for its system and for evictions:
    https://cloud.google.com/kubernetes-engine/docs/concepts/plan-node-sizes#local_ephemeral_storage_reservation."""
    told = {"PROJECT": "p", "BUCKET": "b", "POOLS": "l4 v5e-4 v5e-16", "PATH": os.environ["PATH"]}
    command = ["bash", str(REPOSITORY / "pipelines/guides/cloud-setup.sh"), "gke"]
    shown = subprocess.run(command, env=told, capture_output=True, text=True, check=True).stdout
    pools = re.findall(r"^gcloud container (?:clusters|node-pools) create .*$", shown, re.M)
    assert len(pools) == 4
    for pool in pools:
        size = int(re.search(r"--disk-size=(\d+) ", f"{pool} ")[1])
        assert size - min(size / 2, 6 + 0.35 * size, 100) - size / 10 > PROFILES["kfp-gpu-l4"].accelerated.disk


def test_several_hosts(compiled: dict[str, list[dict]], tmp_path: Path) -> None:
    """A TrainJob on Kubernetes, and worker pools on Vertex AI; one host evaluates."""
    pipeline, platform = compiled["kfp-tpu-v5e-16"]
    job = launch(executors(pipeline)["finetune"])
    assert (job["kind"], job["spec"]["runtimeRef"]["name"]) == ("TrainJob", "paligemma-jax")
    assert (job["spec"]["trainer"]["numNodes"], job["spec"]["trainer"]["image"]) == (4, IMAGES["tpu"])
    assert job["spec"]["trainer"]["resourcesPerNode"]["limits"]["google.com/tpu"] == "4"
    assert job["pod"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert "nodeSelector" not in kubernetes(platform, "finetune")
    assert kubernetes(platform, "evaluate")["nodeSelector"]["labels"]["cloud.google.com/gke-tpu-topology"] == "2x2"
    job = launch(executors(compiled["vertex-gpu-a100-16"][0])["finetune"])
    machine = {"machine_type": "a2-highgpu-8g", "accelerator_type": "NVIDIA_TESLA_A100", "accelerator_count": 8}
    assert [pool["machine_spec"] for pool in job["job_spec"]["worker_pool_specs"]] == [machine, machine]
    path = tmp_path / "p.yaml"
    compile_pipeline(path, place_task=placer("kfp-tpu-v5e-16", IMAGES, spot=True))
    pipeline = next(yaml.safe_load_all(path.read_text()))
    job = launch(executors(pipeline)["finetune"])
    # The machines are tried again by the step that waits, which itself is on a small one that nobody takes away.
    waiting = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]["finetune"]["retryPolicy"]["maxRetryCount"]
    assert (job["retries"], waiting) == (20, 3)
    assert [one["key"] for one in job["pod"]["tolerations"]] == ["google.com/tpu", "cloud.google.com/gke-spot"]
    assert job["pod"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    place_task = placer("vertex-tpu-v5e-4", IMAGES, spot=True, **VERTEX)
    compile_pipeline(path, place_task=place_task)
    job = launch(executors(yaml.safe_load(path.read_text()))["finetune"])
    assert (job["project"], job["location"]) == ("my-project", "us-central1")
    assert job["job_spec"]["scheduling"]["strategy"] == "SPOT"
    assert job["job_spec"]["service_account"] == "r@p.iam.gserviceaccount.com"


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_task_is_tried_again(compiled: dict[str, list[dict]], name: str) -> None:
    document = compiled[name][0]
    dags = [document["root"]["dag"], *(c["dag"] for c in document["components"].values() if "dag" in c)]
    tasks = {key: task for dag in dags for key, task in dag["tasks"].items() if not key.startswith("condition")}
    tasks = {key: task for key, task in tasks.items() if not key.startswith("exit-handler")}
    assert len(tasks) == 9
    for key, task in tasks.items():
        step = next(step for step in ROBUSTNESS if key.startswith(step.replace("_", "-")))
        assert task["retryPolicy"]["maxRetryCount"] == ROBUSTNESS[step].retries
        assert task["retryPolicy"]["backoffMaxDuration"] == ("600s" if name.startswith("vertex") else "31536000s")


@pytest.mark.parametrize("name", ["kfp-cpu", "vertex-cpu"])
def test_preparation_on_many_pods_has_a_profile_too(tmp_path: Path, name: str) -> None:
    """Its images can be pulled, and a pod that is lost is tried again."""
    (tmp_path / "digests.json").write_text(json.dumps(IMAGES))
    output = ["--images", str(tmp_path / "digests.json"), "--output", str(tmp_path / "p.yaml")]
    done = CliRunner().invoke(app, ["pipeline", "compile", "--which", "prepare", "--profile", name, *output])
    assert done.exception is None
    pipeline, *platform = yaml.load_all((tmp_path / "p.yaml").read_text(), Loader=FAST)
    assert {container["image"] for container in executors(pipeline).values()} == {IMAGES["cpu"]}
    dags = [pipeline["root"]["dag"], *(c["dag"] for c in pipeline["components"].values() if "dag" in c)]
    tasks = {key: task for dag in dags for key, task in dag["tasks"].items() if not key.startswith("for-loop")}
    assert {key: task["retryPolicy"]["maxRetryCount"] for key, task in tasks.items()} == dict.fromkeys(
        ("fetch-checkpoint", "list-groups", "prepare-group", "join-groups"), 3
    )
    check_compiled(pipeline, *platform)
    for document in platform:
        settings = document["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
        assert {int(one["activeDeadlineSeconds"]) for one in settings} == {6 * 3600, 24 * 3600}


def kubernetes(document: dict, executor: str) -> dict:
    return document["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{executor}"]


def test_a_tpu_on_gke(compiled: dict[str, list[dict]]) -> None:
    pipeline, platform = compiled["kfp-tpu-v5e-4"]
    settings = kubernetes(platform, "finetune")
    assert settings["nodeSelector"]["labels"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "2x2",
    }
    assert settings["tolerations"] == [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert executors(pipeline)["finetune"]["resources"]["accelerator"]["resourceType"] == "google.com/tpu"
    assert "nodeSelector" not in kubernetes(platform, "prepare-data")


def test_spot_machines_are_asked_for_and_tolerated(tmp_path: Path) -> None:
    compile_pipeline(tmp_path / "p.yaml", place_task=placer("kfp-gpu-l4", IMAGES, spot=True))
    pipeline, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    settings = kubernetes(platform, "finetune")
    assert settings["nodeSelector"]["labels"]["cloud.google.com/gke-spot"] == "true"
    tasks = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    retries = {name: tasks[name]["retryPolicy"]["maxRetryCount"] for name in ("finetune", "evaluate", "prepare-data")}
    assert retries == {"finetune": 20, "evaluate": 10, "prepare-data": 3}
    assert "cloud.google.com/gke-spot" in {toleration["key"] for toleration in settings["tolerations"]}
    assert "nodeSelector" not in kubernetes(platform, "publish")
    with pytest.raises(InputError, match="no spot machines"):
        placer("vertex-gpu-l4", IMAGES, spot=True)


def test_what_the_environment_says(tmp_path: Path) -> None:
    """Every step's record names its image, and only the step that fetches is told the name of the secret."""
    compile_pipeline(tmp_path / "p.yaml", place_task=placer("vertex-gpu-l4", IMAGES, kaggle_secret="projects/p/secrets/kaggle"))
    containers = executors(yaml.safe_load((tmp_path / "p.yaml").read_text()))
    environments = {name: {entry["name"]: entry["value"] for entry in c["env"]} for name, c in containers.items()}
    for name, environment in environments.items():
        assert environment.pop("PALIGEMMA_IMAGE") == containers[name]["image"]
    assert environments.pop("fetch-checkpoint") == {"PALIGEMMA_KAGGLE_SECRET": "projects/p/secrets/kaggle"}
    assert environments.pop("preflight") == {"JAX_PLATFORMS": "cpu", "PALIGEMMA_DISK_BYTES": str(80 * 10**9)}
    for name in ("finetune", "evaluate", "evaluate-2"):
        assert environments.pop(name) == {"PALIGEMMA_ACCELERATOR": "gpu 1"}
    assert not any(environments.values())


@pytest.mark.parametrize("name", ["kfp-cpu", "vertex-cpu"])
def test_private_hosts_are_told_to_the_steps_that_fetch_and_to_no_other(tmp_path: Path, name: str) -> None:
    place_task = placer(name, IMAGES, private_hosts=" Images.Corp , 10.1.2.3,fd00::1, ")
    for which, steps in (("finetune", ["fetch-checkpoint", "prepare-data", "prepare-data-2"]), ("prepare", None)):
        compile_pipeline(tmp_path / "p.yaml", which, place_task)
        pipeline, *_ = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
        environments = {n: {entry["name"]: entry["value"] for entry in c["env"]} for n, c in executors(pipeline).items()}
        told = {n: one["PALIGEMMA_PRIVATE_HOSTS"] for n, one in environments.items() if "PALIGEMMA_PRIVATE_HOSTS" in one}
        assert {*told.values()} == {"images.corp,10.1.2.3,fd00::1"}
        assert steps is None or sorted(told) == steps


HOSTS = ["https://images.corp", "images.corp/", "images.corp:443", "*.corp", "a b", "0x7f.1", "user@images.corp", "-", "a..b"]


@pytest.mark.parametrize("host", HOSTS)
def test_what_is_no_host_is_refused_before_anything_is_compiled(host: str) -> None:
    with pytest.raises(InputError, match="is not the name of a host"):
        placer("kfp-cpu", IMAGES, private_hosts=f"images.corp,{host}")


@pytest.mark.parametrize("host", ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "0.0.0.0", "224.0.0.1"])
def test_a_metadata_server_cannot_be_allowed(host: str) -> None:
    with pytest.raises(InputError, match="refused always"):
        placer("local", private_hosts=host)


def test_secrets_are_names_and_mounted_files(tmp_path: Path) -> None:
    webhook = "projects/p/secrets/webhook/versions/latest"
    place_task = placer("kfp-cpu", IMAGES, webhook_secret=webhook, signing_secret="signing")
    compile_pipeline(tmp_path / "p.yaml", place_task=place_task)
    pipeline, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    environments = {n: {entry["name"]: entry["value"] for entry in c["env"]} for n, c in executors(pipeline).items()}
    assert [name for name, one in environments.items() if "PALIGEMMA_WEBHOOK_SECRET" in one] == ["summarize"]
    assert environments["summarize"]["PALIGEMMA_WEBHOOK_SECRET"] == webhook
    assert environments["publish"]["PALIGEMMA_SIGNING_KEY"] == "/etc/paligemma/signing/key.pem"
    (mounted,) = kubernetes(platform, "publish")["secretAsVolume"]
    assert (mounted["secretName"], mounted["mountPath"]) == ("signing", "/etc/paligemma/signing")
    with pytest.raises(InputError, match="mounts no secrets"):
        placer("vertex-cpu", IMAGES, signing_secret="signing")


@pytest.mark.parametrize(
    ("digests", "said"),
    [
        ('{"cpu": "repo:latest"}', "is not pinned"),
        ('{"cpu": "repo@sha256:abc"}', "is not pinned"),
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_images_have_digests(tmp_path: Path, digests: str | None, said: str) -> None:
    if digests is not None:
        (tmp_path / "digests.json").write_text(digests)
    with pytest.raises(InputError, match=said):
        read_images(tmp_path / "digests.json")


def test_what_cannot_be_compiled(tmp_path: Path) -> None:
    digests = tmp_path / "digests.json"
    digests.write_text(json.dumps({"cpu": IMAGES["cpu"]}))

    def error(*arguments: str) -> str:
        command = ["pipeline", "compile", "--output", str(tmp_path / "p.yaml"), *arguments]
        found = CliRunner().invoke(app, command).exception
        assert isinstance(found, InputError)
        return str(found)

    assert "There is no image for 'cpu'" in error("--profile", "kfp-cpu")
    assert "There is no image for 'gpu'" in error("--profile", "kfp-gpu-l4", "--images", str(digests))
    assert "did you mean 'kfp-gpu-l4'" in error("--profile", "kfp-gpu-l5")
    assert "several hosts of a slice are a TrainJob on GKE" in error("--profile", "vertex-tpu-v5e-16")
    assert "16 of four" in error("--profile", "kfp-tpu-v6e-256")
    assert "kfp-gpu-a100-16" in error("--profile", "kfp-multihost")
    assert "16 of four" not in error("--profile", "kfp-tpu-v5-4")
    assert not (tmp_path / "p.yaml").exists()
