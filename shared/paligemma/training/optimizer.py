"""The optimizer and learning-rate schedule of a recipe, in optax."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from paligemma.training.recipe import Recipe


def learning_rate_schedule(recipe: Recipe, steps: int) -> optax.Schedule:
    """Learning rate by the number of updates already made.

    Linear warm-up from 0 over the first `int(warmup_fraction * (steps + 1))` steps, then the recipe's shape. As in
    big_vision, the n-th update (from 1) uses the schedule's n-th point of `steps + 1`: the rate is never 0 at the start,
    and never quite 0 at the end.
    """
    total = steps + 1
    warmup = int(recipe.warmup_fraction * total)
    if recipe.schedule == "constant":
        rate = optax.warmup_constant_schedule(0.0, recipe.learning_rate, warmup)
    else:
        rate = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, warmup, total)
    return lambda count: jnp.asarray(rate(count + 1), jnp.float32)


def make_optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """The recipe's optimizer over a run of `steps` steps."""
    return optax.sgd(learning_rate_schedule(recipe, steps))
