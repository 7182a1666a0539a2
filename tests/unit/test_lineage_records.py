"""What every attempt of a step leaves: a record that vouches for its inputs, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextvars import ContextVar
from pathlib import Path

import pytest
from kfp import dsl

from components.artifacts import copy_file, input_location, mirror_record, output_location
from conftest import ONE_DEVICE
from paligemma.artifacts.record import parse_record, read_record, render_record
from paligemma.artifacts.recording import RUN_VARIABLE, Attempt, recorded
from paligemma.artifacts.store import input_of, produce, record_of
from paligemma.decoding.settings import DecodeSettings
from paligemma.errors import DamagedError, InputError, StoppedError
from paligemma.lineage.index import Index
from paligemma.lineage.queries import list_runs
from paligemma.storage.location import GcsLocation
from servers.gcs import GcsServer


def make(output: Path, text: str = "x", inputs: tuple = (), **facts: object) -> None:
    with produce(output, "thing", "make", {"text": text}, list(inputs)) as draft:
        (draft.folder / "file").write_text(text)
        for name, value in facts.items():
            setattr(draft, name, value)


def copies(root: Path) -> list[Path]:
    return sorted(path for path in (root / "lineage").rglob("*.json"))


@recorded("step")
def step(output: str, source: str = "", fail: BaseException | None = None) -> None:
    if fail is not None:
        raise fail
    make(Path(output))


def test_an_artifact_has_a_record_and_the_root_the_same_one(tmp_path: Path) -> None:
    make(tmp_path / "a", rows=3, metrics={"loss": 0.5, "never": float("nan")})
    (copy,) = copies(tmp_path)
    assert copy.read_bytes() == (tmp_path / "a/lineage.json").read_bytes()
    record = read_record(tmp_path / "a", "thing")
    assert (record.status, record.artifact.rows, record.metrics) == ("succeeded", 3, {"loss": 0.5})
    assert copy == tmp_path / "lineage" / record.run / "make-a" / f"{record.attempt}.json"


def test_a_record_survives_the_replacement_of_its_artifact(tmp_path: Path) -> None:
    make(tmp_path / "a", "one")
    before = read_record(tmp_path / "a")
    make(tmp_path / "a", "two")
    kept = [parse_record(path.read_bytes(), path) for path in copies(tmp_path)]
    assert [record.artifact.tree_sha256 for record in kept] == [
        before.artifact.tree_sha256,
        read_record(tmp_path / "a").artifact.tree_sha256,
    ]


def test_an_artifact_is_replaced_if_nothing_else_is_in_its_folder(tmp_path: Path) -> None:
    make(tmp_path / "a", "one")
    (tmp_path / "a/file").write_text("damaged, which making it again is to mend")
    make(tmp_path / "a", "two")
    (tmp_path / "a/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt, which is not one of the artifact's files"):
        make(tmp_path / "a", "three")
    assert sorted((path.name, path.read_text()) for path in (tmp_path / "a").glob("*[!n]")) == [
        ("file", "two"),
        ("notes.txt", "mine"),
    ]


def test_a_folder_whose_record_cannot_be_read_is_not_replaced(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a/lineage.json").write_text("{")
    with pytest.raises(InputError, match=r"The artifact in .* cannot be replaced(.|\n)*not JSON(.|\n)*remove it yourself"):
        make(tmp_path / "a")
    assert (tmp_path / "a/file").is_file()


def test_inputs_are_named_by_the_hashes_of_their_records_and_their_runs(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "plain").write_text("y")
    make(tmp_path / "b", inputs=(input_of("thing", tmp_path / "a"), input_of("file", tmp_path / "plain")))
    a, (of_artifact, of_file) = read_record(tmp_path / "a"), read_record(tmp_path / "b").inputs
    assert (of_artifact.record, of_artifact.run, of_artifact.sha256) == (a.sha256, a.run, a.artifact.tree_sha256)
    assert (of_file.record, of_file.run) == (None, None)


def test_an_altered_record_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", rows=3)
    file = tmp_path / "a/lineage.json"
    file.write_text(file.read_text().replace('"rows": 3', '"rows": 4'))
    with pytest.raises(DamagedError, match="altered"):
        read_record(tmp_path / "a")


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    make(tmp_path / "a", metrics={"tiny": 1e-300, "third": 1 / 3})
    data = (tmp_path / "a/lineage.json").read_bytes()
    assert render_record(parse_record(data, "x")) == data


def test_a_list_of_rows_is_kept_once_and_outlives_its_artifact(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with produce(tmp_path / name, "records", "prepare_data", {"name": name}, []) as draft:
            (draft.folder / "rows.jsonl").write_text('{"row_id": "00"}\n')
    (kept,) = (tmp_path / "lineage/rows").iterdir()
    assert kept.read_bytes() == b'{"row_id": "00"}\n'
    assert kept.name == read_record(tmp_path / "one").artifact.file("rows.jsonl").sha256 + ".jsonl"


@pytest.mark.parametrize(
    ("error", "status"),
    [(InputError("Bad rows."), "failed"), (KeyError("x"), "failed"), (StoppedError("Stop."), "preempted"),
     (KeyboardInterrupt(), "preempted")],
)  # fmt: skip
def test_an_attempt_that_fails_leaves_a_record(tmp_path: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)):
        step(str(tmp_path / "a"), "https://me:secret@host/x?token=secret", fail=error)
    (copy,) = copies(tmp_path)
    record = parse_record(copy.read_bytes(), copy)
    assert (record.status, record.artifact, record.output) == (status, None, str(tmp_path / "a"))
    assert record.error.kind == type(error).__name__
    assert record.producer.component == "step"
    assert record.producer.parameters["source"] == "https://host/x"


def test_settings_are_recorded_as_values_and_locations_as_addresses(tmp_path: Path) -> None:
    @recorded("decode")
    def fails(output: str, settings: DecodeSettings, place: GcsLocation) -> None:
        raise InputError("no")

    with pytest.raises(InputError):
        fails(str(tmp_path / "x"), DecodeSettings(beams=2), GcsLocation("bucket", "prefix"))
    (path,) = tmp_path.glob("lineage/*/*/*[0-9a-f].json")
    recorded_values = parse_record(path.read_bytes(), path).producer.parameters
    assert recorded_values["settings"]["beams"] == 2
    assert recorded_values["place"] == "gs://bucket/prefix"


def test_a_step_within_a_step_is_part_of_its_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_VARIABLE, "weekly 7")

    @recorded("outer")
    def outer(output: str) -> None:
        step(f"{output}/part")
        make(Path(output) / "whole")

    outer(str(tmp_path / "a"))
    names = [path.relative_to(tmp_path / "lineage").as_posix() for path in copies(tmp_path)]
    attempt = read_record(tmp_path / "a/part").attempt
    assert names == [f"weekly-7/outer-a/{attempt}.json", f"weekly-7/outer-a/{attempt}_2.json"]
    assert read_record(tmp_path / "a/whole").producer.component == "make"


def test_an_attempt_that_fails_after_its_first_artifact_has_failed(tmp_path: Path) -> None:
    @recorded("outer")
    def outer(output: str) -> None:
        make(Path(output))
        raise InputError("The champion is another one by now.")

    with pytest.raises(InputError):
        outer(str(tmp_path / "a"))
    made, failed = (parse_record(path.read_bytes(), path) for path in copies(tmp_path))
    assert (made.status, failed.status, failed.artifact) == ("succeeded", "failed", None)
    assert failed.error.message == "The champion is another one by now."
    with Index(tmp_path) as index:
        (run,) = list_runs(index)
    assert (run["status"], run["attempts"]) == ("failed", 1)


def test_a_step_may_name_the_root_of_its_records(tmp_path: Path) -> None:
    @recorded("publish", output="registry", root="registry")
    def publish(registry: str) -> None:
        make(Path(registry) / "releases/v1")

    publish(str(tmp_path / "registry"))
    (copy,) = copies(tmp_path / "registry")
    assert copy.parts[-4] == "lineage"
    assert parse_record(copy.read_bytes(), copy).output == str(tmp_path / "registry/releases/v1")


WAITING = """
import sys, time
from paligemma.artifacts.recording import recorded
@recorded("slow")
def slow(output):
    print("begun", flush=True)
    time.sleep(60)
