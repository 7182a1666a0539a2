"""Greedy decoding with a KV cache: one prefill, then one `lax.while_loop` that stops when every row has ended."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from paligemma.models.attention import prefix_lm_mask
from paligemma.models.gemma import KVCache
from paligemma.models.paligemma import PaliGemma, with_image

NO_EOS = -1
"""An `eos_id` that no token has: decode the full length."""


@partial(jax.jit, static_argnames=("graph", "max_new_tokens"))
def greedy_decode(
    graph: nnx.GraphDef[PaliGemma],
    state: nnx.State,
    images: Float[Array, "b height width 3"],
    tokens: Int[Array, "b t"],
    mask_input: Bool[Array, "b t"],
    mask_ar: Int[Array, "b t"],
    row_mask: Bool[Array, " b"],
    eos_id: Int[Array, ""],
    *,
    max_new_tokens: int,
) -> Int[Array, "b max_new_tokens"]:
    """The most likely token, again and again.

    Stops when every row of `row_mask` has produced `eos_id`; what a row holds after its own eos is not part of its answer,
    and what was never decoded is 0.

    Args:
        graph, state: of `nnx.split(model)`.
        images: in [-1, 1].
        tokens: prompts, padded on the right.
        mask_input: False on padding.
        mask_ar: of the prompts; 0 throughout for an ordinary prefix.
        row_mask: False for rows that only pad the batch.
        eos_id: a token id, or `NO_EOS`.
        max_new_tokens: columns of the result.
    """
    model = nnx.merge(graph, state)
    batch = tokens.shape[0]
    x = model.embed(model.img(images), tokens)
    mask_ar, valid = with_image(x.shape[1] - tokens.shape[1], mask_ar, mask_input)
    # With every prompt flush right, the next token of every row takes the same slot of the cache.
    x, valid, mask_ar = _flush_right(x, valid, mask_ar)
    prompt = x.shape[1]
    positions = jnp.cumsum(valid, axis=1) - 1
    hidden, cache = model.llm.prefill(x, positions, prefix_lm_mask(mask_ar, valid))
    cache = KVCache(*(jnp.pad(part, ((0, 0), (0, 0), (0, max_new_tokens), (0, 0), (0, 0))) for part in cache))
    length = valid.sum(axis=1)
    visible = jnp.pad(valid, ((0, 0), (0, max_new_tokens)))
    slots = jnp.arange(prompt + max_new_tokens)

    def choose(hidden: Float[Array, "b 1 d"]) -> Int[Array, " b"]:
        return jnp.argmax(model.llm.logits(hidden)[:, 0], axis=-1).astype(jnp.int32)

    def running(carry) -> Bool[Array, ""]:
        step, _, _, _, ended = carry
        return (step < max_new_tokens) & ~ended.all()

    def advance(carry):
        step, token, output, cache, ended = carry
        output = jax.lax.dynamic_update_slice(output, token[:, None], (0, step))
        ended = ended | (token == eos_id)
        slot = prompt + step
        mask = visible | ((slots >= prompt) & (slots <= slot))
        hidden, cache = model.llm.step(model.llm.embed(token[:, None]), (length + step)[:, None], mask[:, None], cache, slot)
        return step + 1, choose(hidden), output, cache, ended

    output = jnp.zeros((batch, max_new_tokens), jnp.int32)
    first = (jnp.int32(0), choose(hidden[:, -1:]), output, cache, ~row_mask)
    return jax.lax.while_loop(running, advance, first)[2]


def _flush_right(x: Float[Array, "b p d"], valid: Bool[Array, "b p"], mask_ar: Int[Array, "b p"]):
    """Rolls each row so that its last real token is the last column."""
    columns = jnp.arange(valid.shape[1])
    end = jnp.max(jnp.where(valid, columns + 1, 0), axis=1, keepdims=True)
    source = (columns + end) % valid.shape[1]
    take = partial(jnp.take_along_axis, axis=1)
    return take(x, source[..., None]), take(valid, source), take(mask_ar, source)
