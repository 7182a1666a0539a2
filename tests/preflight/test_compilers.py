"""The compilers of accelerators that are not there, on the embedded model: what `make preflight` installs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.preflight.analyze import DoesNotFitError, examine
from paligemma.preflight.choice import EQUAL
from paligemma.preflight.choose import choose
from paligemma.storage import cache
from paligemma.training.open_recipe import parse_open_recipe
from paligemma.training.recipe import parse_recipe
from pipelines.cli import app

TEXT = 16


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.mark.parametrize("target", ["t4", "l4-2", "a100-40", "h100-80-8", "v4-1", "v4-8", "v5e-1", "v5e-16", "v5p-4", "v6e-1"])
def test_a_target_answers(target: str) -> None:
    report = examine(open_checkpoint("embedded:tiny").config, parse_recipe("", ["batch_size=32", "steps=10"]), target, TEXT, {})
    assert report.fits
    assert 0 < report.found["arguments"] < report.peak < report.limit
    assert 0 < report.seconds < 1
    assert 0 < report.share_of_peak <= 1
    # What is split over devices is gathered layer by layer; a single device receives nothing.
    assert (report.bytes_received > 0) == (target[-2:] not in ("-1", "t4", "40"))


@pytest.mark.parametrize("target", ["t4", "a100-40", "a100-40-4", "v5e-1", "v5e-4"])
def test_a_target_answers_of_decoding(target: str) -> None:
    config, recipe = open_checkpoint("embedded:tiny").config, parse_recipe("", ["batch_size=32", "steps=10"])
    decoding = examine(config, recipe, target, TEXT, {}, decoding=2).decoding
    token, prefill = decoding.found["accounts"]["token"], decoding.found["accounts"]["prefill"]
    assert 0 < token["bytes"] < prefill["bytes"]
    assert 0 < decoding.token_seconds < decoding.prefill_seconds < 1
    assert bool(token["collectives"]) == (target[-2:] == "-4")


@pytest.mark.parametrize("target", ["t4", "a100-40", "v5e-1", "v5e-4"])
def test_what_auto_takes_fits_and_is_as_fast_as_any_that_was_compiled(target: str) -> None:
    config, asked = open_checkpoint("embedded:tiny").config, parse_open_recipe("execution: auto\nbatch_size: 8")
    choice, report = choose(config, asked, target, TEXT, {})
    assert report.fits
    assert report.seconds <= (1 + EQUAL) * min(trial.seconds for trial in choice.trials)
    assert {trial.settings["unroll"] for trial in choice.trials} == {False, True}
    frozen = {trial.settings["frozen_dtype"] for trial in choice.trials}
    assert frozen == ({"float16"} if target == "t4" else {"float16", "bfloat16"})
    again, _ = choose(config, asked, target, TEXT, {})
    assert again == choice


def test_without_rematerialization_the_3b_model_is_refused_with_what_fits() -> None:
    command = ["preflight", "--variant", "paligemma-3b-pt-224", "--target", "v5e-1", "--batch-size", "8", "--set", "remat=none"]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, DoesNotFitError)
    assert "--set remat=" in str(error)
