"""The end of a run: what it made, every page, and a command that asks the tuned model."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conftest import SmallData
from paligemma.checkpoints.open_checkpoint import resolve_embedded
from paligemma.data.source_list import Source, parse_sources
from pipelines.cli import app
from pipelines.run_end import COMMAND
from pipelines.run_local import RunOutputs


@pytest.fixture
def finished(tmp_path: Path) -> RunOutputs:
    """What a run leaves, as far as its end looks at it."""
    run = tmp_path / "runs/pipeline/run-1"
    shutil.copytree(resolve_embedded("embedded:tiny"), run / "fetch-checkpoint/checkpoint")
    pages = [
        "prepare-data/records",
        "prepare-data-2/records",
        "evaluate/evaluation",
        "evaluate-2/evaluation",
        "summarize/summary",
    ]
    for page in [
        *(f"{folder}/report.html" for folder in pages),
        "finetune/tuned/training.html",
        "preflight/preflight/preflight.html",
    ]:
        (run / page).parent.mkdir(parents=True, exist_ok=True)
        (run / page).touch()
    (run / "evaluate-2/evaluation/gate.json").write_text(json.dumps({"why": "Promote: it is better."}))
    artifacts = ["fetch-checkpoint/checkpoint", "preflight/preflight", "finetune/tuned", *pages]
    made = {place.partition("/")[0]: f"{run}/{place}" for place in artifacts}
    return RunOutputs(str(run.parent), made, f"{tmp_path}/registry/releases/1/release")


def test_it_names_the_model_the_pages_and_what_to_do_next(
    finished: RunOutputs, small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.run_local.run_pipeline", lambda parameters, root: finished)
    rows = [{"image": small_data.add_image(f"{n}.png", n), "prefix": "what's this?", "suffix": "s"} for n in range(8)]
    data = ["--train-data", str(small_data.write(rows)), "--validation-data", str(small_data.jsonl)]
    done = CliRunner().invoke(app, ["pipeline", "run", "--source", "embedded:tiny", *data])
    assert done.exit_code == 0, done.exception
    start, *lines = done.stdout.splitlines()
    assert (
        start
        == lines[0]
        == "model:       embedded:tiny, 1.2 million parameters, pictures of 32 x 32 pixels, a toy for the demo"
    )
    assert lines[1] == "tuned model: runs/pipeline/run-1/finetune/tuned"
    pages = [line.split(":")[1].strip() for line in lines[3:10]]
    assert len(pages) == 7
    assert all(Path(page).is_file() for page in pages)
    asked = next(line for line in lines if "ask it:" in line).split(":", 1)[1]
    expected = ["--model", "runs/pipeline/run-1/finetune/tuned", "--image", "data/0.png", "--prompt", "what's this?"]
    assert shlex.split(asked) == [COMMAND, "generate", *expected]
    assert "--root runs/pipeline" in lines[-1]


def test_it_asks_the_first_question_of_the_first_of_several_files(
    finished: RunOutputs, small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given: list[dict] = []
    monkeypatch.setattr("pipelines.run_local.run_pipeline", lambda parameters, root: given.append(parameters) or finished)
    rows = [{"image": small_data.add_image(f"{n}.png", n), "prefix": "ocr", "suffix": "s"} for n in range(8)]
    first = small_data.write(rows).rename(small_data.folder / "first.jsonl")
    (tmp_path / "second").mkdir()
    second = small_data.write([{**row, "prefix": "caption en"} for row in rows]).rename(tmp_path / "second/second.jsonl")
    weighted = ["--train-data", f"{first},weight=2", "--train-data", f"second/second.jsonl,images={first.parent},weight=1"]
    for more in ([], ["--validation-data", "data/first.jsonl", "--validation-data", f"{second},images=data"]):
        done = CliRunner().invoke(app, ["pipeline", "run", "--source", "embedded:tiny", *weighted, *more])
        assert done.exit_code == 0, done.exception
        asked = next(line for line in done.stdout.splitlines() if "ask it:" in line)
        assert "--image data/" in asked
        assert asked.endswith("--prompt ocr")
    split, named = given
    assert parse_sources(named["train_data"], "") == (
        Source(str(first), "", 2.0),
        Source(str(second), str(first.parent), 1.0),
    )
    assert [source.images for source in parse_sources(named["validation_data"], "")] == ["", str(first.parent)]
    assert [source.weight for source in parse_sources(split["train_data"], "")] == [2.0, 1.0]
    assert {source.images for source in parse_sources(split["validation_data"], "")} == {str(first.parent)}


def test_on_gs_pages_are_the_artifacts_that_they_are_in() -> None:
    outputs = RunOutputs("gs://b/a", {"finetune": "gs://b/a/run-1/finetune/tuned", "publish": "gs://b/r/x"})
    assert outputs.pages() == {"training": "gs://b/a/run-1/finetune/tuned"}
