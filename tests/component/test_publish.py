"""publish on plain paths: a release is whole or not there, and the champion moves only for a reason."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from step_processes import run_step, start_step
from typer.testing import CliRunner

import paligemma
from components.evaluate import decoding as decoding_module
from components.evaluate import main as evaluate_module
from components.evaluate.__main__ import run as evaluate
from components.fetch_checkpoint.__main__ import run as fetch_checkpoint
from components.finetune.__main__ import run as finetune
from components.publish import release as release_module
from components.publish.__main__ import run as publish
from paligemma import retry
from paligemma.artifacts.record import File, list_files, read_record, record_sha256, tree_sha256
from paligemma.checkpoints.merge import merged_arrays
from paligemma.checkpoints.open_checkpoint import open_checkpoint, open_model
from paligemma.errors import DamagedError, InputError
from paligemma.registry.releases import (
    list_releases,
    promote,
    read_champion,
    read_release,
    release_part,
    roll_back,
    verify_release,
    versions,
)
from paligemma.storage import cache, failures
from paligemma.storage.failures import ChangedError
from pipelines.cli import app
from servers.fault_proxy import FaultProxy, Status
from servers.gcs import GcsServer

BASE = "embedded:tiny"


class Model:
    """A tuned model and its evaluation beside the base's."""

    def __init__(self, records: Path, folder: Path, steps: int, baseline: Path) -> None:
        self.tuned, self.evaluation = str(folder / f"tuned-{steps}"), str(folder / f"evaluation-{steps}")
        settings = [f"steps={steps}", "learning_rate=0.2", "remat=none", "batch_size=24"]
        finetune(checkpoint=BASE, records=str(records), output=self.tuned, set_=settings)
        evaluate(BASE, str(records), self.evaluation, tuned=self.tuned, baseline=str(baseline), max_new_tokens=12)

    def publish(self, registry: Path, **arguments) -> str:
        return publish(BASE, self.tuned, self.evaluation, str(registry), **arguments)


