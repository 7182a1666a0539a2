"""Attention shared by the vision tower and the decoder, and the prefix-LM mask."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -2.3819763e38
"""Logit of an invisible key: large, but finite in float32, so that a row without visible keys has no NaN."""


HeadOrder = Literal["first", "as given"]
"""Where attention's products have the axis of the heads. `first`: before the tokens; queries, keys and values are transposed.
`as given`: after the tokens, as the projections give it.
"""


class AttentionForm(NamedTuple):
    """How attention is computed. This changes its speed and its memory, not its results.

    Attributes:
        order: the order of the axes in its products.
        most_logits: the most bytes of logits that a device holds at once. Where there would be more, attention takes queries
            block by block, and computes their logits again in the backward pass. 0: no limit.
        devices: devices over which a batch's rows are split.
        keys_of: keys are padded to a multiple of this number. No query sees the padding. Only a query that sees no key at all
            has another result then.
    """

    order: HeadOrder = "first"
    most_logits: int = 0
    devices: int = 1
    keys_of: int = 1


PLAIN = AttentionForm()
"""The form without blocks."""


def attention_form(platform: str, devices: int = 1) -> AttentionForm:
    """The form that is the fastest on a platform.

    In a step of the 3B model at batch 8, heads that are not first cost a GPU 5 GB of writes; on a CPU, XLA's products are slow
    with them. On a TPU, heads that are first cost transposes, and a mask that is written out: 41 million cycles, of 480, where
    the other order takes 30.

    A GPU's library multiplies along keys only where their number is a multiple of 8, and XLA copies arrays to make it one.

    A TPU's compiler keeps logits on the chip if they fit there, and only with blocks do those of large images fit. GPUs' and
    CPUs' compilers write them to memory either way, and blocks only add to that: see tests/benchmarks/README.md.
    """
    if platform == "tpu":
        return AttentionForm("as given", 40 * 2**20, devices)
    return AttentionForm(devices=devices, keys_of=8 if platform == "gpu" else 1)


def query_block(form: AttentionForm, rows: int, heads: int, queries: int, keys: int) -> int:
    """The number of queries whose logits, in float32, are held at a time."""
    of_query = 4 * -(-rows // form.devices) * heads * keys
    if not form.most_logits or queries * of_query <= form.most_logits:
        return queries
    most = max(1, form.most_logits // (of_query * _BLOCKS_OF)) * _BLOCKS_OF
    padded_least = min(range(_BLOCKS_OF, most + 1, _BLOCKS_OF), key=lambda block: (-queries % block, -block))
    return min(queries, padded_least)


_BLOCKS_OF = 64
"""Blocks are multiples of this many queries: with fewer, a TPU's matrix unit is not full."""


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


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def scores(query: Float[Array, "b k q h"], key: Float[Array, "b k s h"], dtype) -> Float[Array, "b k q s"]:
    """Products of queries and keys, in a dtype that may be wider than theirs; the backward pass multiplies in theirs.

    Automatic differentiation would multiply in the wider one, on a GPU at half the speed, and with a gradient of the logits'
    size that is twice as large. In float16 it does so here too: a logit's gradient is often below its range.
    """
    return jnp.einsum("bkqh,bksh->bkqs", query, key, preferred_element_type=dtype)


def _scores_forward(query: Array, key: Array, dtype) -> tuple[Array, tuple[Array, Array]]:
    return scores(query, key, dtype), (query, key)


def _scores_backward(dtype, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    query, key = kept
    gradient = gradient if query.dtype == jnp.float16 else gradient.astype(query.dtype)
    of_query, of_key = jnp.einsum("bkqs,bksh->bkqh", gradient, key), jnp.einsum("bkqs,bkqh->bksh", gradient, query)
    return of_query.astype(query.dtype), of_key.astype(key.dtype)


scores.defvjp(_scores_forward, _scores_backward)


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
    form: AttentionForm = PLAIN,
) -> Float[Array, "b t n h"]:
    """Attention of scaled queries to keys; logits and softmax are in `softmax_dtype`, whatever the inputs' dtype.

    `n` is a multiple of `k`: each key/value head serves `n // k` consecutive query heads.
    """
    b, t, n, _ = query.shape
    if missing := -key.shape[1] % form.keys_of:
        mask = jnp.ones((b, t, key.shape[1]), bool) if mask is None else mask
        key, value = (jnp.pad(x, [(0, 0), (0, missing), (0, 0), (0, 0)]) for x in (key, value))
        mask = jnp.pad(mask, [(0, 0), (0, 0), (0, missing)])

    def of_block(inputs: tuple[Float[Array, "b q n h"], Bool[Array, "b q s"] | None]) -> Float[Array, "b q n h"]:
        block, visible = inputs
        ways = {"first": _attend_heads_first, "as given": _attend_as_given}
        return ways[form.order](block, key, value, visible, softcap, softmax_dtype)

    length = query_block(form, b, n, t, key.shape[1])
    if length == t:
        return of_block((query, mask))
    count = -(-t // length)

    def blocks(x: Float[Array, "b t ..."]) -> Float[Array, "c b q ..."]:
        padded = jnp.pad(x, [(0, 0), (0, count * length - t)] + [(0, 0)] * (x.ndim - 2))
        return padded.reshape(b, count, length, *x.shape[2:]).swapaxes(0, 1)

    inputs = (blocks(query), None if mask is None else blocks(mask))
    attended = jax.lax.map(jax.checkpoint(of_block, prevent_cse=False), inputs)
    return attended.swapaxes(0, 1).reshape(b, count * length, *query.shape[2:])[:, :t]


def _attend_as_given(query: Array, key: Array, value: Array, mask: Array | None, softcap: float, softmax_dtype) -> Array:
    b, t, n, h = query.shape
    k = key.shape[2]
    logits = jnp.einsum("btkgh,bskh->bkgts", query.reshape(b, t, k, n // k, h), key, preferred_element_type=softmax_dtype)
    if softcap:
        logits = jnp.tanh(logits / softcap) * softcap
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, value).reshape(b, t, n, h)


def _attend_heads_first(query: Array, key: Array, value: Array, mask: Array | None, softcap: float, softmax_dtype) -> Array:
    b, t, n, h = query.shape
    s, k = key.shape[1:3]
    query = query.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4).reshape(b, k, -1, h)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    logits = cast(Array, scores(query, key, softmax_dtype))
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
