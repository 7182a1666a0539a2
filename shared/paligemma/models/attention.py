"""Attention shared by the vision tower and the decoder, and the prefix-LM mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -2.3819763e38
"""Logit of an invisible key: large, but finite in float32, so that a row without visible keys has no NaN."""


def prefix_lm_mask(mask_ar: Int[Array, "b p"], mask_input: Bool[Array, "b p"] | None = None) -> Bool[Array, "b p p"]:
    """Which key each query sees: `cumsum(mask_ar)[key] <= cumsum(mask_ar)[query]`, both being real tokens.

    A run of `mask_ar == 0` (image and prefix) is one block whose tokens all see each other; every `mask_ar == 1`
    (suffix) sees what came before it and itself.

    Args:
        mask_ar: 0 where a token is visible to the block it follows, 1 where only to later tokens.
        mask_input: False on padding; None when nothing is padding.
    """
    block = jnp.cumsum(mask_ar.astype(jnp.int32), axis=1)
    visible = block[:, None, :] <= block[:, :, None]
    if mask_input is None:
        return visible
    valid = mask_input.astype(bool)
    return visible & valid[:, None, :] & valid[:, :, None]


@jax.custom_vjp
def masked_softmax(logits: Float[Array, "b k g t s"], mask: Bool[Array, "b 1 1 t s"] | None) -> Float[Array, "b k g t s"]:
    """Softmax over the visible keys; of its intermediate results, only the outcome is kept for the backward pass."""
    if mask is not None:
        logits = jnp.where(mask, logits, MASKED)
    return jax.nn.softmax(logits, axis=-1)


def _masked_softmax_forward(logits, mask):
    weights = masked_softmax(logits, mask)
    return weights, weights


def _masked_softmax_backward(weights, gradient):
    weighted = weights * gradient  # 0 at hidden keys, as their weights are
    return weighted - weights * jnp.sum(weighted, axis=-1, keepdims=True), None


masked_softmax.defvjp(_masked_softmax_forward, _masked_softmax_backward)


def attend(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    mask: Bool[Array, "b t s"] | None = None,
    softcap: float = 0.0,
    softmax_dtype=jnp.float32,
) -> Float[Array, "b t n h"]:
    """Scaled queries against keys; logits and softmax in `softmax_dtype` whatever the inputs' dtype.

    `n` is a multiple of `k`: each key/value head serves `n // k` consecutive query heads.
    """
    b, t, n, h = query.shape
    k = key.shape[2]
    grouped = query.reshape(b, t, k, n // k, h)
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=softmax_dtype)
    if softcap:
        logits = jnp.tanh(logits / softcap) * softcap
    weights = masked_softmax(logits, None if mask is None else mask[:, None, None]).astype(value.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, value).reshape(b, t, n, h)
