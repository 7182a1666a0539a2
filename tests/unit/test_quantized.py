"""Products with quantized weights: equal to those with the weights that their codes stand for, and nothing else is kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.models.quantized import Quantized
from paligemma.models.scaled_matmul import product
from paligemma.models.weight_formats import WeightFormat, dequantize, quantize

RNG = np.random.default_rng(0)
FLOAT32 = jnp.dtype(jnp.float32)
CASES = {  # equation: shapes of x and of the weight, the axes that are summed over
    "btd,ndh->btnh": ((2, 3, 64), (4, 64, 8), (-2,)),
    "btd,ckdh->cbtkh": ((2, 3, 64), (2, 1, 64, 8), (-2,)),
    "btnh,nhd->btd": ((2, 3, 4, 16), (4, 16, 64), (-3, -2)),
    "btf,fd->btd": ((2, 3, 64), (64, 8), (-2,)),
    "btd,vd->btv": ((2, 3, 64), (30, 64), (-1,)),
}
BOUNDS = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 0.01}
"""Largest difference, relative to the largest value, from the product with the plain weight in float32."""


def weight_for(equation: str, kind: str, heavy: bool = False) -> tuple[Quantized, np.ndarray]:
    _, shape, inputs = CASES[equation]
    draw = RNG.standard_t(2, shape) if heavy else RNG.standard_normal(shape)
    form = WeightFormat("nf4", inputs, 8) if kind == "nf4" else WeightFormat("int8", inputs)
    codes, scales = quantize(draw.astype(np.float32), form)
    return Quantized(jnp.asarray(codes), jnp.asarray(scales), form), dequantize(codes, scales, form)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("equation", CASES)
def test_values_are_those_of_the_reference_to_the_bit(equation: str, kind: str) -> None:
    weight, plain = weight_for(equation, kind)
    np.testing.assert_array_equal(weight.values(FLOAT32), plain)
    assert (weight.shape, weight.size, weight.ndim) == (plain.shape, plain.size, plain.ndim)


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy outliers"])
@pytest.mark.parametrize("compute", BOUNDS)
@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("equation", CASES)
def test_products_and_gradients_are_those_of_the_plain_weight(equation: str, kind: str, compute: str, heavy: bool) -> None:
    weight, plain = weight_for(equation, kind, heavy)
    activations = jnp.bfloat16 if compute == "bfloat16" else jnp.float32
    x = jnp.asarray(RNG.standard_normal(CASES[equation][0]), activations)
    upstream = jnp.asarray(RNG.standard_normal(jnp.einsum(equation, x, plain).shape), activations)

    def ours(x):
        return product(equation, x, weight, jnp.dtype(compute))

    def reference(x):
        return jnp.einsum(equation, x, plain, precision="highest")

    found, backward = jax.vjp(ours, x)
    expected, of_reference = jax.vjp(reference, x.astype(jnp.float32))
    assert found.dtype == x.dtype
    for one, other in ((found, expected), (backward(upstream)[0], of_reference(upstream.astype(jnp.float32))[0])):
        largest = float(jnp.abs(other).max())
        np.testing.assert_allclose(one.astype(jnp.float32) / largest, other / largest, atol=BOUNDS[compute])


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_gradients_are_finite_differences_in_float64(kind: str) -> None:
    weight, _ = weight_for("btd,ndh->btnh", kind)
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.standard_normal((1, 2, 64)), jnp.float64)

        def loss(x):
            return jnp.sum(jnp.sin(product("btd,ndh->btnh", x, weight, jnp.dtype(jnp.float64))))

        gradient = jax.grad(loss)(x)
        for place in ((0, 0, 0), (0, 1, 17), (0, 1, 63)):
            step = jnp.zeros_like(x).at[place].set(1e-6)
            slope = (loss(x + step) - loss(x - step)) / 2e-6
            np.testing.assert_allclose(gradient[place], slope, rtol=1e-7)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_backward_pass_keeps_codes_and_scales_and_no_floats(kind: str) -> None:
    weight, _ = weight_for("btf,fd->btd", kind)
    x = jnp.ones((2, 3, 64))
    _, backward = jax.vjp(lambda x: product("btf,fd->btd", x, weight, FLOAT32), x)
    kept = sorted((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(backward))
    assert kept == sorted((leaf.shape, str(leaf.dtype)) for leaf in (weight.codes, weight.scales))


def test_int8_products_read_codes_and_not_floats_of_the_weights_size() -> None:
    """A float weight beside its codes would be the second copy that quantizing is to save."""
    weight, _ = weight_for("btf,fd->btd", "int8")
    program = jax.jit(lambda x: product("btf,fd->btd", x, weight, jnp.dtype(jnp.bfloat16))).lower(
        jnp.ones((2, 3, 64), jnp.bfloat16)
    )
    assert "dot_general" in program.as_text()
    assert "tensor<64x8xf32>" not in program.as_text()


def test_a_part_and_a_tuple_of_parts_are_the_same() -> None:
    draw = RNG.standard_normal((2, 64, 8)).astype(np.float32)
    form = WeightFormat("int8", (-2,))
    both = Quantized(*map(jnp.asarray, quantize(draw, form)), form)
    x = jnp.asarray(RNG.standard_normal((2, 3, 64)), jnp.float32)
    for part in (0, 1):
        plain = jnp.einsum("btd,df->btf", x, both.values(FLOAT32)[part])
        for weights in (both, (both[0], both[1])):
            np.testing.assert_allclose(product("btd,df->btf", x, weights, FLOAT32, part), plain, atol=1e-5)


def test_rows_of_a_table_are_looked_up_by_number() -> None:
    table, plain = weight_for("btd,vd->btv", "int8")
    tokens = jnp.asarray([[3, 29, 0], [3, 3, 1]])
    np.testing.assert_array_equal(table.rows(tokens), plain[np.asarray(tokens)])
