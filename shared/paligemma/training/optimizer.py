"""The optimizer and learning-rate schedule of a recipe, in optax."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from paligemma.errors import InputError
from paligemma.training.recipe import Recipe


def relative_schedule(recipe: Recipe, steps: int) -> optax.Schedule:
    """Learning rate as a share of its peak, by the number of updates already made.

    Linear warm-up from 0 over the first `warmup_steps`, or `int(warmup_fraction * (steps + 1))` steps, then the recipe's
    shape (big_vision, `utils.create_learning_rate_schedule`, which rounds the number of warm-up steps and makes it at least
    1). As its notebook does, the n-th update (from 1) uses the schedule's n-th point of `steps + 1`: the rate is never 0 at
    the start, and never quite 0 at the end.
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
    """Learning rate by the number of updates already made; see `relative_schedule`."""
    share = relative_schedule(recipe, steps)
    return lambda count: jnp.asarray(recipe.learning_rate * share(count), jnp.float32)


def make_optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """The recipe's optimizer over a run of `steps` steps.

    Clipping, then the optimizer's own scaling, then `learning_rate`, then weight decay, then the schedule: decay follows
    the schedule but not the learning rate (big_vision, `optax.make`).
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
    """What distinguishes the optimizers: the direction of an update, and its size relative to the learning rate."""
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
    factored = optax.scale_by_factored_rms(
        min_dim_size_to_factor=32,
        decay_rate_fn=lambda count, exponent: jnp.minimum(cap, 1.0 - (count + 1.0) ** -exponent),
    )
    return optax.chain(factored, optax.ema(momentum, debias=False, accumulator_dtype=jnp.bfloat16))


def _decayed(parameters: nnx.State, pattern: str):
    """Which of the trained parameters decay, as a tree of bools."""
    paths = {path: re.fullmatch(pattern, "/".join(map(str, path))) is not None for path, _ in nnx.to_flat_state(parameters)}
    if not any(paths.values()):
        raise InputError(
            f"weight_decay_on {pattern!r} matches no trained parameter.",
            expected="a pattern of whole names, e.g. .*/w",
            fix="set weight_decay=0, or another weight_decay_on",
        )
    flat = [(path, variable.replace(paths[path])) for path, variable in nnx.to_flat_state(parameters)]
    return nnx.from_flat_state(flat)
