"""Attention shared by the vision tower and the decoder, and the prefix-LM mask."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -2.3819763e38
"""Logit of an invisible key: large, but finite in float32, so that a row without visible keys has no NaN."""


HeadOrder = Literal["first", "as given"]
"""Where attention's products have the axis of the heads. `first`: before the tokens; queries, keys and values are transposed.
`as given`: after the tokens, as the projections give it.
"""


def head_order(platform: str) -> HeadOrder:
    """The order that is the fastest on a platform.

    In a step of the 3B model at batch 8, heads that are not first cost a GPU 5 GB of writes; on a CPU, XLA's products are slow
    with them. On a TPU, heads that are first cost transposes, and a mask that is written out: 41 million cycles, of 480, where
    the other order takes 30.
    """
    return "as given" if platform == "tpu" else "first"


def prefix_lm_mask(mask_ar: Int[Array, "b p"], mask_input: Bool[Array, "b p"] | None = None) -> Bool[Array, "b p p"]:
    """The keys that each query sees: `cumsum(mask_ar)[key] <= cumsum(mask_ar)[query]`, if both are real tokens.

    A run of `mask_ar == 0` (image and prefix) is one block whose tokens all see each other; every `mask_ar == 1`
    (suffix) sees what came before it and itself.

    Args:
        mask_ar: 0 if earlier tokens of its block see a token too, 1 if only the token itself and later tokens see it.
        mask_input: False on padding; None when nothing is padding.
    """
    block = jnp.cumsum(mask_ar.astype(jnp.int32), axis=1)
    visible = block[:, None, :] <= block[:, :, None]
    if mask_input is None:
        return visible
    valid = mask_input.astype(bool)
    return visible & valid[:, None, :] & valid[:, :, None]


@jax.custom_vjp
def softmax_average(logits: Float[Array, "b k q s"], value: Float[Array, "b k s h"]) -> Float[Array, "b k q h"]:
    """The mean of the values, weighted by the softmax of the logits.

    Divides by the softmax's sum at the end, where there are fewer numbers (as in FlashAttention-2, arXiv 2307.08691).
    For the backward pass, the exponentials are the only intermediate result of the logits' size, in the values' dtype.
    """
    return _softmax_average_forward(logits, value)[0]


def _softmax_average_forward(logits: Array, value: Array) -> tuple[Array, tuple[Array, ...]]:
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    inverse = 1 / jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(value.dtype)
    average = inverse * jnp.einsum("bkqs,bksh->bkqh", weights, value, preferred_element_type=logits.dtype)
    return average.astype(value.dtype), (weights, inverse, average, value)


def _softmax_average_backward(kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array]:
    weights, inverse, average, value = kept
    scaled = gradient * inverse
    along = jnp.sum(scaled * average, axis=-1, keepdims=True)
    of_weights = jnp.einsum("bkqh,bksh->bkqs", scaled.astype(value.dtype), value, preferred_element_type=inverse.dtype)
    of_value = jnp.einsum("bkqs,bkqh->bksh", weights, scaled.astype(value.dtype))
    return weights * (of_weights - along), of_value


softmax_average.defvjp(_softmax_average_forward, _softmax_average_backward)


def attend(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    mask: Bool[Array, "b t s"] | None = None,
    softcap: float = 0.0,
    softmax_dtype=jnp.float32,
    order: HeadOrder = "first",
) -> Float[Array, "b t n h"]:
    """Attention of scaled queries to keys; logits and softmax are in `softmax_dtype`, whatever the inputs' dtype.

    `n` is a multiple of `k`: each key/value head serves `n // k` consecutive query heads. The order changes the speed only.
    """
    b, t, n, h = query.shape
    s, k = key.shape[1:3]
    if order == "as given":
        grouped = query.reshape(b, t, k, n // k, h)
        logits = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=softmax_dtype)
        if softcap:
            logits = jnp.tanh(logits / softcap) * softcap
        if mask is not None:
            logits = jnp.where(mask[:, None, None], logits, MASKED)
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        return jnp.einsum("bkgts,bskh->btkgh", weights, value).reshape(b, t, n, h)
    query = query.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4).reshape(b, k, -1, h)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    logits = jnp.einsum("bkqh,bksh->bkqs", query, key, preferred_element_type=softmax_dtype)
    if softcap:
        logits = jnp.tanh(logits / softcap) * softcap
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits.reshape(b, k, n // k, t, s), MASKED).reshape(logits.shape)
    if softmax_dtype == jnp.float32:
        average = softmax_average(logits, value)
    else:  # a float16 sum of exponentials would lose more precision than the quotients do
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        average = jnp.einsum("bkqs,bksh->bkqh", weights, value)
    return average.reshape(b, k, n // k, t, h).transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)
