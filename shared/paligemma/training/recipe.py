"""A training recipe: every choice that determines what is trained, how and for how long. Defaults run as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from paligemma.errors import InputError
from paligemma.models.config import describe_validation_error
from paligemma.models.layers import Remat
from paligemma.precision import ComputeDtype

TRAINABLE_SETS = {
    "attention": r"llm/layers/attn/.*",
    "all": r".*",
}
"""Named sets of parameters: a pattern that a parameter's whole name matches."""


class Recipe(BaseModel):
    """The recipe. The defaults are the reference notebook's: attention layers only, SGD, lr 0.03, batch 8, 512 examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trainable: Literal["attention", "all"] = Field(
        "attention", description="Which parameters are trained: the decoder's attention layers, or everything."
    )
    batch_size: int = Field(8, gt=0, description="Examples in a step, over all devices.")
    steps: int | None = Field(None, gt=0, description="Steps to train; give this or epochs. Without both: 64.")
    epochs: float | None = Field(None, gt=0, description="Passes over the training records; give this or steps.")
    optimizer: Literal["sgd"] = Field("sgd", description="Plain SGD: no momentum, no decay, no optimizer state.")
    learning_rate: float = Field(0.03, gt=0, description="Peak learning rate.")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="Learning rate after warm-up: falls to 0 along a cosine, or stays."
    )
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="Share of the steps over which the rate rises from 0.")
    frozen_dtype: Literal["float16", "bfloat16", "float32"] = Field(
        "float16", description="Dtype that frozen parameters are held in; trained ones are float32."
    )
    compute_dtype: ComputeDtype = Field(
        "auto", description="Dtype of activations; auto: bfloat16 where it is fast, else float32."
    )
    remat: Remat = Field("full", description="What the backward pass recomputes: full (least memory) or none (fastest).")
    seed: int = Field(0, ge=0, description="Determines the order of the training examples.")
    log_every: int = Field(1, gt=0, description="Steps between lines of metrics.jsonl.")

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both given; give one")
        return self

    def total_steps(self, rows: int) -> int:
        """Steps to train on a data set of `rows` rows."""
        if self.epochs is not None:
            return max(1, round(self.epochs * rows / self.batch_size))
        return self.steps or 64


def parse_recipe(text: str = "", overrides: Sequence[str] = (), where: object = "the recipe") -> Recipe:
    """A recipe from YAML text, then `key=value` overrides whose values are YAML too.

    Raises:
        InputError: not YAML, an unknown key (with the nearest known one), or a wrong value.
    """
    try:
        values = yaml.safe_load(text) or {}
        changes = dict(_override(item) for item in overrides)
    except yaml.YAMLError as error:
        raise InputError("The recipe is not YAML.", where=f"{where}: {error}") from None
    if not isinstance(values, dict):
        raise InputError("The recipe is not a mapping.", where=where, expected="lines like `learning_rate: 0.03`")
    try:
        return Recipe.model_validate({**values, **changes})
    except ValidationError as error:
        raise InputError("The recipe is wrong: " + describe_validation_error(error, Recipe), where=where) from None


def read_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file, or the default one for None, with overrides; see `parse_recipe`."""
    if path is None:
        return parse_recipe(overrides=overrides)
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The recipe cannot be read: {error}.", expected="a YAML file") from None
    return parse_recipe(text, overrides, path)


def _override(item: str) -> tuple[str, object]:
    key, equals, value = item.partition("=")
    if not equals:
        raise InputError(f"The override {item!r} has no value.", expected="key=value, as in learning_rate=0.01")
    return key.strip(), yaml.safe_load(value)
