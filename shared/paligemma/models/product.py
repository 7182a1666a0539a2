"""Products of activations and weights: in the activations' dtype, or in float16 with float32 around them."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LARGEST = 2.0**8
"""Largest magnitude of a scaled operand: far from float16's ends (6e-8, 65504) on both sides."""


def product(equation: str, x: Float[Array, ...], weight: Float[Array, ...], dtype: jnp.dtype) -> Float[Array, ...]:
    """`einsum(equation, x, weight)` with both operands in `dtype`; the result has the dtype of `x`.

    float16 operands of float32 activations are scaled by a power of two each, the largest number of either to at most 256, and
    the result, accumulated in float32, is scaled back. So neither large activations (Gemma's exceed 65,504) nor small gradients
    are lost, and no loss scaling is needed. The gradient's products are made the same way.
    """
    if dtype == jnp.float16 and x.dtype == jnp.float32:
        return _scaled(equation, x, weight)
    # A weight in another dtype is converted again in the backward pass, not kept in the larger one for every layer until then.
    convert = jax.checkpoint(lambda x, weight: jnp.einsum(equation, x, weight.astype(x.dtype)), prevent_cse=False)
    return convert(x, weight)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scaled(equation: str, x: Array, weight: Array) -> Array:
    x_small, x_scale = _to_float16(x)
    weight_small, weight_scale = _to_float16(weight)
    result = jnp.einsum(equation, x_small, weight_small, preferred_element_type=jnp.float32)
    return result * (x_scale * weight_scale)


def _to_float16(x: Array) -> tuple[Array, Array]:
    """An array scaled into float16's middle, and the factor that undoes it. float16 arrays are taken as they are."""
    if x.dtype == jnp.float16:
        return x, jnp.float32(1.0)
    largest = jnp.max(jnp.abs(x.astype(jnp.float32)))
    exponent = jnp.ceil(jnp.log2(jnp.where(largest > 0, largest / _LARGEST, 1.0)))
    scale = jnp.exp2(exponent)
    return (x / scale).astype(jnp.float16), scale


def _forward(equation: str, x: Array, weight: Array):
    return _scaled(equation, x, weight), (x, weight)


def _backward(equation: str, saved, gradient: Array):
    x, weight = saved
    inputs, output = equation.split("->")
    of_x, of_weight = inputs.split(",")
    x_gradient = _scaled(f"{output},{of_weight}->{of_x}", gradient, weight)
    weight_gradient = _scaled(f"{of_x},{output}->{of_weight}", x, gradient)
    return x_gradient, weight_gradient.astype(weight.dtype)


_scaled.defvjp(_forward, _backward)
