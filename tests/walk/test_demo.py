"""What the demo promises, of the one that the walk begins with."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.parameters import parameters_by_name
from paligemma.model import load
from paligemma.registry.releases import read_champion
from walk.conftest import type_line


@pytest.fixture(scope="module")
def folder(clone: Path, demo: subprocess.CompletedProcess[str]) -> Path:
    assert demo.returncode == 0, demo.stderr
    assert "Exact match on 1077 held-out questions" in demo.stdout
    return clone / "runs/demo"


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


def test_a_second_demo_makes_only_what_the_new_champion_is_compared_in(clone: Path, folder: Path, summary: dict) -> None:
    """The pages' commands, which come next, find a root in which most tasks only say where their artifact is."""
    done = type_line(clone, "make demo")
    assert done.returncode == 0, done.stderr
    said = (done.stdout + done.stderr).splitlines()
    reused = [before for before, line in itertools.pairwise(said) if "nothing changed: reused from run" in line]
    assert set(reused) == {"fetch-checkpoint", "prepare-data", "prepare-data-2", "preflight", "finetune", "evaluate"}
    again = json.loads((folder / "summary.json").read_text())
    assert (again["base"], again["tuned"]) == (summary["base"], summary["tuned"])
    assert again["tuned_model"] == summary["tuned_model"]
    assert again["gate"].startswith("Keep what there is")
