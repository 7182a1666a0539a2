"""Training recipes by name: YAML files in `pipelines/presets`. Commands that take a recipe accept a name or a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paligemma.errors import InputError, did_you_mean
from paligemma.training.open_recipe import OpenRecipe, parse_open_recipe
from paligemma.yaml_text import read_yaml_text

FOLDER = Path(__file__).parents[1] / "pipelines" / "presets"


def read_preset(name: str) -> str:
    """The YAML text of a preset, or of a recipe file at the path `name`.

    Raises:
        InputError: neither exists.
    """
    presets = {path.stem: path for path in FOLDER.glob("*.yaml")}
    path = presets.get(name, Path(name))
    if not path.is_file():
        raise InputError(
            f"There is no recipe {name!r}.",
            where="--recipe",
            expected="a YAML file, or a preset's name",
            fix=did_you_mean(name, presets),
        )
    return read_yaml_text(path, "The recipe")


def read_recipe(name: str = "", overrides: Sequence[str] = ()) -> OpenRecipe:
    """Reads a preset, a recipe file, or (for an empty name) the reference recipe, with overrides; see `parse_open_recipe`.

    Raises:
        InputError: there is no such recipe, or the recipe or an override is wrong.
    """
    return parse_open_recipe(read_preset(name), overrides, name) if name else parse_open_recipe(overrides=overrides)
