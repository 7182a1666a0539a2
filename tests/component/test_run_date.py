"""`{date}` in a path of data: the day that the run began on, whichever step asks, and whenever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lineage_runs import at_place
from typer.testing import CliRunner

from components.prepare_data.__main__ import run
from conftest import SmallData
from paligemma.artifacts.record import read_record
from paligemma.artifacts.recording import attempt, keep_file
from paligemma.artifacts.run_date import run_date, today
from paligemma.errors import InputError
from paligemma.storage.location import Location, parse_location
from pipelines.backends.job import check_parameters
from pipelines.cli import app
from pipelines.finetune import finetune_pipeline
from servers.gcs import GcsServer

FETCHED = "20260301T235959.000Z-abcdef"
"""The attempt that a run began with, a second before midnight."""


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with GcsServer() as server:
        server.create_bucket("bucket")
        yield server


@pytest.fixture(params=["a disk", "Cloud Storage"])
def root(request: pytest.FixtureRequest, tmp_path: Path, server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Location:
    """The root of a run that began on the first of March, and of one that begins now."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path / "cache"))
    root = parse_location(str(tmp_path / "root") if request.param == "a disk" else "gs://bucket/root")
    keep_file(root, f"weekly-1/fetch-checkpoint/{FETCHED}.json", b"{}\n")
    return root


def date_of(run: str, task: str, root: Location) -> str:
    """The day that a step of a run is told."""
    with at_place(run, task, str(root)), attempt("prepare_data", f"{root}/{run}/{task}", {}):
        return run_date()


def test_every_step_and_every_retry_has_the_day_that_the_run_began_on(root: Location) -> None:
    for task in ("prepare-data", "prepare-data-2", "prepare-data"):  # the last one is tried again, months later
        assert date_of("weekly-1", task, root) == "2026-03-01"


def test_the_next_run_has_its_own_day(root: Location) -> None:
    before = today()
    found = date_of("weekly-2", "prepare-data", root)
    assert before <= found <= today()


def test_a_first_step_that_was_killed_counts(root: Location) -> None:
    keep_file(root, "weekly-3/fetch-checkpoint/20260308T010203.004Z-abcdef.started.json", b"{}\n")
    assert date_of("weekly-3", "prepare-data", root) == "2026-03-08"


def test_files_of_other_names_are_no_attempts(root: Location) -> None:
    keep_file(root, "weekly-4/fetch-checkpoint/00000000.json", b"{}\n")
    assert date_of("weekly-4", "prepare-data", root) >= "2026-03-01"


def test_the_record_names_the_file_that_was_read(small_data: SmallData, tmp_path: Path) -> None:
    row = {"image": small_data.add_image("a.png"), "prefix": "ocr", "suffix": "7"}
    for day, more in (("2026-03-01", 1), (today(), 2)):
        (small_data.folder / day).mkdir()
        small_data.write([row | {"suffix": str(number)} for number in range(more)]).rename(small_data.folder / day / "x.jsonl")
    root = tmp_path / "root"
    keep_file(root, f"weekly-1/fetch-checkpoint/{FETCHED}.json", b"{}\n")
    for name, day, rows in (("weekly-1", "2026-03-01", 1), ("weekly-2", today(), 2)):
        output = tmp_path / name
        with at_place(name, "prepare-data", str(root)):
            data, images = str(small_data.folder / "{date}/x.jsonl"), str(small_data.folder)
            run(data=data, images=images, checkpoint="embedded:tiny", output=str(output))
        record = read_record(output)
        (named,) = [entry.uri for entry in record.inputs if entry.role == "data"]
        assert named == str(small_data.folder / day / "x.jsonl")
        assert record.artifact.rows == rows


def test_a_day_without_a_file_is_named(small_data: SmallData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=today()):
        run(data=str(small_data.folder / "{date}.jsonl"), checkpoint="embedded:tiny", output=str(tmp_path / "records"))


def test_a_schedule_keeps_the_word_for_its_runs_to_fill_in(tmp_path: Path) -> None:
    file = tmp_path / "parameters.yaml"
    named = "gs://bucket/{date}/train.jsonl"
    given = {"train_data": named, "validation_data": named, "source": "embedded:tiny", "artifact_root": "gs://bucket/a"}
    file.write_text("".join(f"{name}: {value}\n" for name, value in given.items()))
    assert check_parameters(file, finetune_pipeline.component_spec.inputs)["train_data"] == named


def test_a_run_on_this_machine_begins_today(tmp_path: Path) -> None:
    flags = ["--source", "embedded:tiny", "--train-data", f"{tmp_path}/{{date}}.jsonl"]
    result = CliRunner().invoke(app, ["pipeline", "run", *flags])
    assert f"{tmp_path}/{today()}.jsonl" in f"{result.exception}{result.output}".replace("\n", "")
