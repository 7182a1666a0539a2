"""A decoder's layers taken apart for a CPU, each weight in the layout that its product reads.

In a loop on a CPU XLA would copy what is stacked, and turn round what is not a plain matrix, at every token: twice the weights'
bytes, where reading them once is all the time there is. MLPs, nine tenths of the weights, stay views of the stacked arrays.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from paligemma.models.gemma import Block, FeedForward, gelu_gate
from paligemma.models.product import product

_EQUATIONS = {
    "q_einsum": "btd,ndh->btnh",
    "kv_einsum": "btd,ckdh->cbtkh",
    "qkv_einsum": "btd,cndh->cbtnh",
    "attn_vec_einsum": "btnh,nhd->btd",
}


def taken_apart(layers: Block, depth: int) -> nnx.List:
    """The layers of a stack that is on one CPU, as a list."""
    graph, stacked = nnx.split(layers)

    def layer(index: int) -> Block:
        block = nnx.merge(graph, jax.tree.map(lambda leaf: _view(np.asarray(leaf)[index]), stacked))
        for name in _EQUATIONS:
            if hasattr(block.attn, name):
                einsum = getattr(block.attn, name)
                setattr(block.attn, name, _Matrix(_EQUATIONS[name], np.asarray(einsum.w[...]), einsum.dtype))
        if block.mlp.lora_gating_einsum is None and block.mlp.lora_linear is None:
            block.mlp = _Mlp(block.mlp)
        return block

    return nnx.List([layer(index) for index in range(depth)])


class _Matrix(nnx.Module):
    """`gemma.Einsum` with its weight as a matrix, from inputs to outputs."""

    def __init__(self, equation: str, weight: np.ndarray, dtype: jnp.dtype) -> None:
        inputs, self.output = equation.split("->")
        x, w = inputs.split(",")
        contracted, kept = [axis for axis in w if axis in x], [axis for axis in w if axis not in x]
        sizes = dict(zip(w, weight.shape, strict=True))
        self.kept, self.kept_sizes = "".join(kept), tuple(sizes[axis] for axis in kept)
        matrix = weight.transpose([w.index(axis) for axis in contracted + kept])
        self.w = nnx.Param(_view(matrix.reshape(int(np.prod([sizes[axis] for axis in contracted])), -1)))
        self.dtype = dtype

    def __call__(self, equation: str, x: Float[Array, "b t *inputs"]) -> Array:
        b, t = x.shape[:2]
        result = product("btd,df->btf", x.reshape(b, t, -1), self.w[...], self.dtype).reshape(b, t, *self.kept_sizes)
        return result.transpose([("bt" + self.kept).index(axis) for axis in self.output])


class _Mlp(nnx.Module):
    """`gemma.FeedForward` with its gate and up-projection apart."""

    def __init__(self, mlp: FeedForward) -> None:
        gate, up = np.asarray(mlp.gating_einsum[...])
        self.gate, self.up, self.linear = nnx.Param(_view(gate)), nnx.Param(_view(up)), mlp.linear
        self.dtype = mlp.dtype

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        gate, up = (product("btd,df->btf", x, weight[...], self.dtype) for weight in (self.gate, self.up))
        return product("btf,fd->btd", gelu_gate(gate, up), self.linear[...], self.dtype)


def _view(array: np.ndarray) -> Array:
    """An array of JAX's on the CPU: the same memory, where its alignment allows."""
    return jax.device_put(array, jax.devices("cpu")[0], may_alias=True)
