"""Outside the demo, a user names the model, and reads what it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components.fetch_checkpoint.__main__ import run as fetch_checkpoint
from components.finetune.results import render_training
from conftest import SmallData
from paligemma.checkpoints.describe import describe, describe_opened, describe_source, named
from paligemma.checkpoints.open_checkpoint import open_checkpoint, resolve_embedded
from paligemma.errors import InputError
from paligemma.preflight.analyze import examine
from paligemma.preflight.render import write
from paligemma.training.recipe import parse_recipe
from pipelines.cli import app
from pipelines.finetune import finetune_pipeline
from pipelines.prepare import prepare_pipeline

TINY = "embedded:tiny, 1.2 million parameters, pictures of 32 x 32 pixels, a toy for the demo"


@pytest.mark.parametrize(
    ("flag", "command"),
    [
        ("--source", ["pipeline", "run", "--train-data", "x", "--validation-data", "x"]),
        ("--model", ["generate", "--image", "x.png", "--prompt", "ocr"]),
        ("--model", ["preview", "--data", "x.jsonl"]),
    ],
)
def test_no_command_takes_a_model_that_nobody_named(flag: str, command: list[str]) -> None:
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, InputError)
    assert str(error).startswith(f"No model is named.\n  where:    {flag}\n  expected: ")
    assert ("hf://" in str(error)) == (flag == "--source")  # what is not fetched is not offered
    assert f"{flag} embedded:tiny is the demo's toy" in str(error)


def test_nor_does_a_pipeline() -> None:
    for pipeline in (finetune_pipeline, prepare_pipeline):
        assert not pipeline.component_spec.inputs["source"].optional


def test_a_model_is_described_by_name_size_and_resolution() -> None:
    assert describe("embedded:tiny", open_checkpoint("embedded:tiny")) == describe_source("embedded:tiny") == TINY
    assert describe("/x/y", open_checkpoint("embedded:tiny")) == "/x/y, 1.2 million parameters, pictures of 32 x 32 pixels"
    assert describe_source("kaggle://google/paligemma/jax/x/1") == "kaggle://google/paligemma/jax/x/1"
    assert named("a", "--model") == "a"


def test_generate_and_preview_say_which_model_it_is(small_data: SmallData, tmp_path: Path) -> None:
    page = tmp_path / "preview.html"
    data = small_data.write([{"image": small_data.add_image("a.png"), "prefix": "p", "suffix": "s"}])
    done = CliRunner().invoke(app, ["preview", "--model", "embedded:tiny", "--data", str(data), "--output", str(page)])
    assert done.exit_code == 0
    assert f"model: {TINY}" in done.output
    assert TINY in page.read_text()


def test_every_page_of_a_run_says_which_model_it_is_about(records: Path, tmp_path: Path) -> None:
    base = open_checkpoint("embedded:tiny")
    assert describe_opened(base) == TINY
    assert f"<p>Model: {TINY}</p>" in (records / "report.html").read_text()
    report = examine(base.config, parse_recipe("batch_size: 1"), "cpu", 16, {})
    write(tmp_path, [report], "x", "today", "", model=describe_opened(base))
    assert f"<p>Model: {TINY}</p>" in (tmp_path / "preflight.html").read_text()
    summary = {"steps": 1, "device": "cpu", "final_loss": 1.0, "first_loss": 1.0, "examples_per_second": 1.0, "seconds": 1.0}
    summary |= {"validations": [], "skipped_steps": [], "trained_parameters": 1, "frozen_parameters": 1}
    summary |= {"frozen_parameters_identical": True, "stopped_early": False, "best_validation": None}
    assert f"<p>Model: {TINY}</p>" in render_training(summary, parse_recipe(), {}, [], describe_opened(base))


def test_a_fetched_checkpoint_goes_by_its_source(tmp_path: Path) -> None:
    fetch_checkpoint(output=str(tmp_path / "fetched"), source="embedded:tiny")
    assert describe_opened(open_checkpoint(tmp_path / "fetched")) == TINY
    shutil.copytree(resolve_embedded("embedded:tiny"), tmp_path / "mine")
    assert describe_opened(open_checkpoint(tmp_path / "mine")).startswith("mine/checkpoint.npz, 1.2 million")
