"""The KV cache, and the two passes of decoding: over whole prompts, and over one more token of each answer.

Keys and values of prompts are computed once and then only read. Those of answers are separate. So candidate answers of one
prompt (samples, beams) share its cache, and prompts of unequal length need no alignment. A loop carries, and a beam search
reorders, only the answers' part.

Axes: b prompts, n candidate answers of each, p positions of a prompt, t positions of an answer, k key/value heads, g query
heads of each, h head width, d model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from paligemma.models.attention import MASKED, PLAIN, AttentionForm, attend, prefix_lm_mask
from paligemma.models.gemma import Attention, Block, apply_rope
from paligemma.models.layers import LayerPlan, loop_layers
from paligemma.models.paligemma import PaliGemma, with_image


class Prompt(NamedTuple):
    """What decoding needs from its prompts.

    Attributes:
        cache: keys `[b, k, h, p]` and values `[b, k, p, h]` of every layer: a list of pairs, or a pair with a layer axis.
        valid: False on padding.
        length: number of tokens, including those of the images.
    """

    cache: Any
    valid: Bool[Array, "b p"]
    length: Int[Array, " b"]


def prefill(
    model: PaliGemma,
    images: Float[Array, "b *n height width 3"],
    tokens: Int[Array, "b t"],
    mask_input: Bool[Array, "b t"],
    mask_ar: Int[Array, "b t"],
    form: AttentionForm = PLAIN,
) -> tuple[Float[Array, "b 1 v"], Prompt]:
    """Logits of the first token of every answer, and the prompts' cache for later tokens."""
    x = model.embed(model.embed_images(images, LayerPlan(attention=form)), tokens)
    mask_ar, valid = with_image(x.shape[1] - tokens.shape[1], mask_ar, mask_input)
    positions, mask = jnp.cumsum(valid, axis=1) - 1, prefix_lm_mask(mask_ar, valid)
    last = jnp.max(jnp.where(valid, jnp.arange(x.shape[1]), 0), axis=1, keepdims=True)

    def layer(block: Block, x, _, at=None):
        x, (keys, values) = block(x, positions, mask, at=at, form=form)
        return x, (keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2))

    layers = model.llm.layers
    if isinstance(layers, nnx.List):
        *lower, top = layers
        x, cache = _run(lower, layer, x, [None] * len(lower))
        x, of_top = layer(top, x, None, last)  # only these positions of the last layer are read
        cache = [*cache, of_top]
    else:
        x, cache = loop_layers(layer, layers, x)
        x = jnp.take_along_axis(x, last[:, :, None], axis=1)
    hidden = model.llm.final_norm(x)
    return model.llm.logits(hidden), Prompt(cache, valid, valid.sum(axis=1))


def empty_answers(prompt: Prompt, candidates: int, max_new_tokens: int) -> Any:
    """An empty cache for answers' keys and values `[b, k, n, t, h]`, with the structure of the prompt's cache."""

    def room(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        *front, _, width = pair[1].shape
        shape, dtype = (*front, candidates, max_new_tokens, width), pair[1].dtype
        return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)

    return list(map(room, prompt.cache)) if isinstance(prompt.cache, list) else room(prompt.cache)


def extend(
    model: PaliGemma, prompt: Prompt, answers: Any, tokens: Int[Array, "b n"], step: Int[Array, ""]
) -> tuple[Float[Array, "b n v"], Any]:
    """Logits after one more token of every answer, at position `step`, and the answers' updated cache."""
    x = model.llm.embed(tokens)
    positions = jnp.broadcast_to((prompt.length + step)[:, None], tokens.shape)

    def layer(block: Block, x, cache):
        answer = None

        def attention(x: Array) -> Array:
            nonlocal answer
            attended, answer = _attend(block.attn, x, positions, prompt.valid, step, *cache)
            return attended

        x = _layer(block, x, attention)
        return x, answer

    if isinstance(model.llm.layers, nnx.List):
        x, answers = _run(model.llm.layers, layer, x, list(zip(prompt.cache, answers, strict=True)))
    else:
        x, answers = loop_layers(layer, model.llm.layers, x, xs=(prompt.cache, answers))
    return model.llm.logits(model.llm.final_norm(x)), answers


