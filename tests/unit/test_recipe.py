"""Recipes: defaults, overrides, and what is said of mistakes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.presets import FOLDER, read_preset, read_recipe
from paligemma.errors import InputError
from paligemma.training.learning_rate import learning_rate_schedule
from paligemma.training.open_recipe import SETTINGS, OpenRecipe, parse_open_recipe
from paligemma.training.recipe import Recipe, parse_recipe
from paligemma.yaml_text import dump_yaml


@pytest.mark.parametrize("preset", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_preset_is_valid_and_only_auto_leaves_settings_open(preset: str) -> None:
    asked = parse_open_recipe(read_preset(preset))
    assert isinstance(asked.recipe, Recipe)
    assert bool(asked.open) == (preset == "auto")


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


def test_settings_that_are_auto_are_open_and_what_a_recipe_says_itself_stays() -> None:
    assert parse_open_recipe("remat: auto\nsteps: 3") == OpenRecipe(recipe=Recipe(steps=3), open=("remat",))
    left = parse_open_recipe("execution: auto\nremat: dots\nunroll: false", ["accumulate=2"])
    assert left == OpenRecipe(recipe=Recipe(remat="dots", accumulate=2), open=("frozen_dtype", "data_parallel"))
    assert parse_open_recipe("", ["execution=auto"]).open == SETTINGS
    assert parse_open_recipe("steps: 3").open == ()


@given(
    st.dictionaries(st.sampled_from(SETTINGS), st.just("auto")),
    st.dictionaries(st.sampled_from(("batch_size", "steps", "accumulate")), st.just(4)),
    st.booleans(),
)
def test_an_open_recipe_is_read_as_it_was_written(auto: dict, given: dict, all_of_them: bool) -> None:
    asked = parse_open_recipe(dump_yaml(auto | given | ({"execution": "auto"} if all_of_them else {})))
    assert parse_open_recipe(asked.text()) == asked
    overrides = [f"{key}={json.dumps(value)}" for key, value in asked.values(only_given=True).items()]
    assert parse_open_recipe("", overrides) == asked


def test_a_settled_recipe_has_what_was_chosen_and_nothing_else_changed() -> None:
    asked = parse_open_recipe("batch_size: 16\nremat: auto\naccumulate: auto\nunroll: true")
    assert asked.settled({"remat": "dots", "accumulate": 4, "unroll": False, "batch_size": 2}) == Recipe(
        batch_size=16, remat="dots", accumulate=4, unroll=True
    )
    with pytest.raises(InputError, match="Nothing was chosen for accumulate"):
        asked.settled({"remat": "dots"})
    with pytest.raises(InputError, match="not a multiple of accumulate 3"):
        asked.settled({"remat": "dots", "accumulate": 3})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "remat": st.sampled_from(("none", "dots", "attention", "full")),
            "frozen_dtype": st.sampled_from(("float16", "bfloat16", "float32")),
            "accumulate": st.sampled_from((1, 2, 4, 8)),
            "data_parallel": st.integers(1, 8),
            "unroll": st.booleans(),
        },
    )
)
def test_what_a_recipe_says_itself_wins_over_any_choice(given: dict) -> None:
    chosen = {"remat": "attention", "frozen_dtype": "bfloat16", "accumulate": 2, "data_parallel": 3, "unroll": True}
    asked = parse_open_recipe(dump_yaml({"execution": "auto", "learning_rate": 0.5} | given))
    settled = asked.settled(chosen)
    assert {name: getattr(settled, name) for name in SETTINGS} == chosen | given
    assert settled == Recipe(learning_rate=0.5, **(chosen | given))


@pytest.mark.parametrize("text", ["execution: fast", "batch_size: auto", "execution: [auto]"])
def test_nothing_else_is_auto(text: str) -> None:
    with pytest.raises(InputError, match="The recipe is wrong"):
        parse_open_recipe(text)


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
    assert parse_open_recipe(read_preset("demo"), ["steps=3"]) in given
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