slow(sys.argv[1])
"""


@pytest.mark.parametrize(("number", "left"), [(signal.SIGTERM, "preempted"), (signal.SIGKILL, "running")])
def test_what_a_killed_attempt_leaves(tmp_path: Path, number: signal.Signals, left: str) -> None:
    command = [sys.executable, "-c", WAITING, str(tmp_path / "a")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=dict(ONE_DEVICE))
    assert process.stdout.readline() == b"begun\n"
    os.kill(process.pid, number)
    process.wait(20)
    (copy,) = copies(tmp_path)
    assert parse_record(copy.read_bytes(), copy).status == left
    assert copy.name.endswith(".started.json") == (left == "running")


def test_a_failure_that_cannot_be_recorded_is_still_the_one_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("The disk is full.")

    monkeypatch.setattr(Attempt, "keep", refuse)
    with pytest.raises(InputError, match="Bad rows"):
        step(str(tmp_path / "a"), fail=InputError("Bad rows."))


def test_kfps_metadata_says_what_the_record_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "paligemma.artifacts.recording._place", ContextVar("place", default=None)
    )  # a task has a process of its own
    artifact = dsl.Artifact(name="made", uri=str(tmp_path / "root/job/make/made"), metadata={})
    output = output_location(artifact, "", "job", "make")
    make(Path(output), rows=3)
    record = read_record(output)
    assert (record.run, record.task, record.output) == ("job", "make", str(tmp_path / "root/job/make/made"))
    assert [path.parent for path in copies(tmp_path / "root")] == [tmp_path / "root/lineage/job/make"]
    mirror_record(artifact, output)
    mirrored = {"type": "thing", "tree_sha256": record.artifact.tree_sha256, "rows": 3, "run": "job", "task": "make"}
    assert mirrored.items() <= artifact.metadata.items()
    assert artifact.metadata["record"] == record.sha256


def test_an_artifact_of_a_cluster_stays_the_runners_and_says_where_ours_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KFP's launcher fails a task whose artifact has left the pipeline root, and gives the next one a copy of what is there."""
    monkeypatch.setattr("paligemma.artifacts.recording._place", ContextVar("place", default=None))
    monkeypatch.setattr("kfp.dsl.types.artifact_types._GCS_LOCAL_MOUNT_PREFIX", f"{tmp_path}/gcs/")
    artifact = dsl.Artifact(name="made", uri="gs://bucket/runner/dag/1234/evaluate-2/made", metadata={})
    output = output_location(artifact, str(tmp_path / "root"), "1234", "evaluate tuned")
    assert output == str(tmp_path / "root/1234/evaluate-tuned/made")
    make(Path(output))
    mirror_record(artifact, output, str(tmp_path / "sha256"))
    made = read_record(output).artifact.tree_sha256
    assert (tmp_path / "sha256").read_text() == made
    assert artifact.uri == "gs://bucket/runner/dag/1234/evaluate-2/made"
    assert [path.name for path in (tmp_path / "gcs/bucket/runner/dag/1234/evaluate-2/made").iterdir()] == ["location.json"]
    taken = dsl.Artifact(name="made", uri=artifact.uri, metadata=json.loads(json.dumps(artifact.metadata)))
    assert input_location(taken) == output
    taken.metadata = {}  # KFP copies the files too
    assert input_location(taken, made) == output
    with pytest.raises(DamagedError, match="Another artifact has taken the place"):
        input_location(taken, "0" * 64)
    assert (read_record(output).run, read_record(output).task) == ("1234", "evaluate-tuned")


