"""Finds the cheapest change of a recipe that makes its job fit a target.

The search first changes only execution (rematerialization, parts of a batch, size of logit chunks, copies of the parameters),
then takes an optimizer with less state, then smaller batches. If nothing fits, it quantizes the frozen weights, and begins
again. Among recipes with equal training, `cost` estimates the seconds of a step, and they are compiled from fastest to slowest.
So the first that fits is the cheapest by that estimate. A recipe is not compiled if its parameters and saved activations alone
do not fit, or if it needs at least the memory of one that did not fit. So a search takes a few compilations, not hundreds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import get_args

import numpy as np

from paligemma.choices import QuantizedDtype
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.parameter_shapes import EMBEDDING, parameter_shapes
from paligemma.models.weight_formats import WeightFormat
from paligemma.preflight.abstract import trained_shapes
from paligemma.preflight.analyze import Report, device_memory, examine, needed_flops
from paligemma.preflight.targets import Target, find_target
from paligemma.training.recipe import Recipe

POLICIES = ("none", "dots", "attention", "full")
"""Values of `remat`, from fast to lean."""

_RECOMPUTED = {"none": 0.0, "dots": 0.05, "attention": 0.6, "full": 1.0}
"""Share of the decoder's forward pass that is recomputed. Attention is a small part of a layer; elementwise work is less."""

_STATE = {"adamw": 8, "adafactor": 2, "momentum": 4, "lion": 4, "sgd": 0}
"""Bytes of optimizer state per trained parameter."""

_LESS_STATE = {"adamw": ("adafactor", "sgd"), "lion": ("adafactor", "sgd"), "momentum": ("sgd",), "adafactor": ("sgd",)}
"""Optimizers with less state, the most similar first."""

_NOMINAL = (1e11, 1e10, 1e10)
"""Speeds of arithmetic, memory and messages if unknown: only their proportions matter."""


def find_fitting(
    config: PaliGemmaConfig,
    recipe: Recipe,
    target: str,
    text_tokens: int,
    prices: Mapping[str, float],
) -> tuple[Recipe, list[str], Report] | None:
    """The cheapest changed recipe that fits, its overrides, and its report; None if none fits."""
    place = find_target(target)
    limit = device_memory(place) * (1 - place.margin)
    quantized = () if recipe.is_quantized else (_changed(recipe, frozen_dtype=kind) for kind in get_args(QuantizedDtype))
    for training in itertools.chain.from_iterable(_trainings(one, place.devices) for one in (recipe, *quantized)):
        same = [changed for changed in _ways(training, place.devices) if least(config, changed, place, text_tokens) < limit]
        same.sort(key=lambda changed: cost(config, changed, place, text_tokens))
        failed: list[Recipe] = []
        if not any(examine(config, lean, target, text_tokens, prices).fits for lean in _leanest(same)):
            continue
        for changed in same:
            if any(needs_at_least(changed, other) for other in failed):
                continue
            report = examine(config, changed, target, text_tokens, prices)
            if report.fits:
                return changed, overrides(recipe, changed), report
            failed.append(changed)
    return None


