"""Adapters: nothing at the start, trained alone, merged exactly."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from paligemma.checkpoints.parameters import parameters_by_name
from paligemma.errors import InputError
from paligemma.models.config import DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.models.lora_factors import FACTORS, LoraConfig, adapted_weight, initial_factor, is_adapter, merge_adapter
from paligemma.models.paligemma import PaliGemma
from paligemma.training.recipe import parse_recipe
from paligemma.training.trainable import compile_pattern, parameter_groups, split_trainable

VISION = VisionConfig(image_size=8, patch_size=4, width=16, depth=1, mlp_dim=16, num_heads=2)


def config(kv_heads: int) -> PaliGemmaConfig:
    llm = DecoderConfig(width=32, depth=2, mlp_dim=48, num_heads=4, num_kv_heads=kv_heads, head_dim=8, vocab_size=61)
    return PaliGemmaConfig(img=VISION, llm=llm)


def hidden(model: PaliGemma) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 4, 32), np.float32)
    return np.asarray(model.hidden(image, rng.integers(0, 61, (2, 6)), np.tile([0, 0, 0, 1, 1, 1], (2, 1))))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_adapters_on_every_linear_merge_into_the_weights(kv_heads: int) -> None:
    lora = LoraConfig(rank=3, alpha=5.0, targets=tuple(FACTORS))
    plain = PaliGemma(config(kv_heads), rngs=nnx.Rngs(0))
    adapted = PaliGemma(config(kv_heads), lora=lora, rngs=nnx.Rngs(0))
    weights, parameters = parameters_by_name(plain), parameters_by_name(adapted)
    for name, variable in weights.items():
        parameters[name].set_value(variable.get_value())
    np.testing.assert_array_equal(hidden(adapted), hidden(plain))  # the second factor is zero

    rng = np.random.default_rng(1)
    factors = {name: variable for name, variable in parameters.items() if is_adapter(name)}
    for variable in factors.values():
        variable.set_value(rng.standard_normal(variable.shape).astype(np.float32) * 0.3)
    with_adapters = hidden(adapted)
    assert np.abs(with_adapters - hidden(plain)).max() > 0.1

    merged = set()
    for name in factors:
        target, weight = adapted_weight(name)
        if name.endswith("/a"):
            a, b = (np.asarray(factors[name[:-1] + factor][...]) for factor in "ab")
            weights[weight].set_value(merge_adapter(target, np.asarray(weights[weight][...]), a, b, 5.0 / 3))
            merged.add(target)
    assert merged == set(FACTORS) - ({"q_einsum", "kv_einsum"} if kv_heads == 4 else {"qkv_einsum"})
    np.testing.assert_allclose(hidden(plain), with_adapters, atol=2e-5)


def test_only_adapters_are_trained_by_lora_and_none_by_all() -> None:
    model = PaliGemma(config(1), lora=LoraConfig(rank=2), rngs=nnx.Rngs(0))
    _, trained, frozen = split_trainable(model, compile_pattern("lora"))
    assert {is_adapter("/".join(path)) for path, _ in nnx.to_flat_state(trained)} == {True}
    assert {is_adapter("/".join(path)) for path, _ in nnx.to_flat_state(frozen)} == {False}
    _, trained, _ = split_trainable(model, compile_pattern("all"))
    assert {is_adapter("/".join(path)) for path, _ in nnx.to_flat_state(trained)} == {False}
    sizes = {group.name: group.parameters for group in parameter_groups(parameters_by_name(model), compile_pattern("lora"))}
    # Rank 2, width 32, 4 heads of 8: queries 2 x (32 + 32), key and value 2 x 2 x (32 + 8), output 2 x (32 + 32); 2 layers.
    assert sizes["llm/layers/attn/lora"] == 2 * (128 + 160 + 128)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(InputError, match="nothing would be trained"):
        split_trainable(PaliGemma(config(1), rngs=nnx.Rngs(0)), compile_pattern("lora"))


def test_factors_start_as_seed_and_name_say() -> None:
    name = "llm/layers/attn/lora_q_einsum/a"
    first = initial_factor(name, (2, 32, 3), seed=0)
    np.testing.assert_array_equal(initial_factor(name, (2, 32, 3), seed=0), first)
    assert (initial_factor(name, (2, 32, 3), seed=1) != first).all()
    assert (initial_factor("llm/layers/attn/lora_kv_einsum/a", (2, 2, 32, 3), seed=0)[0, 0] != first[0]).all()
    assert first.std() == pytest.approx(32**-0.5, rel=0.2)
    assert not initial_factor("llm/layers/mlp/lora_linear/b", (2, 3, 32), seed=0).any()


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(InputError, match=r"lora\.targets.*did you mean 'q_einsum'"):
        parse_recipe("lora: {targets: [q_einsm]}")


def test_gradients_reach_both_factors_after_the_first_step() -> None:
    model = PaliGemma(config(1), lora=LoraConfig(rank=2, targets=tuple(FACTORS)), rngs=nnx.Rngs(0))
    graph, trained, frozen = split_trainable(model, compile_pattern("lora"))
    trained = jax.tree.map(lambda leaf: leaf + 0.01, trained)
    gradients = jax.grad(lambda t: (nnx.merge(graph, t, frozen).hidden(
        np.ones((1, 4, 32), np.float32), np.array([[1, 2, 3]]), np.array([[0, 1, 1]])) ** 3).sum())(trained)  # fmt: skip
    for path, variable in nnx.to_flat_state(gradients):
        assert np.abs(variable[...]).max() > 0, path
