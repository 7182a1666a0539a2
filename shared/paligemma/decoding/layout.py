"""A decoder's layers taken apart for a CPU, each weight in the layout that its product reads.

In a loop on a CPU XLA would copy what is stacked, and turn round what is not a plain matrix, at every token: twice the weights'
bytes, where reading them once is all the time there is. An MLP's gate and up-projection, and the embedding, stay views of the
stacked arrays; attention and the MLP's second product are copied.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from paligemma.models.gemma import Block, Decoder, Embedder, FeedForward, gelu_gate
from paligemma.models.product import product

_EQUATIONS = {
    "q_einsum": "btd,ndh->btnh",
    "kv_einsum": "btd,ckdh->cbtkh",
    "qkv_einsum": "btd,cndh->cbtnh",
    "attn_vec_einsum": "btnh,nhd->btd",
}


def take_apart(decoder: Decoder) -> None:
    """Replaces the layers of a decoder that is on one CPU by a list of them, and its output embedding's product."""
    graph, stacked = nnx.split(decoder.layers)

    def layer(index: int) -> Block:
        block = nnx.merge(graph, jax.tree.map(lambda leaf: _view(np.asarray(leaf)[index]), stacked))
        for name in _EQUATIONS:
            if hasattr(block.attn, name):
                einsum = getattr(block.attn, name)
                setattr(block.attn, name, _Matrix(_EQUATIONS[name], np.asarray(einsum.w[...]), einsum.dtype))
        if block.mlp.lora_gating_einsum is None and block.mlp.lora_linear is None:
            block.mlp = _Mlp(block.mlp)
        return block

    decoder.layers = nnx.List([layer(index) for index in range(decoder.depth)])
    decoder.embedder = _Embedder(decoder.embedder)


def weight_first(x: Float[Array, "b t k"], weight: Float[Array, "n k"], dtype: jnp.dtype) -> Float[Array, "b t n"]:
    """`x` times a weight's rows, as the product of the weight and the few columns that `x` turned round has.

    XLA's products go through their first operand as it lies, and repack the second: here the smaller one. The barrier keeps XLA
    from turning the product round again.
    """
    turned = product("mk,nk->nm", x.reshape(-1, x.shape[-1]), weight, dtype)
    return jax.lax.optimization_barrier(turned).T.reshape(*x.shape[:-1], -1)


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
    """`gemma.FeedForward` with its gate and up-projection apart, and its second weight turned round."""

    def __init__(self, mlp: FeedForward) -> None:
        gate, up = np.asarray(mlp.gating_einsum[...])
        self.gate, self.up = nnx.Param(_view(gate)), nnx.Param(_view(up))
        self.linear = nnx.Param(_view(np.ascontiguousarray(np.asarray(mlp.linear[...]).T)))
        self.dtype = mlp.dtype

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        gate, up = (product("btd,df->btf", x, weight[...], self.dtype) for weight in (self.gate, self.up))
        return weight_first(gelu_gate(gate, up), self.linear[...], self.dtype)


class _Embedder(nnx.Module):
    """`gemma.Embedder` with its table as the first operand of logits."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def encode(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        return self.embedder.encode(tokens)

    def decode(self, x: Float[Array, "b t d"], dtype: jnp.dtype) -> Float[Array, "b t v"]:
        if x.dtype != jnp.float32:
            return self.embedder.decode(x, dtype)
        return weight_first(x, self.embedder.input_embedding[...], dtype)


def _view(array: np.ndarray) -> Array:
    """An array of JAX's on the CPU: the same memory, where its alignment allows."""
    return jax.device_put(array, jax.devices("cpu")[0], may_alias=True)
