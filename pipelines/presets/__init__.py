"""Training recipes by name: one YAML file each, beside this one."""

from __future__ import annotations

from pathlib import Path

from paligemma.errors import InputError, did_you_mean
from paligemma.yaml_text import read_yaml_text

FOLDER = Path(__file__).parent


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
