"""Quantized weights on devices: codes and scales in place of an array, and what products and look-ups make of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int8, UInt8

from paligemma.models.weight_formats import NF4_LEVELS, WeightFormat

Tree = TypeVar("Tree")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A weight as codes and scales; see `weight_formats.quantize`. Leading axes, such as that of layers, can be indexed.

    Attributes:
        codes: int8; for nf4 two codes in a byte.
        scales: one for each output, or for each block.
        form: how it is quantized.
    """

    codes: Int8[Array, "*codes"] | UInt8[Array, "*codes"]
    scales: Float32[Array, "*scales"]
    form: WeightFormat = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        shape = list(self.codes.shape)
        if self.form.kind == "nf4":
            shape[self.form.inputs[-1]] *= 2
        return tuple(shape)

    @property
    def ndim(self) -> int:
        """Number of the weight's axes."""
        return self.codes.ndim

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.codes.size * (2 if self.form.kind == "nf4" else 1)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    @property
    def dtype(self) -> str:
        """Name of the format, for people."""
        return self.form.kind

    def __getitem__(self, index: Any) -> Quantized:
        """A part by its index in leading axes, or the whole by an ellipsis."""
        return self if index is Ellipsis else jax.tree.map(lambda leaf: leaf[index], self)

    def values(self, dtype: jnp.dtype) -> Float[Array, "*shape"]:
        """The weight in a float dtype: level times scale, rounded once."""
        if self.form.kind == "int8":
            return (self.codes.astype(jnp.float32) * self.scales).astype(dtype)
        axis, half = self.form.inputs[-1], self.form.block // 2
        place = self.codes.ndim + axis
        halves = self.codes.reshape(*self.codes.shape[:place], -1, half, *self.codes.shape[place + 1 :])
        levels = _levels(jnp.concatenate([halves & 15, halves >> 4], axis))
        return (levels * jnp.expand_dims(self.scales, axis)).astype(dtype).reshape(self.shape)

    def rows(self, numbers: Int[Array, "*n"]) -> Float32[Array, "*n d"]:
        """Rows of a table by their numbers."""
        return self[numbers].values(jnp.dtype(jnp.float32))


def _levels(codes: UInt8[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """The levels of nf4 by their codes, chosen by four bits: TPUs take far longer to look up single elements of a table."""
    # Added to each level, so that it depends on the codes: JAX takes what does not out of a loop over layers, where 16 levels
    # would be 16 arrays of the weight's size in float32. XLA removes the sums.
    nothing = (codes & 0).astype(jnp.float32)
    levels = [nothing + level for level in NF4_LEVELS]
    for bit in range(4):
        is_set = (codes >> bit & 1) != 0
        levels = [jnp.where(is_set, odd, even) for even, odd in zip(levels[::2], levels[1::2], strict=True)]
    return levels[0]


def is_quantized(value: Any) -> bool:
    """Whether a node of a tree is a quantized weight; for `is_leaf`."""
    return isinstance(value, Quantized)


def dequantized(tree: Tree, dtype: jnp.dtype) -> Tree:
    """A tree with its quantized weights in a float dtype."""
    return jax.tree.map(lambda leaf: leaf.values(dtype) if is_quantized(leaf) else leaf, tree, is_leaf=is_quantized)