def overrides(before: Recipe, after: Recipe) -> list[str]:
    """The `key=value` overrides for `--set` that turn one recipe into the other."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return [f"{key}={value}" for key, value in new.items() if key in old and old[key] != value]


def cost(config: PaliGemmaConfig, recipe: Recipe, place: Target, text_tokens: int) -> float:
    """Estimated seconds of a step. Comparable only among recipes with equal training.

    Includes arithmetic with rematerialization; reading the parameters three times (forward, backward, update) for each part of
    the batch, and the embedding for each chunk of logits; and gathering split parameters twice for each part.
    """
    arithmetic, memory, links = (
        (place.tflops * 1e12, place.bandwidth, place.links or place.bandwidth) if place.tflops else _NOMINAL
    )
    shapes = {name: float(np.prod(shape)) for name, shape in parameter_shapes(config).items()}
    layers = sum(size for name, size in shapes.items() if name.startswith("llm/layers/"))
    tokens = recipe.batch_size * (recipe.images_per_example * config.img.num_patches + text_tokens - 1)
    operations = needed_flops(config, recipe, text_tokens) + _RECOMPUTED[recipe.remat] * 2 * tokens * layers
    split = place.devices // recipe.data_parallel
    weights = 2 * sum(shapes.values())
    per_part = recipe.batch_size // recipe.accumulate
    chunks = recipe.accumulate * -(-per_part * (text_tokens - 1) // recipe.loss_chunk)
    trained = trained_shapes(config, recipe.trainable, recipe.lora)
    read = 3 * recipe.accumulate * weights + (3 if EMBEDDING in trained else 2) * chunks * 2 * shapes[EMBEDDING] / split
    sent = 2 * recipe.accumulate * weights * (1 - 1 / split)
    sent += 8 * _size(trained) * (1 - 1 / place.devices)
    return operations / arithmetic / place.devices + read / memory + sent / links


def _trainings(recipe: Recipe, devices: int) -> Iterator[Recipe]:
    """The recipe, then recipes with different training, the most similar first."""
    yield recipe
    for optimizer in _LESS_STATE.get(recipe.optimizer, ()):
        yield _changed(recipe, optimizer=optimizer)
    size = recipe.batch_size // 2
    while size >= devices:
        if size % devices == 0:
            yield _changed(recipe, batch_size=size, accumulate=1)
        size //= 2
    if recipe.optimizer != "sgd":
        yield _changed(recipe, batch_size=devices, accumulate=1, optimizer="sgd")


def _ways(recipe: Recipe, devices: int) -> list[Recipe]:
    """All recipes with equal training."""
    rows = recipe.batch_size // devices
    parts = [n for n in range(recipe.accumulate, rows + 1) if rows % n == 0] or [recipe.accumulate]
    chunks = sorted({recipe.loss_chunk, min(recipe.loss_chunk, 128)})
    copies = [n for n in range(1, devices + 1) if devices % n == 0]
    return [
        _changed(recipe, remat=policy, accumulate=n, loss_chunk=chunk, data_parallel=copy)
        for policy, n, chunk, copy in itertools.product(POLICIES, parts, chunks, copies)
    ]


def _changed(recipe: Recipe, **changes: object) -> Recipe:
    return Recipe.model_validate(recipe.model_dump(exclude_none=True) | changes)


def _leanest(recipes: list[Recipe]) -> list[Recipe]:
    """The recipes that should need the least memory, with the batch in parts and in one piece.

    A batch in parts needs extra memory to sum gradients; a batch in one piece does not.
    """

    def memory(recipe: Recipe) -> tuple[int, ...]:
        return (recipe.data_parallel, -POLICIES.index(recipe.remat), -recipe.accumulate, recipe.loss_chunk)

    kinds = ([recipe for recipe in recipes if (recipe.accumulate > 1) == in_parts] for in_parts in (True, False))
    return [min(kind, key=memory) for kind in kinds if kind]


def needs_at_least(recipe: Recipe, other: Recipe) -> bool:
    """Whether a recipe with equal training surely needs the memory of another one, or more."""
    return (
        recipe.data_parallel >= other.data_parallel
        and POLICIES.index(recipe.remat) <= POLICIES.index(other.remat)
        and recipe.accumulate <= other.accumulate
        and recipe.loss_chunk >= other.loss_chunk
        and (recipe.accumulate > 1) == (other.accumulate > 1)
    )


def least(config: PaliGemmaConfig, recipe: Recipe, place: Target, text_tokens: int) -> float:
    """Minimum bytes per device: parameters, optimizer state, saved activations, one chunk's logits."""
    trained = trained_shapes(config, recipe.trainable, recipe.lora)
    frozen = {name: shape for name, shape in parameter_shapes(config).items() if name not in trained}
    held = (4 + _STATE[recipe.optimizer]) * _size(trained)
    held += sum(frozen_bytes(shape, recipe.frozen_in(name, shape)) for name, shape in frozen.items())
    llm = config.llm
    numbers = {
        "none": 2 * llm.mlp_dim,
        "dots": 2 * llm.mlp_dim,
        "attention": 2 * llm.num_heads * llm.head_dim,
        "full": llm.width,
    }
    rows = recipe.batch_size / recipe.accumulate / place.devices
    tokens = rows * (recipe.images_per_example * config.img.num_patches + text_tokens - 1)
    logits = 4 * min(recipe.loss_chunk / place.devices, rows * (text_tokens - 1)) * llm.vocab_size
    return held * recipe.data_parallel / place.devices + 2 * tokens * (llm.depth - 1) * numbers[recipe.remat] + logits


def frozen_bytes(shape: tuple[int, ...], held_in: str | WeightFormat) -> float:
    """Bytes of a frozen parameter."""
    if not isinstance(held_in, WeightFormat):
        return (4 if held_in == "float32" else 2) * float(np.prod(shape))
    codes, scales = held_in.shapes(shape)
    return float(np.prod(codes)) + 4 * float(np.prod(scales))


def _size(shapes: Mapping[str, tuple[int, ...]]) -> float:
    return sum(float(np.prod(shape)) for shape in shapes.values())
