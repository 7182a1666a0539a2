"""Every profile: the same DAG, on the machines of the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from typer.testing import CliRunner

from paligemma.errors import InputError
from pipelines.cli import app
from pipelines.compile import compile_pipeline
from pipelines.placement import ACCELERATED, PROFILES, ROBUSTNESS, placer, read_images

IMAGES = {
    target: f"europe-docker.pkg.dev/x/y/paligemma-{target}@sha256:{index * 64}"
    for index, target in zip("abc", ("cpu", "gpu", "tpu"), strict=True)
}
CLUSTERS = [name for name in PROFILES if name != "local"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """The YAML documents of every profile: the pipeline, and, for Kubernetes, its platform's settings."""
    documents = {}
    for name in PROFILES:
        path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
        compile_pipeline(path, place_task=placer(name, IMAGES))
        documents[name] = list(yaml.safe_load_all(path.read_text()))
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
    json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    for document in platform:
        json_format.ParseDict(document, pipeline_spec_pb2.PlatformSpec())
    assert shape(pipeline) == shape(compiled["local"][0])


@pytest.mark.parametrize("name", CLUSTERS)
def test_only_training_and_evaluation_get_accelerators(compiled: dict[str, list[dict]], name: str) -> None:
    machine = PROFILES[name].accelerated
    for executor, container in executors(compiled[name][0]).items():
        accelerated = any(executor.startswith(step) for step in ACCELERATED)
        assert container["image"] == IMAGES[machine.image if accelerated or executor == "preflight" else "cpu"]
        accelerator = container["resources"].get("accelerator")
        if accelerated and machine.accelerator:
            assert accelerator["resourceType"] == machine.accelerator
            assert int(accelerator["resourceCount"]) == machine.count
        else:
            assert accelerator is None


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
        assert task["retryPolicy"]["backoffMaxDuration"] == "600s"


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
    _, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    settings = kubernetes(platform, "finetune")
    assert settings["nodeSelector"]["labels"]["cloud.google.com/gke-spot"] == "true"
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
    assert not any(environments.values())


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
    assert "only as a custom job" in error("--profile", "vertex-tpu-v5e-4")
    for several_hosts in ("kfp-tpu-v5e-16", "kfp-tpu-v6e-256", "kfp-multihost"):
        assert "a KFP task is one pod" in error("--profile", several_hosts)
    assert "one pod" not in error("--profile", "kfp-tpu-v5-4")
    assert "Only the DAG has profiles" in error("--which", "prepare", "--profile", "kfp-cpu", "--images", str(digests))
    assert not (tmp_path / "p.yaml").exists()
