"""Products of activations and weights: in the activations' dtype, or in scaled float16 for float32 activations. Weights may be
quantized."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import CustomVJPPrimal
from jaxtyping import Array, Float

from paligemma.models.layers import PRODUCT_SAVED
from paligemma.models.quantized import Quantized

Weight: TypeAlias = Array | Quantized

_LARGEST = 2.0**8
"""Largest magnitude of a scaled operand: far from both ends of float16's range (6e-8, 65504)."""


def product(
    equation: str,
    x: Float[Array, ...],
    weight: Weight | tuple[Weight, ...],
    dtype: jnp.dtype,
    part: int | None = None,
    result: jnp.dtype | None = None,
) -> Float[Array, ...]:
    """`einsum(equation, x, weight)` with both operands in `dtype`; the result has the dtype of `x`, or `result`.

    If several weights are stored along a leading axis, or given as a tuple, `part` is the index of the one to use.

    For float16 products of float32 activations, each operand is scaled by a power of two, so that its largest magnitude is at
    most 256. The result, accumulated in float32, is scaled back. So neither large activations (Gemma's exceed 65,504) nor small
    gradients are lost, and no loss scaling is needed. Gradients use the same scaled products.

    The backward pass keeps the weight in its stored dtype, and `x` only if the weight is trained. Automatic differentiation
    would keep a converted copy: of a frozen float16 decoder, every layer once more in float32. It multiplies in the dtype of
    `x`, also when the result is wider; a weight's gradient is then as wide as the result.

    A quantized weight is frozen, and both passes read its codes. Where every output has one scale, the product is of `x` and
    the codes, which are whole numbers that every dtype represents, and is scaled afterwards. Otherwise the weight is made for
    this product alone.
    """
    if isinstance(weight, tuple):
        weight, part = weight[part or 0], None
    multiply = _scaled if dtype == jnp.float16 and x.dtype == jnp.float32 else _converted
    plan = _Plan(multiply, equation, part, x.dtype, x.dtype if result is None else jnp.dtype(result))
    return checkpoint_name(_product(plan, x, weight), PRODUCT_SAVED)


class _Plan(NamedTuple):
    """How to multiply `x` and a weight: everything but the arrays."""

    multiply: Callable[[str, Array, Array, jnp.dtype], Array]
    equation: str
    part: int | None
    x: jnp.dtype
    result: jnp.dtype

    def times(self, equation: str, x: Array, weight: Weight, result: jnp.dtype) -> Array:
        """The product with the weight to use."""
        picked = weight if self.part is None else weight[self.part]
        if isinstance(picked, Quantized):
            return _with_codes(self.multiply, equation, x, picked, result)
        return self.multiply(equation, x, picked, result)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(plan: _Plan, x: Array, weight: Weight) -> Array:
    return plan.times(plan.equation, x, weight, plan.result)


def _forward(plan: _Plan, x, weight):
    is_trained = any(leaf.perturbed for leaf in jax.tree.leaves(weight, is_leaf=_is_primal))
    value = jax.tree.map(lambda leaf: leaf.value, weight, is_leaf=_is_primal)
    return _product(plan, x.value, value), (x.value if is_trained else None, value)


def _is_primal(leaf: object) -> bool:
    return isinstance(leaf, CustomVJPPrimal)


def _backward(plan: _Plan, kept, gradient: Array):
    x, weight = kept
    inputs, output = plan.equation.split("->")
    of_x, of_weight = inputs.split(",")
    gradient = gradient.astype(plan.x)
    x_gradient = plan.times(f"{output},{of_weight}->{of_x}", gradient, weight, plan.x)
    if x is None:
        return x_gradient, None
    weight_gradient = plan.multiply(f"{of_x},{output}->{of_weight}", x, gradient, plan.result).astype(weight.dtype)
    return x_gradient, weight_gradient if plan.part is None else jnp.zeros_like(weight).at[plan.part].set(weight_gradient)


_product.defvjp(_forward, _backward, symbolic_zeros=True)


def _with_codes(multiply: Callable, equation: str, x: Array, weight: Quantized, result: jnp.dtype) -> Array:
    """The product with a quantized weight."""
    if weight.form.block:
        return multiply(equation, x, weight.values(jnp.dtype(jnp.float16 if multiply is _scaled else x.dtype)), result)
    inputs, output = equation.split("->")
    of_x, of_weight = inputs.split(",")
    summed = {of_weight[axis] for axis in weight.form.inputs}
    kept = [letter for letter in of_weight if letter not in summed]
    scales = weight.scales.reshape([size for letter, size in zip(of_weight, weight.codes.shape, strict=True) if letter in kept])

    def beside(letters: str) -> Array:
        """The scales, to multiply an array whose axes have these letters."""
        order = sorted(range(len(kept)), key=lambda axis: letters.index(kept[axis]))
        sizes = dict(zip(kept, scales.shape, strict=True))
        return scales.transpose(order).reshape([sizes.get(letter, 1) for letter in letters])

    codes = weight.codes.astype(jnp.float16 if multiply is _scaled else x.dtype)
    if set(kept) <= set(output):
        return (multiply(equation, x, codes, result) * beside(output)).astype(result)
    return multiply(equation, (x * beside(of_x)).astype(x.dtype), codes, result)


def _converted(equation: str, x: Array, weight: Array, result: jnp.dtype) -> Array:
    return jnp.einsum(equation, x, weight.astype(x.dtype), preferred_element_type=result)


def _scaled(equation: str, x: Array, weight: Array, result: jnp.dtype) -> Array:
    x_small, x_scale = _to_float16(x)
    weight_small, weight_scale = _to_float16(weight)
    product = jnp.einsum(equation, x_small, weight_small, preferred_element_type=jnp.float32)
    return (product * (x_scale * weight_scale)).astype(result)


def _to_float16(x: Array) -> tuple[Array, Array]:
    """An array scaled to the middle of float16's range, and the factor that undoes it. float16 arrays stay unchanged."""
    if x.dtype == jnp.float16:
        return x, jnp.float32(1.0)
    largest = jnp.max(jnp.abs(x.astype(jnp.float32)))
    exponent = jnp.ceil(jnp.log2(jnp.where(largest > 0, largest / _LARGEST, 1.0)))
    scale = jnp.exp2(exponent)
    return (x / scale).astype(jnp.float16), scale
