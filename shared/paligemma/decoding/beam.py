"""Beam search with the semantics of big_vision's `beam_decode`: scores are sums of log-probabilities, whatever the length.

At every step, each live sequence could end; the best ended sequence so far is kept. Then the best continuations by a token
other than eos stay alive. A row is done when no live sequence is as likely as its best ended one, since likelihood only falls.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from paligemma.decoding.kv_cache import Prompt, empty_answers, extend
from paligemma.models.paligemma import PaliGemma


class Sequences(NamedTuple):
    """Token ids, their log-probabilities, and the sums of these."""

    tokens: Int[Array, "b n t"]
    logprobs: Float[Array, "b n t"]
    scores: Float[Array, "b n"]

    def take(self, which: Int[Array, "b m"]) -> Sequences:
        """Some of the sequences of every row."""
        tokens, logprobs = (jnp.take_along_axis(part, which[..., None], axis=1) for part in self[:2])
        return Sequences(tokens, logprobs, jnp.take_along_axis(self.scores, which, axis=1))

    def put(self, step: Int[Array, ""], tokens: Int[Array, "b n"], logprobs: Float[Array, "b n"]) -> Sequences:
        """The sequences with one more token each, at position `step`."""
        return Sequences(
            self.tokens.at[:, :, step].set(tokens), self.logprobs.at[:, :, step].set(logprobs), self.scores + logprobs
        )


class _State(NamedTuple):
    step: Int[Array, ""]
    ended: Sequences
    live: Sequences
    answers: Any


def beam_search(
    model: PaliGemma,
    prompt: Prompt,
    logits: Float[Array, "b 1 v"],
    row_mask: Bool[Array, " b"],
    eos_id: Int[Array, ""],
    beams: int,
    max_new_tokens: int,
) -> Sequences:
    """The best ended sequence of every row (n = 1); it always has an eos, followed by 0."""
    batch = row_mask.shape[0]
    nothing = Sequences(
        jnp.zeros((batch, 1, max_new_tokens), jnp.int32),
        jnp.zeros((batch, 1, max_new_tokens)),
        jnp.zeros((batch, 1)),
    )
    unended = nothing._replace(scores=jnp.full((batch, 1), -jnp.inf))
    ended, live, _ = _grow(unended, nothing, logits, jnp.int32(0), eos_id, beams)

    def running(state: _State) -> Bool[Array, ""]:
        done = (state.live.scores.max(axis=1) < state.ended.scores[:, 0]) | ~row_mask
        return (state.step < max_new_tokens) & ~done.all()

    def advance(state: _State) -> _State:
        last = jax.lax.dynamic_index_in_dim(state.live.tokens, state.step - 1, axis=2, keepdims=False)
        logits, answers = extend(model, prompt, state.answers, last, state.step - 1)
        ended, live, source = _grow(state.ended, state.live, logits, state.step, eos_id, beams)
        answers = jax.tree.map(lambda cache: _reorder(cache, source), answers)
        return _State(state.step + 1, ended, live, answers)

    state = _State(jnp.int32(1), ended, live, empty_answers(prompt, beams, max_new_tokens))
    return jax.lax.while_loop(running, advance, state).ended


def _grow(
    ended: Sequences, live: Sequences, logits: Float[Array, "b n v"], step: Int[Array, ""], eos_id: Int[Array, ""], beams: int
) -> tuple[Sequences, Sequences, Int[Array, "b m"]]:
    """The best ended sequence, the live ones with one more token, and the index of the old sequence each came from."""
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    ending = live.put(step, jnp.full(live.scores.shape, eos_id), jnp.take(logprobs, eos_id, axis=-1))
    both = Sequences(*(jnp.concatenate(parts, axis=1) for parts in zip(ended, ending, strict=True)))
    ended = both.take(jnp.argmax(both.scores, axis=1)[:, None])
    # One more per sequence than is kept, because eos may be among them.
    best, tokens = jax.lax.top_k(logprobs, min(beams + 1, logprobs.shape[-1]))
    scores = jnp.where(tokens == eos_id, jnp.finfo(best.dtype).min, live.scores[..., None] + best)
    flat = (scores.shape[0], -1)
    _, chosen = jax.lax.top_k(scores.reshape(flat), beams)
    source = chosen // best.shape[-1]
    token, logprob = (jnp.take_along_axis(part.reshape(flat), chosen, axis=1) for part in (tokens, best))
    return ended, live.take(source).put(step, token, logprob), source


def _reorder(cache: Float[Array, "*layer b k n t h"], source: Int[Array, "b n"]) -> Float[Array, "*layer b k n t h"]:
    layers = (1,) * (cache.ndim - 5)
    return jnp.take_along_axis(cache, source.reshape(*layers, len(source), 1, -1, 1, 1), axis=-3)
