"""Builds a recipe's optimizer in optax."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from paligemma.errors import InputError
from paligemma.training.learning_rate import relative_schedule
from paligemma.training.recipe import Recipe


def make_optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """The recipe's optimizer for a run of `steps` steps.

    The order is clipping, the optimizer's own scaling, `learning_rate`, weight decay, schedule. So decay follows the schedule
    but not the learning rate (big_vision, `optax.make`).
    """
    clip = optax.clip_by_global_norm(recipe.gradient_clip) if recipe.gradient_clip else optax.identity()
    decay = optax.identity()
    if recipe.weight_decay:
        decay = optax.add_decayed_weights(recipe.weight_decay, lambda parameters: _decayed(parameters, recipe.weight_decay_on))
    return optax.chain(
        clip,
        _scaling(recipe),
        optax.scale(recipe.learning_rate),
        decay,
        optax.scale_by_schedule(relative_schedule(recipe, steps)),
        optax.scale(-1.0),
    )


def _scaling(recipe: Recipe) -> optax.GradientTransformation:
    """The optimizer's own scaling: the direction of an update, and its size relative to the learning rate."""
    momentum, second = recipe.momentum, recipe.second_moment
    if recipe.optimizer == "sgd":
        return optax.identity()
    if recipe.optimizer == "momentum":
        return optax.trace(momentum)
    if recipe.optimizer == "adamw":
        return optax.scale_by_adam(b1=momentum, b2=second or 0.999)
    if recipe.optimizer == "lion":
        return optax.scale_by_lion(b1=momentum, b2=second or 0.99)
    # Adafactor as scaled vision transformers use it (arXiv 2106.04560): factored second moment whose decay is capped,
    # momentum in bfloat16, no update clipping, no relative step size.
    cap = second or 0.999

    def decay_rate(count: Any, exponent: Any) -> Array:
        return jnp.minimum(cap, 1.0 - (count + 1.0) ** -exponent)

    factored = optax.scale_by_factored_rms(
        min_dim_size_to_factor=32,
        decay_rate_fn=decay_rate,
    )
    return optax.chain(factored, optax.ema(momentum, debias=False, accumulator_dtype=jnp.bfloat16))


def _decayed(parameters: Any, pattern: str):
    """A tree of bools: which trained parameters decay."""
    paths = {path: re.fullmatch(pattern, "/".join(map(str, path))) is not None for path, _ in nnx.to_flat_state(parameters)}
    if not any(paths.values()):
        raise InputError(
            f"weight_decay_on {pattern!r} matches no trained parameter.",
            expected="a pattern of whole names, e.g. .*/w",
            fix="set weight_decay=0, or another weight_decay_on",
        )
    flat = [(path, variable.replace(paths[path])) for path, variable in nnx.to_flat_state(parameters)]
    return nnx.from_flat_state(flat)
