"""Decodes on a machine's devices: one prefill, then one `lax.while_loop` that stops when every row has ended."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from paligemma.decoding.beam import Sequences, beam_search
from paligemma.decoding.cpu_layout import take_apart
from paligemma.decoding.kv_cache import Prompt, empty_answers, extend, prefill, score
from paligemma.decoding.sample import choose
from paligemma.decoding.settings import NO_EOS, DecodeSettings
from paligemma.models.attention import PLAIN, AttentionForm, attention_form
from paligemma.models.paligemma import PaliGemma
from paligemma.runtime.compile_cache import QUICK_ON_CPU
from paligemma.runtime.sharding import fsdp_sharding, shard_batch


class Decoded(NamedTuple):
    """Answers to a batch of prompts.

    Attributes:
        tokens: token ids. Tokens after a row's own eos are not part of its answer; positions that were not decoded are 0.
        logprobs: each token's log-probability under the model, in nats; 0 after the answer.
        scores: log-probability of the answer: the sum up to and including its eos.
        reference_scores: log-probability of the given references; 0 without references.
    """

    tokens: Int[np.ndarray, "b t"]
    logprobs: Float[np.ndarray, "b t"]
    scores: Float[np.ndarray, " b"]
    reference_scores: Float[np.ndarray, " b"]


class Generator:
    """A network that is ready to decode. On one CPU its layers are unstacked; elsewhere it is as it was built."""

    def __init__(self, module: PaliGemma, mesh: Mesh | None = None) -> None:
        """Keeps the network in place, or shards it over a mesh if given; batches are then split over the mesh too."""
        self.mesh = mesh
        graph, state = nnx.split(module)
        devices = {device for leaf in jax.tree.leaves(state) for device in leaf.devices()}
        platform = next(iter(devices)).platform if mesh is None else mesh.devices.flat[0].platform
        if mesh is not None and mesh.devices.size > 1:
            state = jax.tree.map(lambda leaf: jax.device_put(leaf, fsdp_sharding(mesh, leaf.shape)), state)
        elif len(devices) == 1 and platform == "cpu" and not isinstance(module.llm.layers, nnx.List):
            model = nnx.merge(graph, state)
            take_apart(model.llm)
            graph, state = nnx.split(model)
        self._graph, self._state = graph, state
        self._on_cpu = platform == "cpu"
        self._form = attention_form(platform, 1 if mesh is None else mesh.size)

    def __call__(
        self,
        images: Float[np.ndarray, "b *n height width 3"],
        tokens: Int[np.ndarray, "b t"],
        mask_input: Bool[np.ndarray, "b t"],
        mask_ar: Int[np.ndarray, "b t"],
        settings: DecodeSettings,
        eos_id: int | None = None,
        row_mask: Bool[np.ndarray, " b"] | None = None,
        row_seeds: Int[np.ndarray, " b"] | None = None,
        references: tuple[Int[np.ndarray, "b s"], Bool[np.ndarray, "b s"]] | None = None,
    ) -> Decoded:
        """Answers to prompts.

        Args:
            images: pixels in [-1, 1], `[b, n, height, width, 3]` if there are several for each prompt.
            tokens: prompts, padded on the right.
            mask_input: False on padding.
            mask_ar: the prompts' mask_ar; all 0 for an ordinary prefix.
            settings: how to decode.
            eos_id: None to decode the full length.
            row_mask: False for rows that only pad the batch and need not end; None when there are none.
            row_seeds: seed of each row's samples; by default the settings' seed plus its index in the batch.
            references: texts to score, padded on the right, and their mask, False on padding.
        """
        rows = len(tokens)
        row_mask = np.ones(rows, bool) if row_mask is None else np.asarray(row_mask, bool)
        row_seeds = settings.seed + np.arange(rows) if row_seeds is None else np.asarray(row_seeds)
        empty = np.zeros((rows, 0))
        texts, text_mask = references or (empty.astype(np.int32), empty.astype(bool))
        batch = (images, tokens, np.asarray(mask_input, bool), mask_ar, row_mask, row_seeds.astype(np.uint32), texts, text_mask)
        if self.mesh is not None and self.mesh.devices.size > 1:
            missing = -rows % self.mesh.devices.size
            filled = [np.concatenate([part, np.repeat(np.asarray(part)[:1], missing, axis=0)]) for part in batch]
            filled[4][rows:] = False
            batch = shard_batch(self.mesh, tuple(filled))
        eos = np.int32(NO_EOS if eos_id is None else eos_id)
        # The seed is in row_seeds: another one needs no other program.
        program = decode_once if self._on_cpu and jax.config.read("jax_disable_most_optimizations") else decode
        settings = dataclasses.replace(settings, seed=0)
        found = program(self._graph, self._state, *batch, eos, settings=settings, form=self._form)
        return Decoded(*(np.asarray(part)[:rows] for part in found))


def _decode(
    graph: nnx.GraphDef[PaliGemma],
    state: nnx.State,
    images: Float[Array, "b *n height width 3"],
    tokens: Int[Array, "b t"],
    mask_input: Bool[Array, "b t"],
    mask_ar: Int[Array, "b t"],
    row_mask: Bool[Array, " b"],
    row_seeds: Int[Array, " b"],
    references: Int[Array, "b s"],
    reference_mask: Bool[Array, "b s"],
    eos_id: Int[Array, ""],
    *,
    settings: DecodeSettings,
    form: AttentionForm = PLAIN,
) -> tuple[Int[Array, "b t"], Float[Array, "b t"], Float[Array, " b"], Float[Array, " b"]]:
    """What `Decoded` has, on the devices. See `Generator`; `graph` and `state` come from `nnx.split`."""
    model = nnx.merge(graph, state)
    logits, prompt = prefill(model, images, tokens, mask_input, mask_ar, form)
    given = score(model, prompt, logits, references, reference_mask) if references.shape[1] else jnp.zeros(len(tokens))
    if settings.beams > 1:
        best = beam_search(model, prompt, logits, row_mask, eos_id, settings.beams, settings.max_new_tokens)
        return best.tokens[:, 0], best.logprobs[:, 0], best.scores[:, 0], given
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), settings.best_of))(row_seeds)
    found = _sample(model, prompt, logits, keys, row_mask, eos_id, settings)
    best = found.take(jnp.argmax(found.scores, axis=1)[:, None])
    return best.tokens[:, 0], best.logprobs[:, 0], best.scores[:, 0], given


decode = jax.jit(_decode, static_argnames=("graph", "settings", "form"))
decode_once = jax.jit(_decode, static_argnames=("graph", "settings", "form"), compiler_options=QUICK_ON_CPU)
"""`decode` on CPUs, compiled in less time and slower to run."""


def _sample(
    model: PaliGemma,
    prompt: Prompt,
    logits: Float[Array, "b 1 v"],
    keys: Key[Array, "b n"],
    row_mask: Bool[Array, " b"],
    eos_id: Int[Array, ""],
    settings: DecodeSettings,
) -> Sequences:
    """Samples `best_of` answers to every prompt."""
    batch, candidates = keys.shape
    steps = settings.max_new_tokens

    def pick(logits: Array, step: Array) -> tuple[Array, Array]:
        return choose(logits, jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, step)))(keys), settings)

    def note(found: Sequences, step: Array, token: Array, logprob: Array, ended: Array) -> Sequences:
        """Stores tokens after an answer's eos too, as the reference does, but leaves them out of its likelihood."""
        return found.put(step, token, jnp.where(ended, 0.0, logprob))

    def running(carry) -> Bool[Array, ""]:
        step, _, _, _, ended = carry
        return (step < steps) & ~ended.all()

    def advance(carry):
        step, token, found, answers, ended = carry
        logits, answers = extend(model, prompt, answers, token, step - 1)
        token, logprob = pick(logits, step)
        return step + 1, token, note(found, step, token, logprob, ended), answers, ended | (token == eos_id)

    nothing = jnp.zeros((batch, candidates, steps))
    found = Sequences(nothing.astype(jnp.int32), nothing, nothing[..., 0])
    wide = jnp.broadcast_to(logits, (batch, candidates, logits.shape[-1]))
    token, logprob = pick(wide, jnp.int32(0))
    padding = jnp.broadcast_to(~row_mask[:, None], token.shape)
    found = note(found, jnp.int32(0), token, logprob, padding)
    answers = empty_answers(prompt, candidates, steps)
    first = (jnp.int32(1), token, found, answers, padding | (token == eos_id))
    return jax.lax.while_loop(running, advance, first)[2]
