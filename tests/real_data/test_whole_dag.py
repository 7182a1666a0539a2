"""The DAG from its first step to its last, on this machine and in Cloud Storage, and what lineage says of it afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from paligemma.registry.releases import read_champion
from paligemma.storage import gcs
from paligemma.storage.location import GcsLocation
from real_data.command_line import CommandLine
from real_data.conftest import Published, Run, few_steps, run_pipeline
from real_data.test_tasks import check_evaluation, lines
from servers.gcs import GcsServer

BUCKET = "real-data"
DATA = GcsLocation(BUCKET, "flags, 100 % Île")
ARTIFACTS, REGISTRY = f"gs://{BUCKET}/artifacts", f"gs://{BUCKET}/registry"


def test_a_better_model_is_published(run: Run, published: Published) -> None:
    for task, rows in (("prepare-data", "mixed_train.jsonl"), ("prepare-data-2", "vqa_val.jsonl")):
        dataset = run.dataset(task)
        assert dataset["rows"] + sum(dataset["rejected"].values()) == len(lines(published.folder / rows))
    assert run.dataset("prepare-data")["rows"] > 2000
    evaluations = [run.folder / task / "evaluation" for task in ("evaluate", "evaluate-2")]
    base, tuned = (check_evaluation(folder, run.dataset("prepare-data-2")["rows"]) for folder in evaluations)
    assert tuned["primary"] == "vqa_accuracy"
    assert tuned["metrics"]["vqa_accuracy"]["low"] > base["metrics"]["vqa_accuracy"]["high"]
    assert tuned["loss"] < base["loss"]
    several = [row for row in lines(evaluations[1] / "predictions.jsonl") if len(set(row.get("answers", ()))) > 2]
    assert len(several) > 100
    assert json.loads((evaluations[1] / "gate.json").read_text())["promote"] is True
    assert "release: " in run.said
    (release,) = (run.registry / "releases").iterdir()
    assert read_champion(str(run.registry)).release == release.name


def test_lineage_names_the_models_of_a_picture_and_a_row(run: Run, command_line: CommandLine) -> None:
    for name in ("vqa/train_000000000001.png", "mixed_train.jsonl:1"):
        found = json.loads(command_line.paligemma("lineage", "impact", name, root="runs", json=True))
        assert str(run.tuned) in {one["output"] for one in found["models"]}, name
        assert len(found["releases"]) > 0, name
    found = json.loads(command_line.paligemma("lineage", "impact", "vqa_val.jsonl:1", root="runs", json=True))
    assert found["models"] == []
    assert {str(run.folder / task / "evaluation") for task in ("evaluate", "evaluate-2")} <= {
        one["output"] for one in found["evaluations"]
    }
    release = next((run.registry / "releases").iterdir()).name
    traced = json.loads(command_line.paligemma("lineage", "trace", release, root="runs", json=True))
    assert {step["task"] for step in traced["steps"]} >= {"fetch-checkpoint", "prepare-data", "finetune", "publish"}


def test_a_second_run_on_other_rows_is_compared_with_the_champion(
    run: Run, published: Published, command_line: CommandLine
) -> None:
    """Hundreds of classes, and too few steps to learn them: nothing is published, and that is no failure."""
    labels = published.folder / "labels"
    for split in ("train", "val"):
        rows = [row | {"image": f"{split}/{row['image']}"} for row in lines(published.rows("labels", split))]
        (labels / f"{split}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    second = run_pipeline(command_line, "labels/train.jsonl", "labels/val.jsonl", task="classify", steps=10)
    evaluation = second.folder / "evaluate-2/evaluation"
    check_evaluation(evaluation, published.counts["labels", "val"]["pictures"])
    gate = json.loads((evaluation / "gate.json").read_text())
    assert gate["promote"] is False
    assert [one["against"] for one in gate["comparisons"]] == ["base", "champion"]
    assert "release: " not in second.said
    assert len(list((run.registry / "releases").iterdir())) == 1


def test_lineage_is_whole_after_all_runs(run: Run, command_line: CommandLine) -> None:
    command_line.paligemma("lineage", "verify", root="runs")
    assert run.folder.name in command_line.paligemma("lineage", "list", root="runs", json=True)
    command_line.paligemma("releases", registry="runs/registry")
    release = next((run.registry / "releases").iterdir()).name
    command_line.paligemma("verify", release, registry="runs/registry")


@pytest.fixture
def cloud(command_line: CommandLine, published: Published, monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    """Commands that find Cloud Storage at the emulator, where the questions and their pictures are."""
    with GcsServer() as server:
        server.create_bucket(BUCKET)
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        paths = [*published.folder.glob("vqa/*"), *published.folder.glob("vqa_*.jsonl")]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda path: gcs.upload(path, DATA / path.relative_to(published.folder).as_posix()), paths))
        yield replace(command_line, environment=command_line.environment | server.environment())


def test_the_dag_in_cloud_storage(cloud: CommandLine, tmp_path: Path) -> None:
    said = cloud.paligemma(
        "pipeline",
        "run",
        source="embedded:tiny",
        train_data=DATA / "vqa_train.jsonl",
        validation_data=DATA / "vqa_val.jsonl",
        task="vqa",
        registry=REGISTRY,
        artifact_root=ARTIFACTS,
        root=tmp_path,
        **few_steps(60),
    )
    assert f"release:     {REGISTRY}/releases/" in said
    elsewhere = replace(cloud, folder=tmp_path)  # where that is no file, but only the name of one
    found = json.loads(elsewhere.paligemma("lineage", "impact", "vqa/train_000000000001.png", root=ARTIFACTS, json=True))
    assert [one["output"].rpartition("/")[2] for one in found["models"]] == ["tuned"]
    assert len(found["releases"]) == 1
    cloud.paligemma("lineage", "verify", root=ARTIFACTS)
    cloud.paligemma("releases", registry=REGISTRY)