def test_of_an_artifact_in_cloud_storage_a_task_fetches_only_the_page_that_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of six gigabytes was fetched back by the task that had just written it, for its record."""
    monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path / "cache"))
    with GcsServer() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        server.create_bucket("bucket")
        with produce("gs://bucket/root/run/task/made", "thing", "make", {}, []) as draft:
            (draft.folder / "page.html").write_text("a page")
            (draft.folder / "weights").write_bytes(bytes(2**20))
        monkeypatch.setattr("paligemma.artifacts.store.localize", lambda _: pytest.fail("the whole artifact was fetched"))
        artifact = dsl.Artifact(name="made", uri=str(tmp_path / "root/run/task/made"), metadata={})
        mirror_record(artifact, "gs://bucket/root/run/task/made", str(tmp_path / "sha256"))
        assert artifact.metadata["tree_sha256"] == (tmp_path / "sha256").read_text()
        assert copy_file("gs://bucket/root/run/task/made", "page.html", str(tmp_path / "shown"))
        assert (tmp_path / "shown").read_text() == "a page"
        assert copy_file(artifact.path, "page.html", str(tmp_path / "shown too"))  # its folder says where the artifact is
        assert not copy_file("gs://bucket/root/run/task/made", "gate.json", str(tmp_path / "none"))
        assert not (tmp_path / "none").exists()
        with pytest.raises(InputError, match="is not an artifact"):
            record_of("gs://bucket/root/run/task")
    assert not (tmp_path / "cache/artifacts").exists()


def test_the_price_of_the_machine_gives_the_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIGEMMA_USD_PER_HOUR", "3600")
    make(tmp_path / "a")
    record = read_record(tmp_path / "a")
    assert record.cost_usd == pytest.approx(record.seconds, abs=0.01)
    assert json.loads((tmp_path / "a/lineage.json").read_text())["cost_usd"] == record.cost_usd
