"""Products with weights: their gradients, and what they keep for them."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.models.scaled_matmul import product

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((2, 5, 8)), jnp.float32)
WEIGHTS = jnp.asarray(RNG.standard_normal((2, 8, 6)), jnp.float16)
FLOAT32 = jnp.dtype(jnp.float32)


@pytest.mark.parametrize("compute", ["float32", "float16"])
def test_a_part_of_stored_weights_has_the_gradients_of_a_plain_einsum(compute: str) -> None:
    weights = WEIGHTS.astype(jnp.float32)
    plain = jax.grad(lambda x, weights: jnp.sum(jnp.sin(jnp.einsum("btd,df->btf", x, weights[1]))), (0, 1))(X, weights)
    ours = jax.grad(lambda x, weights: jnp.sum(jnp.sin(product("btd,df->btf", x, weights, jnp.dtype(compute), 1))), (0, 1))(
        X, weights
    )
    for gradient, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-5 if compute == "float32" else 0.05)


def test_a_frozen_weight_is_kept_as_it_is_held_and_its_input_not_at_all() -> None:
    _, backward = jax.vjp(lambda x: product("btd,df->btf", x, WEIGHTS, FLOAT32, 1), X)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(backward)] == [(WEIGHTS.shape, jnp.float16)]


def test_the_input_of_a_trained_weight_is_kept() -> None:
    _, backward = jax.vjp(lambda x, weights: product("btd,df->btf", x, weights, FLOAT32, 0), X, WEIGHTS)
    assert sorted((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(backward)) == [
        (X.shape, "float32"),
        (WEIGHTS.shape, "float16"),
    ]


@pytest.mark.parametrize("compute", ["float32", "float16"])
def test_weights_that_are_apart_are_those_that_are_together(compute: str) -> None:
    together = product("btd,df->btf", X, WEIGHTS, jnp.dtype(compute), 1)
    np.testing.assert_array_equal(product("btd,df->btf", X, tuple(WEIGHTS), jnp.dtype(compute), 1), together)


def test_a_wide_result_has_gradients_of_narrow_products() -> None:
    """Otherwise the logits' backward pass would multiply in float32, with the whole embedding converted for it."""
    x, weight = X.astype(jnp.bfloat16), WEIGHTS[0]

    def loss(x, weight):
        return jnp.sum(jnp.sin(product("btd,df->btf", x, weight, jnp.dtype(jnp.bfloat16), result=FLOAT32)))

    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, weight).as_text()
    products = re.findall(r"dot_general .* : \(tensor<.*x(\w+)>, tensor<.*x(\w+)>\) -> tensor<.*x(\w+)>", program)
    assert sorted(products) == [("bf16", "bf16", "bf16")] + [("bf16", "bf16", "f32")] * 2  # the weight's is wide too
    expected = jax.grad(loss, (0, 1))(x.astype(jnp.float32), weight.astype(jnp.float32))
    for gradient, wide in zip(jax.grad(loss, (0, 1))(x, weight), expected, strict=True):
        np.testing.assert_allclose(gradient.astype(jnp.float32), wide, atol=0.1)
