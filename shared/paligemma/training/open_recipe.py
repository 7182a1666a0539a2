"""A recipe that leaves settings open, as `auto`, to whoever knows the hardware that is to run it.

Only settings of how a step is executed can be left open: none of them changes what is trained, or for how long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer

from paligemma.errors import InputError
from paligemma.models.config import describe_validation_error
from paligemma.training.recipe import Recipe, check_recipe, recipe_values
from paligemma.yaml_text import dump_yaml

AUTO = "auto"

SETTINGS = ("remat", "frozen_dtype", "accumulate", "data_parallel", "unroll")
"""Keys of a recipe that can be `auto`."""

EXECUTION = "execution"
"""Key beside the recipe's own: `execution: auto` makes every one of `SETTINGS` auto that the recipe does not give itself."""

Setting = bool | int | str


class OpenRecipe(BaseModel):
    """A recipe, and which of its settings are open. It is recorded as its `values`.

    Attributes:
        recipe: the recipe, with its defaults in place of what is open.
        open: names of the open settings, in the order of `SETTINGS`; empty if nothing is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    open: tuple[str, ...] = ()

    def settled(self, settings: Mapping[str, Setting]) -> Recipe:
        """The recipe with a value for each open setting. Others are ignored: what a recipe says itself stays.

        Raises:
            InputError: an open setting has no value, or a wrong one.
        """
        if missing := [name for name in self.open if name not in settings]:
            raise InputError(
                f"Nothing was chosen for {', '.join(missing)}.", where="the recipe", expected="a value for each auto"
            )
        chosen = {name: settings[name] for name in self.open}
        try:
            return Recipe.model_validate(self.recipe.model_dump(exclude_none=True) | chosen)
        except ValidationError as error:
            message = describe_validation_error(error, Recipe)
            raise InputError(f"What was chosen does not fit the recipe: {message}.", where="the recipe") from None

    @model_serializer
    def _recorded(self) -> dict:
        return self.values()

    def values(self, only_given: bool = False) -> dict:
        """JSON values by key, `auto` for what is open; if `only_given`, without those that are the defaults."""
        return self.recipe.model_dump(mode="json", exclude_defaults=only_given) | dict.fromkeys(self.open, AUTO)

    def text(self) -> str:
        """YAML text from which `parse_open_recipe` makes the same recipe."""
        return dump_yaml(self.recipe.model_dump(mode="json", exclude_none=True) | dict.fromkeys(self.open, AUTO))


def parse_open_recipe(text: str = "", overrides: Sequence[str] = (), where: object = "the recipe") -> OpenRecipe:
    """As `parse_recipe`, for a recipe in which `SETTINGS` may be `auto`, or which says `execution: auto`.

    Raises:
        InputError: see `parse_recipe`; or `execution` has another value.
    """
    values = recipe_values(text, overrides, where)
    if (told := values.pop(EXECUTION, None)) == AUTO:
        values = dict.fromkeys(SETTINGS, AUTO) | values
    elif told is not None:
        expected = f"{EXECUTION}: {AUTO}, or no such line"
        raise InputError(f"The recipe is wrong: {EXECUTION}: {told}.", where=where, expected=expected)
    left = tuple(name for name in SETTINGS if values.get(name) == AUTO)
    given = {key: value for key, value in values.items() if key not in left}
    return OpenRecipe(recipe=check_recipe(given, overrides, where), open=left)
