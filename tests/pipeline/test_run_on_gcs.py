"""The DAG with its data, its checkpoint and all its artifacts in Google Cloud Storage (a real fake-gcs-server process)."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec.config
import jax
import pytest

import paligemma
from components.evaluate.__main__ import run as evaluate
from components.finetune.main import fine_tune
from components.prepare_data.__main__ import run as prepare
from components.publish.model_registry import VertexModel
from conftest import XLA_FLAGS, SmallData
from paligemma.artifacts.record import read_record
from paligemma.artifacts.store import localize
from paligemma.checkpoints.open_checkpoint import resolve_embedded
from paligemma.data.records import open_records, row_ids
from paligemma.errors import DamagedError, InputError
from paligemma.google.vertex import ENDPOINT_VARIABLE
from paligemma.lineage.index import Index
from paligemma.lineage.queries import trace
from paligemma.lineage.verify import verify
from paligemma.registry.releases import Release, read_champion, read_release, verify_release
from paligemma.storage import cache, gcs
from paligemma.storage.location import GcsLocation, parse_location
from paligemma.training.open_recipe import OpenRecipe
from paligemma.training.preemption import PreemptedError, PreemptionGuard
from paligemma.training.recipe import Recipe
from pipelines.plan import plan
from pipelines.run_local import run_pipeline
from servers.gcs import GcsServer
from servers.vertex import VertexServer

BUCKET = GcsLocation("bucket-of-the-dag", "")
SERVING = """\
{image: pkg.dev/p/server, ports: [80], predict_route: /p, health_route: /h, env: {CKPT_PATH: "{files}/checkpoint.npz"}}"""


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with GcsServer() as running:
        running.create_bucket(BUCKET.bucket)
        yield running


@pytest.fixture(autouse=True)
def _storage(server: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", XLA_FLAGS)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})  # it reads the variable once, when it is imported
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def data(small_data: SmallData) -> GcsLocation:
    """Eight rows and their images in the bucket, and one row whose image leads out of the prefix."""
    rows = [{"image": small_data.add_image(f"{n}.png", n), "prefix": "ocr", "suffix": str(n)} for n in range(8)]
    small_data.write([*rows, {**rows[0], "image": "../secret.png"}])
    for path in small_data.folder.iterdir():
        gcs.upload(path, BUCKET / "data" / path.name)
    return BUCKET / "data/rows.jsonl"


def test_images_in_a_tar_file_of_the_bucket(small_data: SmallData, tmp_path: Path) -> None:
    """Rows whose names go through it are those of plain files, and it is fetched once; one that is cut short holds no image."""
    names = [small_data.add_image(f"{n}.png", n) for n in range(4)]
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        for name in names:
            tar.add(small_data.folder / name, f"deep/{name}")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:300])
    for path in (tmp_path / "whole.tar", tmp_path / "cut.tar", *(small_data.folder / name for name in names)):
        gcs.upload(path, BUCKET / "tar/images" / path.name)
    for kind, prefix in (("plain", ""), ("tar", "whole.tar/deep/")):
        rows = [{"image": prefix + name, "prefix": "ocr", "suffix": name} for name in names]
        rows += [{"image": place, "prefix": "ocr", "suffix": "x"} for place in ("whole.tar/none.png", "cut.tar/deep/0.png")]
        (tmp_path / kind).write_text("".join(json.dumps(row) + "\n" for row in rows))
        gcs.upload(tmp_path / kind, BUCKET / f"tar/{kind}.jsonl")
        prepare(
            f"{BUCKET}/tar/{kind}.jsonl",
            "embedded:tiny",
            f"{BUCKET}/tar/{kind}",
            images=f"{BUCKET}/tar/images",
            max_reject_fraction=0.5,
            workers=1,
        )
    plain, packed = (open_records(f"{BUCKET}/tar/{kind}") for kind in ("plain", "tar"))
    assert packed.dataset.rejected == plain.dataset.rejected == {"image_missing": 2}
    assert row_ids(packed, range(4)) == row_ids(plain, range(4))


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[VertexServer]:
    with VertexServer() as server:
        monkeypatch.setenv(ENDPOINT_VARIABLE, server.url)
        yield server


def check_model(google: VertexServer, release: Release) -> None:
    """The release is one version of a model of Vertex AI, also when it is uploaded again, and its files are where that says."""
    model = f"{google.parent}/models/paligemma"
    for bad in (("models/x", "i", "gs://b"), (model, "", "gs://b"), (model, "i", "runs/registry")):
        with pytest.raises(InputError):
            VertexModel.parse(*bad)
    assert VertexModel.parse(model, SERVING, str(BUCKET)).upload(release) == f"{model}@1"
    (made,) = google.models["paligemma"]
    assert made["containerSpec"]["imageUri"] == "pkg.dev/p/server"
    assert made["containerSpec"]["env"] == [{"name": "CKPT_PATH", "value": f"{made['artifactUri']}/checkpoint.npz"}]
    assert made["versionAliases"] == [f"release-{release.version}"]
    assert made["labels"] == {"release": release.version, "format": "big-vision"}
    files = {one.location.name.rpartition("/")[2] for one in gcs.list_objects(parse_location(made["artifactUri"]))}
    assert {"checkpoint.npz", "config.json"} <= files
    assert re.fullmatch(r"exact_match [01]\.\d{4} \([01]\.\d{4} to [01]\.\d{4}\)", made["versionDescription"])


def test_the_whole_dag(data: GcsLocation, google: VertexServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in resolve_embedded("embedded:tiny").iterdir():
        gcs.upload(path, BUCKET / "checkpoints/tiny" / path.name)
    parameters: dict[str, object] = {
        "source": str(BUCKET / "checkpoints/tiny"),
        "train_data": str(data),
        "validation_data": str(data),
        "recipe": "steps: 60\nlearning_rate: 0.2\nremat: none\nsave_every: 20",
        "decoding": "max_new_tokens: 4",
        "max_reject_fraction": 0.2,
        "registry": str(BUCKET / "registry"),
        "vertex_model": f"{google.parent}/models/paligemma",
        "serving": SERVING,
        "artifact_root": str(BUCKET / "artifacts"),
    }
    outputs = run_pipeline(parameters, tmp_path / "root")
    release = read_release(BUCKET / "registry", read_champion(BUCKET / "registry").release)
    check_model(google, release)
    assert outputs.release == str(release.location)
    assert verify_release(release) > 5
    artifacts = [outputs.tuned, outputs.base_evaluation, outputs.tuned_evaluation]
    assert all(location.startswith("gs://bucket-of-the-dag/artifacts/paligemma-finetune") for location in artifacts)
    evaluation = read_record(localize(outputs.tuned_evaluation), "evaluation")
    assert evaluation.artifact.uri == outputs.tuned_evaluation
    assert {entry.uri.split("/")[2] for entry in evaluation.inputs} == {BUCKET.bucket}
    by_role = {entry.role: entry.sha256 for entry in evaluation.inputs}
    assert by_role["tuned model"] == read_record(localize(outputs.tuned)).artifact.tree_sha256
    assert json.loads((localize(outputs.tuned_evaluation) / "metrics.json").read_text())["examples"] == 8
    steps = {
        "fetch-checkpoint",
        "preflight",
        "prepare-data",
        "prepare-data-2",
        "finetune",
        "evaluate",
        "evaluate-2",
        "summarize",
    }
    names = [found.location.name.split("/") for found in gcs.list_objects(BUCKET / "artifacts")]
    assert {parts[2] for parts in names if parts[1] not in ("lineage", "results", "compiled")} == steps
    assert sum(parts[1] == "compiled" for parts in names) > 1
    assert {parts[3] for parts in names if parts[1] == "lineage" and parts[2] != "rows"} == steps | {"publish"}
    with Index(BUCKET / "artifacts") as index:
        found = verify(index)
        assert (found.problems, found.artifacts) == ([], 10)  # a release is two: the model, and what is said of it
        assert {step["task"] for step in trace(index, outputs.tuned)["steps"]} == {
            "fetch-checkpoint",
            "prepare-data",
            "finetune",
        }

    # The state that was saved at every step is gone with the need for it: nothing else is below the root.

    # The tuned model's base is found where it was published, from any machine.
    model = paligemma.load(outputs.tuned)
    assert len(model.generate([resolve_image(data)], "ocr", max_new_tokens=2)) == 1

    # Of the same data, a week later and on a machine with nothing in its cache, only what the new champion judges is made.
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "another cache"))
    before = {one.location for one in gcs.list_objects(BUCKET / "artifacts")}
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # other tests may have given this process more; the steps had one
    planned = plan(parameters, str(BUCKET / "artifacts"))
    assert {one.location for one in gcs.list_objects(BUCKET / "artifacts")} == before
    assert {one.task: one.why for one in planned if one.why} == {
        "fetch-checkpoint": "the source has changed",
        "evaluate-2": "another champion",
    }
    assert {one.task for one in planned if one.reused is None} == {"evaluate-2"}
    assert "unless the source has changed" in str(planned[0])
    weights = [path for path in (tmp_path / "another cache").rglob("*") if path.suffix in (".npz", ".tfrecord")]
    assert weights == []  # nobody has to fetch what only counts by its hash
    assert not str(jax.config.jax_compilation_cache_dir).startswith("gs://")  # this process would compile there from now on
    again = run_pipeline(parameters, tmp_path / "another root")
    made = {task for task, place in again.artifacts.items() if outputs.artifacts[task] != place}
    assert made == {"evaluate-2", "summarize"}
    assert again.release == ""  # it is no better than the champion, which it is
    judged = json.loads((localize(again.tuned_evaluation) / "metrics.json").read_text())
    assert (judged["examples"], judged["examples_per_second"]) == (8, 0)  # its answers are those that it gave as a candidate
    with Index(BUCKET / "artifacts") as index:
        assert verify(index).problems == []
        assert trace(index, again.tuned)["steps"] == trace(index, outputs.tuned)["steps"]


def resolve_image(data: GcsLocation) -> Path:
    return localize(GcsLocation(data.bucket, "data/0.png"))


def test_unsafe_and_missing_images_are_rejected_as_in_a_folder(data: GcsLocation, tmp_path: Path) -> None:
    prepare(data=str(data), checkpoint="embedded:tiny", output=str(tmp_path / "x"), max_reject_fraction=1.0)
    assert open_records(tmp_path / "x").dataset.rejected == {"image_path_unsafe": 1}
    prepare(data=str(data), checkpoint="embedded:tiny", output=str(tmp_path / "local"), images=str(tmp_path / "data"),
            max_reject_fraction=1.0)  # fmt: skip
    shards = [read_record(tmp_path / name).artifact.files for name in ("x", "local")]
    tfrecords = [[file.sha256 for file in files if file.path.endswith(".tfrecord")] for files in shards]
    assert tfrecords[0] == tfrecords[1]


def test_too_many_rejects_leave_the_list_in_the_bucket(data: GcsLocation) -> None:
    output = BUCKET / "too-many/records"
    with pytest.raises(InputError, match="1 of 9 rows were rejected"):
        prepare(data=str(data), checkpoint="embedded:tiny", output=str(output), max_reject_fraction=0.0)
    assert json.loads(gcs.read_bytes(BUCKET / "too-many/records.rejected.jsonl")[0])["code"] == "image_path_unsafe"
    assert gcs.stat(output / "lineage.json") is None


def test_a_task_that_is_started_again_finds_its_state_in_the_bucket(data: GcsLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    records, root = str(BUCKET / "resumed/records"), BUCKET / "resumed/state"
    prepare(data=str(data), checkpoint="embedded:tiny", output=records, max_reject_fraction=1.0)
    recipe = OpenRecipe(recipe=Recipe(steps=3, save_every=1, remat="none"))
    trained = {}
    # The rows of the attempts after the first are fetched as they are needed, which changes no bit.
    for attempt, disk_budget in (("undisturbed", ""), ("preempted", "80kB"), ("again", "80kB")):
        monkeypatch.setattr(PreemptionGuard, "should_stop", lambda self, step, a=attempt: a == "preempted" and step == 2)
        # As KFP has it: every attempt has an output of its own.
        arguments = ("embedded:tiny", records, str(BUCKET / "resumed" / attempt), recipe)
        if attempt == "preempted":
            with pytest.raises(PreemptedError, match=f"its state is in {root}/"):
                fine_tune(*arguments, state_root=str(root), disk_budget=disk_budget)
            assert any("/step-00000002-" in str(found.location) for found in gcs.list_objects(root))
            continue
        fine_tune(*arguments, state_root=str(root), disk_budget=disk_budget)
        trained[attempt] = gcs.read_bytes(localized(BUCKET / "resumed" / attempt, "trained.safetensors"))[0]
        assert list(gcs.list_objects(root)) == []
    assert trained["again"] == trained["undisturbed"]


def localized(artifact: GcsLocation, name: str) -> GcsLocation:
    (found,) = (one.location for one in gcs.list_objects(artifact) if one.location.name.endswith(f"/{name}"))
    return found


def test_an_altered_artifact_is_found(data: GcsLocation, tmp_path: Path) -> None:
    output = BUCKET / "altered/records"
    prepare(data=str(data), checkpoint="embedded:tiny", output=str(output), max_reject_fraction=1.0)
    shard = next(found for found in gcs.list_objects(output) if found.location.name.endswith(".tfrecord"))
    contents = gcs.read_bytes(shard.location)[0]
    gcs.write_bytes(shard.location, b"x" + contents[1:])
    with pytest.raises(DamagedError, match="does not match its record"):
        evaluate(checkpoint="embedded:tiny", records=str(output), output=str(tmp_path / "x"))
