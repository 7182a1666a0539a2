"""Presets: what their page says of them is what is in them, and a published one says where it was published."""

from __future__ import annotations

import json
import re

import pytest

from components.presets import FOLDER, read_preset
from conftest import REPOSITORY
from paligemma.training.open_recipe import SETTINGS, parse_open_recipe
from paligemma.training.recipe import Recipe, parse_recipe

SOURCE = re.compile(
    r"# Source: google-research/big_vision@0127fb6, big_vision/configs/proj/paligemma/transfers/(\w+\.py), sweep_best\.\n"
    r"# Published for ((?:\d+, )*\d+(?: and \d+)?) px\..*\n"
)
COLUMNS = ["preset", "task", "resolution", "epochs", "batch", "lr", "wd", "smoothing", "dropout", "source"]


def table() -> dict[str, dict[str, str]]:
    """The rows of the page's table, by preset."""
    lines = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| `")]
    rows = [dict(zip(COLUMNS, (cell.strip(" `") for cell in line.strip("|").split("|")), strict=True)) for line in lines]
    return {row["preset"]: row for row in rows}


NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PUBLISHED = [name for name in NAMES if name not in ("auto", "default", "demo", "lora", "qlora", "qlora-8gb")]


def test_the_table_has_every_preset_once_and_no_other() -> None:
    lines = re.findall(r"^\| `([^`]+)`", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(lines) == NAMES
    assert len(PUBLISHED) == 25  # as the README says


@pytest.mark.parametrize("name", NAMES)
def test_the_table_has_the_presets_values(name: str) -> None:
    row, recipe = table()[name], parse_open_recipe(read_preset(name)).recipe
    length = f"{recipe.epochs:g}" if recipe.epochs is not None else f"{recipe.total_steps(rows=1)} steps"
    assert row["epochs"] == length
    assert [float(row[column]) for column in ("batch", "lr", "wd", "smoothing", "dropout")] == [
        recipe.batch_size,
        recipe.learning_rate,
        recipe.weight_decay,
        recipe.label_smoothing,
        recipe.dropout,
    ]


def test_auto_is_the_reference_recipe_with_its_execution_left_open() -> None:
    auto = parse_open_recipe(read_preset("auto"))
    assert auto.open == SETTINGS
    assert auto.recipe == parse_recipe(read_preset("default"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_preset_names_its_source_and_resolutions(name: str) -> None:
    found = SOURCE.match(read_preset(name))
    assert found is not None
    row = table()[name]
    assert row["source"] == found[1]
    assert row["resolution"].split(", ") == re.findall(r"\d+", found[2])


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_all_published_presets_share(name: str) -> None:
    recipe = parse_recipe(read_preset(name))
    assert recipe == Recipe(
        trainable="llm" if name == "scienceqa" else "all",
        images_per_example=2 if name == "nlvr2" else 1,
        optimizer="adamw",
        second_moment=0.999,
        weight_decay_on=".*/kernel",
        schedule="cosine",
        warmup_fraction=0.05,
        gradient_clip=1.0,
        **recipe.model_dump(
            include={"batch_size", "steps", "epochs", "learning_rate", "weight_decay", "label_smoothing", "dropout"}
        ),
    )


def test_what_comments_give_for_other_resolutions_can_be_set() -> None:
    found = {(name, *other) for name in PUBLISHED for other in re.findall(r"or (\d+) px: ([^;.]+)", read_preset(name))}
    assert len(found) == 14
    assert ("refcoco-seg", "896", "batch_size 64, learning_rate 1e-5, dropout 0") in found
    for name, _, values in found:
        overrides = [value.replace(" ", "=") for value in values.split(", ")]
        assert parse_recipe(read_preset(name), overrides) != parse_recipe(read_preset(name))


def test_only_the_vision_towers_and_projections_weights_have_the_name_that_decays() -> None:
    tree = json.loads((REPOSITORY / "tests/parity/golden/paligemma_3b_224_tree.json").read_text())
    decayed = {name for name in tree if re.fullmatch(parse_recipe(read_preset("docvqa")).weight_decay_on, name)}
    assert {"img/head/kernel", "img/embedding/kernel"} < decayed
    assert not any(name.startswith("llm/") for name in decayed)


@pytest.mark.parametrize("name", ["demo", "lora", "qlora", "qlora-8gb"])
def test_a_preset_that_was_not_published_says_so(name: str) -> None:
    assert read_preset(name).startswith("# Ours")
    assert table()[name]["source"] == "ours"
