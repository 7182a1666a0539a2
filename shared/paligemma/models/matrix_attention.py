"""Attention whose weights are two plain matrices, for decoding on GPUs: one for queries, keys and values, one for the output.

With several rows, XLA's products there read no other layout in place: a weight that is no plain matrix is transposed for every
token, and weights that multiply the same input are written side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from paligemma.models.gemma import Attention
from paligemma.models.scaled_matmul import product

MATRICES = {"qkv": ("q_einsum", "kv_einsum", "qkv_einsum"), "attn_vec": ("attn_vec_einsum",)}
"""For each matrix the weights of `gemma.Attention` that are in it, in this order. An architecture has some of them."""


class MatrixAttention(Attention):
    """`gemma.Attention` without adapters, as matrices `qkv [d, (n + 2k) h]` and `attn_vec [n h, d]`."""

    def __init__(self, attention: Attention) -> None:
        """Takes the place of another one that has shapes instead of parameters."""
        self.heads, self.head_dim, width = attention.attn_vec_einsum.w.get_value().shape
        weights = [getattr(attention, part).w.get_value() for part in MATRICES["qkv"] if hasattr(attention, part)]
        columns = sum(weight.size for weight in weights) // width

        def shape(*sizes: int) -> nnx.Param[Array]:
            return nnx.Param(cast(Array, jax.ShapeDtypeStruct(sizes, weights[0].dtype)))

        self.qkv = shape(width, columns)
        self.attn_vec = shape(self.heads * self.head_dim, width)
        self.dtype = attention.attn_vec_einsum.dtype
        self.scale, self.softcap = attention.scale, attention.softcap

    def project(
        self, x: Float[Array, "b t d"], at: Int[Array, "b q"] | None = None
    ) -> tuple[Float[Array, "b q n h"], Float[Array, "b t k h"], Float[Array, "b t k h"]]:
        """See `gemma.Attention`."""
        every = product("btd,df->btf", x, self.qkv.get_value(), self.dtype).reshape(*x.shape[:2], -1, self.head_dim)
        query = every[:, :, : self.heads]
        key, value = jnp.split(every[:, :, self.heads :], 2, axis=2)
        return query if at is None else jnp.take_along_axis(query, at[:, :, None, None], axis=1), key, value

    def output(self, attended: Float[Array, "b q n h"]) -> Float[Array, "b q d"]:
        """See `gemma.Attention`."""
        return product("btf,fd->btd", attended.reshape(*attended.shape[:2], -1), self.attn_vec.get_value(), self.dtype)


def as_matrix(name: str, weights: Sequence[Float[np.ndarray, ...]]) -> Float[np.ndarray, "i o"]:
    """A matrix of `MATRICES`, made of one layer's weights."""
    if name == "attn_vec":
        (weight,) = weights
        return weight.reshape(-1, weight.shape[-1])
    return np.concatenate([np.moveaxis(weight, -2, 0).reshape(weight.shape[-2], -1) for weight in weights], axis=1)
