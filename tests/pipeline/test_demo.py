"""The demo as a user runs it, and what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import OPTIMIZED, REPOSITORY
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.parameters import parameters_by_name
from paligemma.model import load
from paligemma.registry.releases import read_champion
from pipelines.demo.digits import write_digits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "demo"
    command = [sys.executable, "-m", "pipelines.cli", "demo", "--output", str(output)]
    done = subprocess.run(command, cwd=REPOSITORY, env=OPTIMIZED, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Exact match on 1077 held-out questions" in done.stdout
    return output


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_the_tuned_model_answers_held_out_questions(summary: dict) -> None:
    assert summary["tuned"]["exact_match"] >= 0.90
    assert summary["tuned"]["exact_match"] - summary["base"]["exact_match"] >= 0.30
    assert {question["prefix"] for question in summary["tuned"]["by_question"]} == {
        "which digit is this?",
        "is the digit odd or even?",
        "is the digit more or less than five?",
    }


def test_the_model_is_released(summary: dict, folder: Path) -> None:
    assert summary["gate"].startswith("Promote: exact_match is 0.9")
    champion = read_champion(folder / "registry")
    assert summary["release"] == str((folder / "registry/releases" / champion.release / "release").absolute())
    card = (Path(summary["release"]) / "README.md").read_text()
    assert f"| exact_match | {summary['tuned']['exact_match']:.4f} |" in card


def test_only_attention_differs_from_the_base(summary: dict) -> None:
    """The run says so; here it is looked at again, from the files."""
    assert summary["frozen_parameters_identical"] is True
    base = open_checkpoint("embedded:tiny").arrays
    for name, variable in parameters_by_name(load(summary["tuned_model"]).module).items():
        same = np.array_equal(variable[...], base[name][...])
        assert same == (not name.startswith("llm/layers/attn/")), name


def test_every_report_is_there_and_opens_offline(summary: dict) -> None:
    assert len(summary["reports"]) == 5
    for path in summary["reports"].values():
        page = Path(path).read_text()
        assert page.startswith("<!doctype html>")
        assert "http://" not in page.replace("http://www.w3.org", "")
        assert "https://" not in page


def test_no_image_is_in_both_splits(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits")
    images = {}
    for split in ("train", "validation"):
        lines = (tmp_path / "digits" / f"{split}.jsonl").read_text().splitlines()
        images[split] = {json.loads(line)["image"] for line in lines}
    assert images["train"].isdisjoint(images["validation"])
    assert len(images["train"] | images["validation"]) == 1797