@pytest.fixture(scope="module")
def baseline(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("baseline") / "base"
    evaluate(BASE, str(records), str(output), max_new_tokens=12)
    return output


@pytest.fixture(scope="module")
def poor(records: Path, baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(records, tmp_path_factory.mktemp("poor"), 1, baseline)


@pytest.fixture(scope="module")
def fair(records: Path, baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(records, tmp_path_factory.mktemp("fair"), 12, baseline)


@pytest.fixture(scope="module")
def good(records: Path, baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(records, tmp_path_factory.mktemp("good"), 60, baseline)


def test_a_release_is_the_merged_model_with_its_card(fair: Model, records: Path, tmp_path: Path) -> None:
    version = fair.publish(tmp_path, formats="big_vision,huggingface")
    release = read_release(tmp_path, version)
    assert verify_release(release) > 10
    assert read_champion(tmp_path).release == version
    base, tuned = open_model(fair.tuned, base=BASE)
    expected = merged_arrays(base.arrays, tuned)
    for part in ("big_vision", "huggingface"):
        arrays = open_checkpoint(release_part(tmp_path, version, part)).arrays
        assert arrays.keys() == expected.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array[...], expected[name][...])
    assert paligemma.load(release.model).module is not None
    card = (release.location / "README.md").read_text()
    metrics = json.loads((Path(fair.evaluation) / "metrics.json").read_text())
    for said in (
        version,
        f"{metrics['exact_match']:.4f}",
        json.loads((Path(fair.evaluation) / "gate.json").read_text())["why"],
        read_record(fair.tuned).artifact.tree_sha256,
        base.weights_sha256,
        "learning_rate: 0.2",
        "ai.google.dev/gemma/terms",
        *(one.sha256 for one in read_record(records).inputs if one.role == "data"),
    ):
        assert said in card
    snippet = card.partition("```python\n")[2].partition("```")[0]
    exec(snippet, {})  # as a reader would paste it
    roles = [entry.role for entry in release.record.inputs]
    assert roles == ["checkpoint", "tuned model", "evaluation", "model, big_vision", "model, huggingface"]


def test_a_run_may_start_from_a_release_and_lineage_knows_from_which(fair: Model, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    model = release_part(registry, fair.publish(registry), "big_vision")
    fetch_checkpoint(source=str(model), output=str(tmp_path / "checkpoint"))
    assert open_checkpoint(tmp_path / "checkpoint").weights_sha256 == open_checkpoint(model).weights_sha256
    (weights,) = [entry for entry in read_record(tmp_path / "checkpoint").inputs if entry.role == "weights"]
    assert (weights.uri, weights.record) == (str(model), read_record(model).sha256)
    with pytest.raises(InputError):  # a registry has many models
        fetch_checkpoint(source=str(registry), output=str(tmp_path / "other"))


def test_the_same_again_is_the_same_release(fair: Model, tmp_path: Path) -> None:
    first = fair.publish(tmp_path)
    finished = read_release(tmp_path, first).record.finished
    champion = (tmp_path / "champion.json").read_bytes()
    assert fair.publish(tmp_path) == first
    assert read_release(tmp_path, first).record.finished == finished
    assert (tmp_path / "champion.json").read_bytes() == champion
    assert fair.publish(tmp_path, dtype="float32", promote=False) != first


def test_the_gate_says_no(poor: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must not replace") as caught:
        poor.publish(tmp_path)
    assert "Keep what there is: exact_match is" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"lineage"}  # the attempt is on record
    version = poor.publish(tmp_path, promote=False)
    assert versions(tmp_path) == [version]
    assert read_champion(tmp_path) is None


def test_an_evaluation_of_another_model_is_refused(fair: Model, poor: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of another model"):
        publish(BASE, poor.tuned, fair.evaluation, str(tmp_path))
    with pytest.raises(InputError, match="did you mean 'huggingface'"):
        fair.publish(tmp_path, formats="hugingface")
    assert {path.name for path in tmp_path.iterdir()} == {"lineage"}  # the attempt is on record


def test_a_better_one_replaces_the_champion_and_goes_back(
    fair: Model, good: Model, records: Path, baseline: Path, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    first = fair.publish(registry)
    with pytest.raises(ChangedError, match="not compared with the current champion"):
        good.publish(registry)  # it was evaluated when there was none
    beside = str(tmp_path / "beside")
    evaluate(BASE, str(records), beside, tuned=good.tuned, baseline=str(baseline), registry=str(registry), max_new_tokens=12)
    decision = json.loads((tmp_path / "beside/gate.json").read_text())
    assert [comparison["against"] for comparison in decision["comparisons"]] == ["base", "champion"]
    assert (
        decision["comparisons"][1]["other"] == json.loads((Path(fair.evaluation) / "metrics.json").read_text())["exact_match"]
    )
    assert decision["promote"]
    second = publish(BASE, good.tuned, beside, str(registry))
    assert read_champion(registry).model_dump(include={"release", "history"}) == {"release": second, "history": [first]}
    with pytest.raises(ChangedError):  # decided before the second was there
        promote(read_release(registry, first), None)

    runner = CliRunner()
    listed = runner.invoke(app, ["releases", "--registry", str(registry)]).output.splitlines()
    assert {line[:14] for line in listed} == {f"  {first}", f"* {second}"}
    assert f"the champion is {first}, it was {second}" in runner.invoke(app, ["rollback", "--registry", str(registry)]).output
    with pytest.raises(InputError, match="no champion before"):
        roll_back(registry)
    assert roll_back(registry, second)[1].history == [first]
    with pytest.raises(InputError, match="no release 'x'"):
        roll_back(registry, "x")


def test_the_champion_is_evaluated_anew_on_other_rows(
    fair: Model, good: Model, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = tmp_path / "registry"
    fair.publish(registry)
    settings = {"tuned": good.tuned, "registry": str(registry), "max_new_tokens": 9}  # its evaluation had 12
    with monkeypatch.context() as broken:
        broken.setattr(evaluate_module, "judge", lambda *_: {}["bug"])
        with pytest.raises(KeyError):
            evaluate(BASE, str(records), str(tmp_path / "x"), **settings)
    # Neither the model nor the champion is decoded again.
    monkeypatch.setattr(decoding_module, "build_model", lambda *_: pytest.fail("a model was loaded again"))
    evaluate(BASE, str(records), str(tmp_path / "x"), **settings)
    (comparison,) = json.loads((tmp_path / "x/gate.json").read_text())["comparisons"]
    assert [path.name for path in tmp_path.glob("x*")] == ["x"]
    monkeypatch.undo()
    evaluate(BASE, str(records), str(tmp_path / "alone"), tuned=fair.tuned, max_new_tokens=9)
    assert comparison["other"] == json.loads((tmp_path / "alone/metrics.json").read_text())["exact_match"]


def test_what_a_broken_attempt_left_is_used(fair: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = release_module.export

    def breaks(model: str, output: str, format: str, *arguments, **more) -> None:
        if format == "huggingface":
            raise OSError(28, "No space left on device")
        real(model, output, format, *arguments, **more)

    monkeypatch.setattr(release_module, "export", breaks)
    with pytest.raises(InputError, match="not enough room"):
        fair.publish(tmp_path, formats="big_vision,huggingface")
    assert versions(tmp_path) == []
    assert read_champion(tmp_path) is None
    (left,) = (tmp_path / "releases").iterdir()
    before = (left / "big_vision/lineage.json").read_bytes()
    monkeypatch.undo()
    version = fair.publish(tmp_path, formats="big_vision,huggingface")
    assert version == left.name
    assert (left / "big_vision/lineage.json").read_bytes() == before
    assert verify_release(read_release(tmp_path, version))


@pytest.mark.parametrize(
    ("part", "damage", "said"),
    [
        ("big_vision/checkpoint.npz", "flip", "checkpoint.npz was altered"),
        ("release/README.md", "flip", "README.md was altered"),
        ("release/evaluation/predictions.jsonl", "remove", "missing"),
        ("big_vision/config.json", "remove", "missing"),
        ("big_vision/more.txt", "add", "more.txt is new"),
        ("big_vision/lineage.json", "rewrite", "The record was altered"),
    ],
)
def test_verify_names_what_is_not_as_it_was(fair: Model, tmp_path: Path, part: str, damage: str, said: str) -> None:
    version = fair.publish(tmp_path / "registry")
    path = tmp_path / "registry/releases" / version / part
    if damage == "flip":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "remove":
        path.unlink()
    elif damage == "add":
        path.write_text("x")
    else:  # a record made anew for another file: it agrees with its folder, and not with the release
        other = path.with_name("config.json")
        other.write_text(other.read_text() + "\n")
        shutil.move(path, tmp_path / "old")
        record = json.loads((tmp_path / "old").read_text())
        files = list_files(path.parent)
        record["artifact"] |= {"files": [file.model_dump() for file in files], "tree_sha256": tree_sha256(files)}
        record["artifact"]["bytes"] = sum(File.model_validate(file).bytes for file in record["artifact"]["files"])
        record["sha256"] = record_sha256(record)
        path.write_text(json.dumps(record))
    result = CliRunner().invoke(app, ["verify", version, "--registry", str(tmp_path / "registry")])
    assert isinstance(result.exception, DamagedError)
    assert said in str(result.exception)


def beside(model: Model, records: Path, folder: Path, registry: str) -> str:
    """The model's evaluation beside the champion of now."""
    output = str(folder / "beside")
    evaluate(BASE, str(records), output, tuned=model.tuned, registry=registry, max_new_tokens=12)
    return output


def test_killed_at_any_moment_the_champion_is_the_old_one_or_the_new(
    fair: Model, good: Model, records: Path, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    old = fair.publish(registry)
    flags = {"--checkpoint": BASE, "--tuned": good.tuned, "--evaluation": beside(good, records, tmp_path, str(registry))}
    flags |= {"--registry": str(registry), "--formats": "big_vision,huggingface"}
    words = [word for pair in flags.items() for word in pair]
    run_step("publish", ["--help"])  # the first one waits for what all are forked from
    started = time.monotonic()
    run_step("publish", words)
    seconds, new, chance = time.monotonic() - started, read_champion(registry).release, random.Random(0)
    assert new != old
    for _ in range(5):
        if read_champion(registry).release == new:
            roll_back(registry)
        shutil.rmtree(registry / "releases" / new, ignore_errors=True)
        process = start_step("publish", words)
        time.sleep(seconds * chance.uniform(0.2, 1.0))
        process.kill()
        process.join()
        champion = read_champion(registry).release
        assert champion in (old, new)
        assert verify_release(read_release(registry, champion))
    run_step("publish", words)
    assert read_champion(registry).model_dump(include={"release", "history"}) == {"release": new, "history": [old]}
    assert verify_release(read_release(registry, new))


def test_an_upload_that_fails_leaves_no_release_and_the_same_command_goes_on(
    fair: Model, good: Model, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.002, maximum=0.02, timeout=1.0))
    uploads: list[int] = []

    def refuse_after_three(request):
        if request.method == "POST":
            uploads.append(request.number)
        return Status(503) if len(uploads) > 3 else None

    registry = "gs://bucket-of-releases/registry"
    with GcsServer() as server:
        server.create_bucket("bucket-of-releases")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        old = fair.publish(registry)
        candidate = good.tuned, beside(good, records, tmp_path, registry), registry
        with FaultProxy(server.url, refuse_after_three) as proxy:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
            with pytest.raises(failures.StorageUnavailableError) as caught:
                publish(BASE, *candidate)
        assert caught.value.exit_code == 4
        assert len(uploads) > 3
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        assert versions(registry) == [old]
        assert read_champion(registry).release == old
        new = publish(BASE, *candidate)
        assert read_champion(registry).release == new != old
        assert verify_release(read_release(registry, new))


def test_the_oldest_release_is_listed_first(fair: Model, poor: Model, tmp_path: Path) -> None:
    found = [poor.publish(tmp_path, promote=False), fair.publish(tmp_path)]
    assert {release.version for release in list_releases(tmp_path)[0]} == set(found)
