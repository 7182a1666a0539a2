"""Preflight on CPUs: what is compiled is what runs, and what does not fit is refused with what does."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import tree
from typer.testing import CliRunner

from paligemma.checkpoints.open import open_checkpoint
from paligemma.errors import InputError
from paligemma.models.config import VARIANTS
from paligemma.preflight import examine as module
from paligemma.preflight.abstract import abstract_step
from paligemma.preflight.examine import MEMORY_VARIABLE, DoesNotFitError, examine, find_fitting, read_prices
from paligemma.preflight.targets import TARGETS, find_target
from paligemma.storage import cache
from paligemma.training.recipe import parse_recipe
from pipelines.cli import app

TEXT = 16


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))


def recipe(*settings: str):
    return parse_recipe("", ["batch_size=8", "steps=2", *settings], "test")


def tiny():
    return open_checkpoint("embedded:tiny").config


def real_arrays(shapes):
    return tree.map(lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding), shapes)


@pytest.mark.parametrize("settings", [(), ("optimizer=adamw", "trainable=llm"), ("trainable=lora", "accumulate=2")])
@pytest.mark.parametrize("devices", [1, 4])
def test_the_step_runs_as_it_was_lowered_and_arguments_take_what_was_said(settings: tuple[str, ...], devices: int) -> None:
    step, shapes = abstract_step(tiny(), recipe(*settings), jax.devices()[:devices], "float32", TEXT)
    compiled = step.lower(*shapes).compile()
    arrays = real_arrays(shapes)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in tree.leaves(arrays))
    assert held == compiled.memory_analysis().argument_size_in_bytes
    _, metrics = compiled(*arrays)
    assert metrics.loss.shape == ()


def test_a_job_that_fits_and_the_answer_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    first = examine(tiny(), recipe(), "cpu", TEXT, {"cpu": 0.5})
    assert first.fits
    assert 0 < first.found["arguments"] < first.total < first.limit
    assert (first.seconds, first.dollars_per_hour) == (None, 0.5)
    monkeypatch.setattr(module, "_run", lambda job: pytest.fail("compiled again"))
    assert examine(tiny(), recipe("steps=99", "learning_rate=1.0"), "cpu", TEXT, {"cpu": 0.5}) == first


def test_what_does_not_fit_gets_a_recipe_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = recipe("batch_size=64", "remat=none")
    needed = examine(tiny(), parsed, "cpu", TEXT, {})
    monkeypatch.setenv(MEMORY_VARIABLE, str(int(needed.total / 0.9 * 0.8)))
    assert not examine(tiny(), parsed, "cpu", TEXT, {}).fits
    changed, overrides = find_fitting(tiny(), parsed, "cpu", TEXT, {})
    assert examine(tiny(), changed, "cpu", TEXT, {}).fits
    assert parse_recipe("", ["batch_size=64", "steps=2", "remat=none", *overrides], "x") == changed
    monkeypatch.setenv(MEMORY_VARIABLE, "1000")
    assert find_fitting(tiny(), recipe("batch_size=1"), "cpu", TEXT, {}) is None


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["preflight", "--checkpoint", "embedded:tiny", "--set", "steps=5", "--max-text-tokens", "16"]
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, [*command, "--batch-size", "1,2", "--target", "cpu", "--output", str(tmp_path / "out")])
    assert result.exception is None, result.output
    assert result.output.count("yes") == 2
    found = json.loads((tmp_path / "out/preflight.json").read_text())
    assert [report["batch_size"] for report in found["reports"]] == [1, 2]
    assert "cpu, batch 2" in (tmp_path / "out/preflight.html").read_text()
    monkeypatch.setenv(MEMORY_VARIABLE, "1000")
    result = CliRunner().invoke(app, [*command, "--batch-size", "2"])
    assert isinstance(result.exception, DoesNotFitError)
    assert result.exception.exit_code == 2
    assert CliRunner().invoke(app, [*command, "--batch-size", "2", "--warn-only"]).exception is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--variant", "paligemma-3b-pt-225"], "did you mean"),
        ([], "Give one of the two"),
        (["--checkpoint", "embedded:tiny", "--target", "v5e-2"], "There is no target"),
        (["--checkpoint", "embedded:tiny", "--target", "cpu-8", "--batch-size", "4"], "does not split over 8 devices"),
    ],
)
def test_wrong_input(arguments: list[str], said: str) -> None:
    found = CliRunner().invoke(app, ["preflight", *arguments]).exception
    assert isinstance(found, InputError)
    assert said in str(found)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    for target, wheel in (("v5e-1", "libtpu"), ("l4", "jax_cuda12_plugin")):
        with pytest.raises(InputError, match=wheel) as caught:
            examine(tiny(), recipe(), target, TEXT, {})
        assert "paligemma[preflight]" in str(caught.value)


def test_every_device_has_a_price_and_a_target_is_found(tmp_path: Path) -> None:
    _, prices = read_prices()
    assert {target.device for target in TARGETS.values()} - {"cpu"} == prices.keys()
    assert find_target("v5e-4").devices == 4
    (tmp_path / "x.yaml").write_text("- 1")
    with pytest.raises(InputError, match="prices cannot be read"):
        read_prices(tmp_path / "x.yaml")
    assert "paligemma2-10b-pt-224" in VARIANTS
