"""The learning rate schedule: warm-up, then the shape in the recipe."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from paligemma.errors import InputError
from paligemma.training.recipe import Recipe


def relative_schedule(recipe: Recipe, steps: int) -> optax.Schedule:
    """Learning rate relative to its peak, by number of updates made.

    Linear warm-up from 0 over `warmup_steps`, or `int(warmup_fraction * (steps + 1))` steps, then the recipe's shape. The
    source is big_vision, `utils.create_learning_rate_schedule`, which rounds the number of warm-up steps and makes it at least
    1. As in its notebook, the n-th update (from 1) uses the n-th of `steps + 1` points, so the rate is never 0 at the start,
    and never quite 0 at the end.
    """
    total = steps + 1
    warmup = int(recipe.warmup_fraction * total) if recipe.warmup_steps is None else recipe.warmup_steps
    if warmup >= total:
        raise InputError(
            f"The warm-up of {warmup} steps is longer than the {steps} steps of training.", fix="lower warmup_steps"
        )

    def share(count):
        step = jnp.asarray(count + 1, jnp.float32)
        progress = jnp.clip((step - warmup) / (total - warmup), 0.0, 1.0)
        shape = {
            "constant": lambda: jnp.ones(()),
            "cosine": lambda: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
            "linear": lambda: 1.0 - progress,
            "rsqrt": lambda: jax.lax.rsqrt(1.0 + jnp.maximum(step - warmup, 0.0) / recipe.timescale),
        }[recipe.schedule]()
        return shape * jnp.minimum(1.0, step / warmup) if warmup else shape

    return share


def learning_rate_schedule(recipe: Recipe, steps: int) -> optax.Schedule:
    """Learning rate by number of updates made; see `relative_schedule`."""
    share = relative_schedule(recipe, steps)
    return lambda count: jnp.asarray(recipe.learning_rate * share(count), jnp.float32)
