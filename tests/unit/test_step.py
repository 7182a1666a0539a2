"""One step: every way to make it gives the same numbers, and what the recipe's switches do to them."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array

from paligemma.data.batch import TrainBatch, train_batch
from paligemma.models.config import DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.models.layers import LayerPlan
from paligemma.models.paligemma import PaliGemma
from paligemma.precision import Precision
from paligemma.training.loss import cross_entropy, token_weights, weighted_loss
from paligemma.training.step import StepSettings, batch_loss, init_state, make_loss_function, make_train_step
from paligemma.training.trainable import compile_pattern, split_trainable

CONFIG = PaliGemmaConfig(
    img=VisionConfig(image_size=8, patch_size=4, width=16, depth=2, mlp_dim=32, num_heads=2),
    llm=DecoderConfig(width=32, depth=3, mlp_dim=64, num_heads=4, num_kv_heads=2, head_dim=8, vocab_size=97),
)


def network(**kwargs) -> PaliGemma:
    return PaliGemma(CONFIG, rngs=nnx.Rngs(0), **kwargs)


def batch(rows: int = 8, seed: int = 0) -> TrainBatch:
    """Rows whose suffixes have from 1 to 7 tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 97, (rows, 13), np.int32)
    ends = rng.integers(6, 13, rows)
    suffix = ((np.arange(13) >= 5) & (np.arange(13) < ends[:, None])).astype(np.int32)
    return train_batch(rng.integers(0, 256, (rows, 8, 8, 3), np.uint8), tokens, suffix, suffix, loss_width=8)


@functools.cache
def plain():
    """Two plain steps of all parameters."""
    return stepped(StepSettings(), "all")


def stepped(settings: StepSettings, trainable: str = "attention", steps: int = 2, **kwargs):
    """Losses of a few steps, and the trained parameters after them."""
    graph, trained, frozen = split_trainable(network(**kwargs), compile_pattern(trainable))
    optimizer = optax.sgd(0.1)
    step, state, losses = make_train_step(graph, optimizer, settings), init_state(trained, optimizer), []
    for number in range(steps):
        state, metrics = step(state, frozen, batch(seed=number))
        losses.append(float(metrics.loss))
    return np.array(losses), jax.tree.leaves(state.trainable)


@pytest.mark.parametrize(
    "variant",
    [
        StepSettings(LayerPlan("none", unroll=True)),
        StepSettings(LayerPlan("dots")),
        StepSettings(LayerPlan("attention", unroll=True)),
        StepSettings(LayerPlan("full")),
        StepSettings(accumulate=8),
        StepSettings(loss_chunk=8),
        StepSettings(accumulate=4, loss_chunk=6),
    ],
    ids=str,
)
def test_every_way_to_make_a_step_gives_the_same(variant: StepSettings) -> None:
    losses, parameters = plain()
    other_losses, other_parameters = stepped(variant, "all")
    np.testing.assert_allclose(other_losses, losses, atol=1e-5)
    for ours, theirs in zip(other_parameters, parameters, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("per", ["example", "token"])
def test_accumulation_is_exact_when_parts_have_unequal_numbers_of_tokens(per: str) -> None:
    whole, after = stepped(StepSettings(loss_per=per))
    parts, after_parts = stepped(StepSettings(loss_per=per, accumulate=8))
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    for ours, theirs in zip(after_parts, after, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_loss_per_token_and_one_per_example_differ() -> None:
    assert abs(stepped(StepSettings(loss_per="token"))[0][0] - stepped(StepSettings())[0][0]) > 1e-3


@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.sampled_from(["example", "token"]))
def test_the_weights_of_a_batch_sum_to_one(lengths: list[int], per: str) -> None:
    mask = (np.arange(6) < np.array(lengths)[:, None]).astype(np.int32)
    weights = np.asarray(token_weights(jnp.asarray(mask), per))
    counted = np.count_nonzero(lengths)
    expected = counted / len(lengths) if per == "example" else float(counted > 0)
    assert weights.sum() == pytest.approx(expected, abs=1e-6)
    assert (weights[mask == 0] == 0).all()
    if per == "token" and counted:
        assert np.unique(weights[mask == 1]).size == 1


@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 64), st.integers(0, 2**31))
def test_chunks_change_nothing(rows: int, width: int, chunk: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hidden, table = rng.standard_normal((rows, width, 4), np.float32), rng.standard_normal((4, 11), np.float32)
    targets, weights = rng.integers(0, 11, (rows, width)), rng.random((rows, width), np.float32)
    expected = np.sum(np.asarray(jax.jit(cross_entropy)(hidden @ table, targets)) * weights)
    given = (jnp.asarray(targets), jnp.asarray(weights), 0.0, chunk)
    found = [
        jax.jit(jax.value_and_grad(lambda h: weighted_loss(lambda h: h @ table, h, *given, only_hidden=only)))(hidden)  # noqa: B023
        for only in (False, True)
    ]
    for loss, _ in found:
        np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-6)


