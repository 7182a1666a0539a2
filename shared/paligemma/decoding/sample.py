"""Draws tokens from logits. Each row has its own key, so its draws do not depend on other rows in the batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from paligemma.decoding.settings import DecodeSettings


def choose(
    logits: Float[Array, "b n v"], keys: Key[Array, "b n"], settings: DecodeSettings
) -> tuple[Int[Array, "b n"], Float[Array, "b n"]]:
    """A token for every candidate, and its log-probability under the model, before temperature and truncation."""
    if settings.temperature == 0:
        tokens = _place_of_largest(logits)
    else:
        draw = jax.vmap(jax.vmap(jax.random.categorical))
        tokens = draw(keys, truncate(logits / settings.temperature, settings.top_k, settings.top_p))
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return tokens.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)


def _place_of_largest(logits: Float[Array, "b n v"]) -> Int[Array, "b n"]:
    """Same as `argmax`, which on a CPU walks the vocabulary one entry at a time.

    Finds the strip of the vocabulary with the largest logit, then searches that strip: one quick pass over all logits.
    """
    strips = logits.reshape(*logits.shape[:-1], -1, math.gcd(logits.shape[-1], 256))
    of_strips = strips.max(axis=-1)
    largest = of_strips.max(axis=-1, keepdims=True)
    strip = _first(of_strips == largest)
    inside = jnp.take_along_axis(strips, strip[..., None, None], axis=-2)[..., 0, :]
    return strip * strips.shape[-1] + _first(inside == largest)


def _first(true: Bool[Array, "*rows n"]) -> Int[Array, "*rows"]:
    """Index of the first True; the last index if there is none."""
    return jnp.min(jnp.where(true, jnp.arange(true.shape[-1]), true.shape[-1] - 1), axis=-1)


def truncate(logits: Float[Array, "*rows v"], top_k: int, top_p: float) -> Float[Array, "*rows v"]:
    """Sets logits to -inf, except for the `top_k` most likely tokens, and among these the fewest that reach `top_p`.

    Ties with the last kept token are kept too. `top_k` 0 and `top_p` 1 turn truncation off.
    """
    if 0 < top_k < logits.shape[-1]:
        logits = jnp.where(_at_least(logits, lambda kept: kept.sum(axis=-1) >= top_k), logits, -jnp.inf)
    if top_p < 1:
        probabilities = jax.nn.softmax(logits, axis=-1)
        reached = _at_least(logits, lambda kept: jnp.where(kept, probabilities, 0).sum(axis=-1) >= top_p)
        logits = jnp.where(reached, logits, -jnp.inf)
    return logits


def _at_least(
    values: Float[Array, "*rows v"], enough: Callable[[Bool[Array, "*rows v"]], Bool[Array, "*rows"]]
) -> Bool[Array, "*rows v"]:
    """True where values reach the highest threshold that keeps enough of them.

    Found bit by bit, in 32 passes over the values: much cheaper than sorting a vocabulary.
    """
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(bits & sign, ~bits, bits | sign)  # as integers, in the order of the floats

    def narrow(index: Array, threshold: Array) -> Array:
        higher = threshold | (sign >> index.astype(jnp.uint32))
        return jnp.where(enough(ordered >= higher[..., None]), higher, threshold)

    threshold = jax.lax.fori_loop(0, 32, narrow, jnp.zeros(values.shape[:-1], jnp.uint32))
    return ordered >= threshold[..., None]