def score(
    model: PaliGemma,
    prompt: Prompt,
    logits: Float[Array, "b 1 v"],
    texts: Int[Array, "b s"],
    mask: Bool[Array, "b s"],
) -> Float[Array, " b"]:
    """Log-probability of a given answer to each prompt. Reuses the prompt's cache.

    Args:
        model: the network.
        prompt: from `prefill`.
        logits: from `prefill`.
        texts: the answers, padded on the right.
        mask: False on padding.
    """
    width = texts.shape[1]
    x = model.llm.embed(texts)
    positions = prompt.length[:, None] + jnp.arange(width)
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((width, width), bool)), (len(texts), width, width))
    visible = jnp.broadcast_to(prompt.valid[:, None], (len(texts), width, prompt.valid.shape[1]))
    visible = jnp.concatenate([visible, causal], axis=2)

    def layer(block: Block, x, cache):
        def attention(x: Array) -> Array:
            query, key, value = block.attn.project(x)
            own = (apply_rope(key, positions), value)
            old = (cache[0].transpose(0, 3, 1, 2), cache[1].swapaxes(1, 2))
            keys, values = (jnp.concatenate(parts, axis=1) for parts in zip(old, own, strict=True))
            query = apply_rope(query, positions) * block.attn.scale
            return block.attn.output(attend(query, keys, values, visible, block.attn.softcap))

        return _layer(block, x, attention), None

    if isinstance(model.llm.layers, nnx.List):
        x, _ = _run(model.llm.layers, layer, x, prompt.cache)
    else:
        x, _ = loop_layers(layer, model.llm.layers, x, xs=prompt.cache)
    later = model.llm.logits(model.llm.final_norm(x[:, :-1]))
    every = jnp.concatenate([logits, later], axis=1)
    chosen = jnp.take_along_axis(every, texts[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(every, axis=-1)
    return jnp.sum(jnp.where(mask, chosen, 0.0), axis=1)


def _layer(block: Block, x: Array, attention: Callable[[Array], Array]) -> Array:
    """A decoder layer with a given attention function; see `gemma.Block`."""
    attended = attention(block.pre_attention_norm(x))
    x = x + (block.post_attention_norm(attended) if block.post_norms else attended)
    mixed = block.mlp(block.pre_ffw_norm(x))
    return x + (block.post_ffw_norm(mixed) if block.post_norms else mixed)


def _run(blocks, layer: Callable, x: Array, inputs: list) -> tuple[Array, list]:
    outputs = []
    for block, own in zip(blocks, inputs, strict=True):
        x, output = layer(block, x, own)
        outputs.append(output)
    return x, outputs


def _attend(
    attention: Attention,
    x: Float[Array, "b n d"],
    positions: Int[Array, "b n"],
    valid: Bool[Array, "b p"],
    step: Int[Array, ""],
    prompt: tuple[Float[Array, "b k h p"], Float[Array, "b k p h"]],
    answer: tuple[Float[Array, "b k n t h"], Float[Array, "b k n t h"]],
) -> tuple[Float[Array, "b n d"], tuple[Float[Array, "b k n t h"], Float[Array, "b k n t h"]]]:
    """Self-attention of one more token of every candidate, to its prompt and to its own answer so far."""
    query, key, value = attention.project(x)
    query = apply_rope(query, positions) * attention.scale
    start = (0, 0, 0, step, 0)
    keys, values = (
        jax.lax.dynamic_update_slice(cache, new.swapaxes(1, 2)[:, :, :, None].astype(cache.dtype), start)
        for cache, new in zip(answer, (apply_rope(key, positions), value), strict=True)
    )
    b, n, heads, h = query.shape
    k, p, t = keys.shape[1], valid.shape[1], keys.shape[3]
    g = heads // k
    grouped = query.reshape(b, n, k, g, h).swapaxes(1, 2)
    # All candidates' queries attend to their shared prompt at once, and each to its own answer.
    together = grouped.reshape(b, k, n * g, h)
    of_prompt = jnp.einsum("bkqh,bkhp->bkqp", together, prompt[0], preferred_element_type=jnp.float32)
    of_answer = jnp.einsum("bkngh,bknth->bkngt", grouped, keys, preferred_element_type=jnp.float32)
    logits = jnp.concatenate([of_prompt.reshape(b, k, n, g, p), of_answer], axis=-1)
    if attention.softcap:
        logits = jnp.tanh(logits / attention.softcap) * attention.softcap
    so_far = jnp.broadcast_to(jnp.arange(t) <= step, (b, t))
    visible = jnp.concatenate([valid, so_far], axis=1)[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(visible, logits, MASKED), axis=-1).astype(x.dtype)
    attended = jnp.einsum("bkqp,bkph->bkqh", weights[..., :p].reshape(b, k, n * g, p), prompt[1])
    attended = attended.reshape(b, k, n, g, h) + jnp.einsum("bkngt,bknth->bkngh", weights[..., p:], values)
    return attention.output(attended.swapaxes(1, 2).reshape(b, n, heads, h)), (keys, values)