@pytest.mark.parametrize(("trainable", "products"), [("attention", 2), ("all", 4)])
def test_a_frozen_embedding_multiplies_twice_for_a_chunk_of_the_loss(trainable: str, products: int) -> None:
    """The logits and the gradient of the hidden states. A trained one: the logits twice, and its own gradient too."""
    pattern = compile_pattern(trainable)
    graph, trained, frozen = split_trainable(network(), pattern)
    given = StepSettings(LayerPlan("full", trained=pattern.pattern), loss_chunk=16)

    def loss(trained: nnx.State) -> Array:
        return batch_loss(nnx.merge(graph, trained, frozen), batch(), given)

    program = jax.jit(jax.value_and_grad(loss)).lower(trained).as_text()
    of_logits = re.findall(r"stablehlo.dot_general.*tensor<(?:\d+x)*97(?:x\d+)*xf32>.*", program)
    assert len(of_logits) == products


def test_label_smoothing_is_a_cross_entropy_with_soft_targets() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((2, 3, 7)).astype(np.float32), rng.integers(0, 7, (2, 3))
    soft = np.full((2, 3, 7), 0.3 / 6)
    np.put_along_axis(soft, targets[..., None], 0.7, axis=-1)
    expected = -(soft * np.asarray(jax.nn.log_softmax(logits))).sum(-1)
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), jnp.asarray(targets), 0.3), expected, rtol=1e-5)


def test_dropout_is_determined_by_seed_and_step_and_differs_between_parts() -> None:
    losses, _ = stepped(StepSettings(dropout=0.5))
    again, _ = stepped(StepSettings(dropout=0.5))
    looped_and_unrolled, _ = stepped(StepSettings(LayerPlan(unroll=True), dropout=0.5))
    other_seed, _ = stepped(StepSettings(dropout=0.5, seed=1))
    np.testing.assert_array_equal(again, losses)
    np.testing.assert_allclose(looped_and_unrolled, losses, atol=1e-5)
    assert abs(other_seed - losses).min() > 1e-4
    assert abs(stepped(StepSettings())[0] - losses).min() > 1e-4


def test_dropout_keeps_the_expected_size_and_drops_the_share() -> None:
    from paligemma.models.gemma import Dropout

    x = jnp.ones((4, 100, 50))
    dropped = np.asarray(Dropout(0.25, jax.random.key(0))(x, 0, 100))
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.02)
    assert dropped.mean() == pytest.approx(1.0, abs=0.02)
    assert (np.asarray(Dropout(0.25, jax.random.key(0))(x, 1, 100)) != dropped).any()


def test_a_step_that_is_not_finite_is_left_out_and_counted_as_a_batch() -> None:
    graph, trained, frozen = split_trainable(network(), compile_pattern("attention"))
    optimizer = optax.adam(0.1)
    step = make_train_step(graph, optimizer, StepSettings(skip_non_finite=True))
    state, _ = step(init_state(trained, optimizer), frozen, batch())
    before = jax.tree.map(np.asarray, (state.trainable, state.optimizer))
    broken = batch()._replace(images=np.full((8, 8, 8, 3), np.nan, np.float32))
    state, metrics = step(state, frozen, broken)
    assert not np.isfinite(metrics.loss)
    assert int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, (state.trainable, state.optimizer), before)
    state, metrics = step(state, frozen, batch())
    assert np.isfinite(metrics.loss)


def test_embeddings_in_place_of_images_give_the_same_loss() -> None:
    model, one = network(), batch()
    pixels = jnp.asarray(one.images, jnp.float32) / 127.5 - 1.0
    np.testing.assert_allclose(batch_loss(model, one), batch_loss(model, one._replace(images=model.img(pixels))), atol=1e-6)


