"""Recipes: defaults, overrides, and what is said of mistakes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from components.presets import FOLDER, read_preset, read_recipe
from paligemma.errors import InputError
from paligemma.training.learning_rate import learning_rate_schedule
from paligemma.training.recipe import Recipe, parse_recipe


@pytest.mark.parametrize("preset", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_preset_is_valid(preset: str) -> None:
    assert isinstance(parse_recipe(read_preset(preset)), Recipe)


def test_the_default_preset_spells_out_the_defaults() -> None:
    spelled = parse_recipe(read_preset("default"))
    assert spelled == Recipe(steps=64)
    assert spelled.total_steps(rows=10_000) == Recipe().total_steps(rows=10_000) == 64


def test_overrides_win_and_are_yaml() -> None:
    recipe = parse_recipe("learning_rate: 0.1\nbatch_size: 4", ["batch_size=16", "schedule=constant", "learning_rate=1e-2"])
    assert (recipe.batch_size, recipe.schedule, recipe.learning_rate) == (16, "constant", 0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "did you mean 'learning_rate'"),
        ("batch_size: 0", "batch_size: Input should be greater than 0"),
        ("batch_size: many", "batch_size: Input should be a valid integer"),
        ("steps: 1\nepochs: 1", "steps and epochs are both given"),
        ("- a", "not a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_recipe(text)


def test_an_override_without_a_value() -> None:
    with pytest.raises(InputError, match="has no value"):
        parse_recipe(overrides=["steps"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml"):
        read_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="did you mean 'default'"):
        read_preset("defualt")


@pytest.mark.parametrize("step", ["finetune.main.fine_tune", "preflight.main.check"])
def test_every_command_takes_a_presets_name(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(f"components.{step}", lambda *arguments: given.extend(arguments))
    run = importlib.import_module(f"components.{step.partition('.')[0]}.__main__").run
    places = {"records": "r"} if step.startswith("finetune") else {}
    run(checkpoint="c", output=str(tmp_path / "out"), recipe="demo", set_=["steps=3"], **places)
    assert parse_recipe(read_preset("demo"), ["steps=3"]) in given
    with pytest.raises(InputError, match="did you mean 'demo'"):
        run(checkpoint="c", output=str(tmp_path / "out"), recipe="demmo", **places)


def test_epochs_count_rows() -> None:
    assert Recipe(epochs=2, batch_size=8).total_steps(rows=100) == 25
    assert Recipe(epochs=0.001).total_steps(rows=10) == 1


def test_constant_schedule_warms_up_and_stays() -> None:
    schedule = learning_rate_schedule(Recipe(schedule="constant", learning_rate=1.0, warmup_fraction=0.5), steps=9)
    assert [round(float(schedule(count)), 3) for count in range(9)] == [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "overrides", "where"),
    [
        ("steps: 1", ["batch_size=0"], "--set batch_size=0"),
        ("stepz: 1", ["batch_size=4"], "the file"),
        ("stepz: 1", ["batch_size=0"], "the file, --set batch_size=0"),
        ("", ["lora.rank=0", "seed=1"], "--set lora.rank=0"),
        ("steps: 1", ["epochs=1"], "the file"),
    ],
)
def test_a_mistake_is_found_where_it_was_made(text: str, overrides: list[str], where: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(text, overrides, "the file")
    assert f"  where:    {where}" in str(caught.value).split("\n")
