"""A training recipe: every setting of what is trained, how, and for how long. The defaults run as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from paligemma.choices import ComputeDtype, FrozenDtype, QuantizedDtype, StoredDtype
from paligemma.data.augment import Augmentation
from paligemma.data.rows import MOST_IMAGES
from paligemma.errors import InputError
from paligemma.models.config import describe_validation_error
from paligemma.models.layers import LayerPlan, Remat
from paligemma.models.lora_factors import LoraConfig
from paligemma.models.weight_formats import QuantizeConfig, WeightFormat, weight_format
from paligemma.training.trainable import compile_pattern
from paligemma.yaml_text import parse_yaml

OPERATIONAL = {"log_every", "save_every", "keep_last"}
"""Keys that do not affect the trained parameters; a run can be resumed with other values."""


class Recipe(BaseModel):
    """The recipe. The defaults are the reference notebook's: attention layers only, SGD, lr 0.03, batch 8, 512 examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trainable: str | tuple[str, ...] = Field(
        default="attention",
        description="Trained parameters: attention (of the decoder), llm, vision, all, lora (adapters), or a list of "
        "regular expressions of whole names.",
    )
    lora: LoraConfig = Field(default=LoraConfig(), description="Adapters, for trainable: lora. Keys rank, alpha, targets.")

    images_per_example: int = Field(
        default=1, ge=1, le=MOST_IMAGES, description="Images in every row, as the records have them; not recorded if 1."
    )
    batch_size: int = Field(default=8, gt=0, description="Examples in a step, over all devices.")
    accumulate: int = Field(default=1, gt=0, description="Parts in which a batch is processed; less memory, the same result.")
    steps: int | None = Field(default=None, gt=0, description="Steps to train; give this or epochs. Without both: 64.")
    epochs: float | None = Field(default=None, gt=0, description="Passes over the training records; give this or steps.")

    optimizer: Literal["sgd", "momentum", "adamw", "adafactor", "lion"] = Field(
        default="sgd", description="sgd (no state), momentum, adamw, adafactor or lion."
    )
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="Decay of the first moment: momentum, adamw and lion (b1), adafactor."
    )
    second_moment: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay of the second moment (b2). Without: adamw 0.999, lion 0.99, adafactor 0.999 at most.",
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description="Decoupled, as in big_vision: an update takes off schedule x weight_decay, not x learning_rate.",
    )
    weight_decay_on: str = Field(
        default=r".*/(kernel|w|gating_einsum|linear|a|b)",
        description="Regular expression of the names that decay: by default all matrices but the embeddings.",
    )
    learning_rate: float = Field(default=0.03, gt=0, description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "rsqrt", "constant"] = Field(
        default="cosine",
        description="Learning rate after warm-up: falls to 0 (cosine, linear), as 1/sqrt(1 + t/timescale), or stays.",
    )
    timescale: int = Field(default=10_000, gt=0, description="Steps, for the schedule rsqrt.")
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of the steps over which the rate rises from 0.")
    warmup_steps: int | None = Field(
        default=None, ge=0, description="Steps over which the rate rises from 0, in place of a share."
    )
    gradient_clip: float | None = Field(
        default=None, gt=0, description="Largest global norm of a gradient; larger ones are scaled down."
    )

    loss_per: Literal["example", "token"] = Field(
        default="example", description="What counts equally in a batch's loss: every example, or every suffix token."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of a target's weight spread over the other tokens."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout rate on what the decoder's attention and MLP add.")
    augment: Augmentation = Field(default=Augmentation(), description="Random changes of images: keys flip, crop, colour.")

    frozen_dtype: FrozenDtype = Field(
        default="float16",
        description="Dtype of frozen parameters: a float, or int8 or nf4 (quantized); trained ones are float32.",
    )
    quantize: QuantizeConfig = Field(
        default=QuantizeConfig(), description="For a quantized frozen_dtype. Keys groups, block (of nf4), others."
    )
    compute_dtype: ComputeDtype = Field(
        default="auto",
        description="Dtype of matrix products; auto: bfloat16 where it is fast, float16 on older GPUs, else float32.",
    )
    remat: Remat = Field(
        default="full", description="What the backward pass recomputes, from fast to lean: none, dots, attention, full."
    )
    unroll: bool = Field(
        default=False, description="Compile the decoder's layers one by one, not as a loop: slower to compile, faster to run."
    )
    loss_chunk: int = Field(default=512, gt=0, description="Most tokens whose logits are in memory at once.")
    buckets: int = Field(
        default=4, gt=0, description="Maximum number of text lengths that batches are padded to; each compiles once."
    )
    vision_cache: Literal["none", "memory", "disk"] = Field(
        default="none", description="Keep the frozen tower's image embeddings after the first epoch; not with augmentation."
    )
    data_parallel: int = Field(default=1, gt=0, description="Copies of the parameters; each is sharded over devices / copies.")

    seed: int = Field(default=0, ge=0, description="Determines the order of the examples, dropout, augmentation and adapters.")
    validate_every: int | None = Field(default=None, gt=0, description="Steps between validation losses; without: never.")
    patience: int | None = Field(
        default=None, gt=0, description="Stop after this many validation losses without a better one; without: never."
    )
    select: Literal["last", "best"] = Field(
        default="last", description="Parameters to write: the last, or those of the best validation."
    )
    non_finite: Literal["stop", "skip"] = Field(
        default="stop", description="When a loss or gradient is not finite: end the run, or leave that step out and count it."
    )
    save_every: int | None = Field(default=None, gt=0, description="Steps between saved states. Without: every 10 minutes.")
    keep_last: int = Field(default=2, gt=0, description="Saved states to keep.")
    log_every: int = Field(default=1, gt=0, description="Steps between lines of metrics.jsonl.")

    @field_validator("trainable", mode="after")
    @classmethod
    def _a_set_or_patterns(cls, trainable: str | tuple[str, ...]) -> str | tuple[str, ...]:
        compile_pattern(trainable)
        return trainable

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both given; give one")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if self.vision_cache != "none" and self.augment != Augmentation():
            raise ValueError("vision_cache keeps one embedding of an image, augment makes new ones each time; give one")
        if self.quantize != QuantizeConfig() and not self.is_quantized:
            raise ValueError(f"quantize is for frozen_dtype int8 or nf4, which is {self.frozen_dtype}; leave it out")
        for key in ("patience", "select"):
            if self.validate_every is None and getattr(self, key) not in (None, "last"):
                raise ValueError(f"{key} needs validate_every")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What means nothing is not recorded: results of earlier versions, which did not have it, stay a recipe's own."""
        without_meaning = {"images_per_example"} if self.images_per_example == 1 else set()
        if not self.is_quantized:
            without_meaning.add("quantize")
        return {key: value for key, value in serialize(self).items() if key not in without_meaning}

    @property
    def is_quantized(self) -> bool:
        """Whether frozen weights are quantized."""
        return self.frozen_dtype in get_args(QuantizedDtype)

    def frozen_in(self, name: str, shape: tuple[int, ...]) -> StoredDtype | WeightFormat:
        """What a frozen parameter is held in, by its name and shape."""
        if self.frozen_dtype == "int8" or self.frozen_dtype == "nf4":
            return weight_format(name, shape, self.frozen_dtype, self.quantize) or self.quantize.others
        return self.frozen_dtype

    @property
    def layer_plan(self) -> LayerPlan:
        """How the decoder's layers run."""
        return LayerPlan(self.remat, self.unroll, compile_pattern(self.trainable).pattern)

    def total_steps(self, rows: int) -> int:
        """Steps to train on a data set of `rows` rows."""
        if self.epochs is not None:
            return max(1, round(self.epochs * rows / self.batch_size))
        return self.steps or 64

    def determining(self) -> dict:
        """The values that determine the trained parameters."""
        return self.model_dump(mode="json", exclude=OPERATIONAL)


def parse_recipe(text: str = "", overrides: Sequence[str] = (), where: object = "the recipe") -> Recipe:
    """Parses a recipe from YAML text, then applies `key=value` overrides. Values are YAML; `lora.rank=4` sets a nested key.

    Raises:
        InputError: the text is not YAML, a key is unknown (with the nearest known key), or a value is wrong.
    """
    return check_recipe(recipe_values(text, overrides, where), overrides, where)


def check_images(recipe: Recipe, images: int, where: object) -> None:
    """Confirms that the records have as many images in every row as the recipe.

    Raises:
        InputError: they do not.
    """
    wanted = recipe.images_per_example
    if images != wanted:
        raise InputError(
            f"Every row of the records has {_images(images)}, the recipe is for {_images(wanted)}.",
            where=where,
            expected=f"images_per_example: {images} in the recipe, or records of prepare_data --images-per-example {wanted}",
            fix=f"pass --set images_per_example={images}, if the rows are right",
        )


def _images(count: int) -> str:
    return "one image" if count == 1 else f"{count} images"


def recipe_values(text: str, overrides: Sequence[str], where: object) -> dict:
    """The values of YAML text after `key=value` overrides, unchecked; see `parse_recipe`."""
    values = parse_yaml(text, where, "The recipe")
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise InputError("The recipe is not a mapping.", where=where, expected="lines like `learning_rate: 0.03`")
    for item in overrides:
        _override(values, item)
    return values


def check_recipe(values: dict, overrides: Sequence[str], where: object) -> Recipe:
    """The recipe of values from `recipe_values`; see `parse_recipe`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        wrong = {str(mistake["loc"][0]) for mistake in error.errors() if mistake["loc"]}
        blamed = [f"--set {item}" for item in overrides if item.partition("=")[0].strip().partition(".")[0] in wrong]
        places = blamed if wrong and len(blamed) >= len(wrong) else [str(where), *blamed]
        message = describe_validation_error(error, Recipe)
        raise InputError(f"The recipe is wrong: {message}.", where=", ".join(places)) from None


def _override(values: dict, item: str) -> None:
    path, equals, value = item.partition("=")
    if not equals:
        raise InputError(f"The override {item!r} has no value.", expected="key=value, as in learning_rate=0.01")
    *parents, key = path.strip().split(".")
    for parent in parents:
        below = values.setdefault(parent, {})
        if not isinstance(below, dict):
            raise InputError(f"The override {item!r} goes below {parent}, which is a plain value.")
        values = below
    values[key] = parse_yaml(value, f"--set {item}", f"The value of {path.strip()}")