def test_the_loss_of_several_images_is_that_of_their_embeddings_one_after_the_other() -> None:
    """By hand: each image alone through the tower, joined in NumPy, with a mask in which everything sees all images."""
    model, one = network(), batch()
    images = np.random.default_rng(3).integers(0, 256, (8, 3, 8, 8, 3), np.uint8)
    several = one._replace(images=images)
    alone = [np.asarray(model.img(jnp.asarray(images[:, number], jnp.float32) / 127.5 - 1.0)) for number in range(3)]
    joined = np.concatenate(alone, axis=1)
    assert joined.shape == (8, 3 * CONFIG.img.num_patches, CONFIG.llm.width)
    np.testing.assert_allclose(batch_loss(model, several), batch_loss(model, one._replace(images=joined)), atol=1e-6)
    text = np.asarray(model.llm.embed(one.tokens))
    x = np.concatenate([joined, text], axis=1)
    image_tokens, positions = joined.shape[1], np.broadcast_to(np.arange(x.shape[1]), x.shape[:2])
    blocks = np.cumsum(np.concatenate([np.zeros((8, image_tokens), int), one.mask_ar], axis=1), axis=1)
    mask = jnp.asarray(blocks[:, None, :] <= blocks[:, :, None])
    hidden = model.llm(jnp.asarray(x), jnp.asarray(positions), mask, jnp.asarray(one.loss_positions + image_tokens))
    losses = -jax.nn.log_softmax(model.llm.logits(hidden))
    chosen = np.take_along_axis(np.asarray(losses), one.targets[..., None], axis=2)[..., 0] * one.mask_loss
    by_hand = np.mean(chosen.sum(axis=1) / one.mask_loss.sum(axis=1))
    np.testing.assert_allclose(batch_loss(model, several), by_hand, rtol=1e-5)
    for variant in (StepSettings(accumulate=4), StepSettings(LayerPlan("full", unroll=True))):
        graph, trained, frozen = split_trainable(model, compile_pattern("all"))
        optimizer = optax.sgd(0.1)
        _, metrics = make_train_step(graph, optimizer, variant)(init_state(trained, optimizer), frozen, several)
        np.testing.assert_allclose(metrics.loss, by_hand, rtol=1e-5)
        model = network()


def test_a_loss_function_counts_tokens() -> None:
    graph, trained, frozen = split_trainable(network(), compile_pattern("attention"))
    loss_of, one = make_loss_function(graph, StepSettings(label_smoothing=0.5, dropout=0.5)), batch()
    total, tokens = loss_of(trained, frozen, one)
    assert tokens == one.mask_loss.sum()
    np.testing.assert_allclose(total / tokens, batch_loss(network(), one, StepSettings(loss_per="token")), rtol=1e-5)


def test_a_step_compiles_once_per_bucket() -> None:
    graph, trained, frozen = split_trainable(network(), compile_pattern("attention"))
    optimizer = optax.sgd(0.1)
    step, state = make_train_step(graph, optimizer), init_state(trained, optimizer)
    narrow = batch()
    wide = narrow._replace(tokens=np.pad(narrow.tokens, ((0, 0), (0, 4))), mask_ar=np.pad(narrow.mask_ar, ((0, 0), (0, 4))))
    for one in (narrow, wide, narrow, wide, batch(seed=3), wide, narrow):
        state, _ = step(state, frozen, jax.device_put(one))
    assert step._cache_size() == 2


@pytest.mark.parametrize("scale", [1.0, 3e4])
def test_float16_products_survive_activations_beyond_its_range(scale: float) -> None:
    """The residual stream is made larger than float16's 65,504 by embeddings of that size."""
    results = {}
    for compute in ("float32", "float16"):
        model = network(precision=Precision.of(compute))
        table = model.llm.embedder.input_embedding
        table.set_value(table[...] * scale)
        graph, trained, frozen = split_trainable(model, compile_pattern("llm"))
        loss, gradients = jax.value_and_grad(lambda t, g=graph, f=frozen: batch_loss(nnx.merge(g, t, f), batch()))(trained)
        results[compute] = float(loss), jax.tree.leaves(gradients)
    if scale > 1:
        assert float(jnp.abs(model.llm.embed(jnp.arange(97)[None])).max()) > 65504
    (loss, gradients), (expected, expected_gradients) = results["float16"], results["float32"]
    assert loss == pytest.approx(expected, rel=5e-3)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert np.isfinite(ours).all()
        assert float(jnp.linalg.norm(ours - theirs)) < 0.02 * float(jnp.linalg.norm(theirs)) + 1e-12


def test_bfloat16_activations_are_bfloat16_and_the_loss_is_near() -> None:
    model = network(precision=Precision.of("bfloat16"))
    assert model.llm.embed(jnp.zeros((1, 2), jnp.int32)).dtype == jnp.bfloat16
    assert float(batch_loss(model, batch())) == pytest.approx(float(batch_loss(network(), batch())), rel=0.02)
