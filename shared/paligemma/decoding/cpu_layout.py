"""A decoder's layers taken apart for a CPU, each weight in the layout that its product reads.

In a loop on a CPU XLA would copy what is stacked, and turn round what is not a plain matrix, at every token: twice the weights'
bytes, where reading them once is all the time there is. An MLP's gate and up-projection, and the embedding, stay views of the
stacked arrays; attention and the MLP's second product are copied.

With a few rows, XLA's products go through a wide matrix in strips of columns, whose parts lie far apart in memory, at half the
speed that memory has. Models that are small enough have such a matrix once more, strip after strip, and in pieces for several
cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from paligemma.models.gemma import Block, Decoder, Embedder, FeedForward, gelu_gate
from paligemma.models.scaled_matmul import product

_EQUATIONS = {
    "q_einsum": "btd,ndh->btnh",
    "kv_einsum": "btd,ckdh->cbtkh",
    "qkv_einsum": "btd,cndh->cbtnh",
    "attn_vec_einsum": "btnh,nhd->btd",
}


STRIP = 64
"""Columns of a strip: as many as XLA's products take at a time."""

PIECES = range(16, 65)
"""Pieces that the strips of a large matrix are put into: XLA runs a piece's product on one core, more than 8 on several."""

LARGE = 1 << 21
"""Bytes of a matrix from which several cores read it sooner than one."""

FEW = range(2, 33)
"""Rows of which products are faster with strips."""

MOST_COPIED = 1 << 30
"""Bytes of a decoder that gets strips: its weights are in memory twice."""


def take_apart(decoder: Decoder) -> None:
    """Replaces the layers of a decoder that is on one CPU by a list of them, and its output embedding's product."""
    graph, stacked = nnx.split(decoder.layers)
    leaves = [*jax.tree.leaves(stacked), decoder.embedder.input_embedding[...]]
    strips = sum(leaf.nbytes for leaf in leaves) <= MOST_COPIED

    def layer(index: int) -> Block:
        block = nnx.merge(graph, jax.tree.map(lambda leaf: _view(np.asarray(leaf)[index]), stacked))
        for name in _EQUATIONS:
            if hasattr(block.attn, name):
                einsum = getattr(block.attn, name)
                setattr(block.attn, name, _Einsum(_EQUATIONS[name], np.asarray(einsum.w[...]), einsum.dtype, strips))
        if block.mlp.lora_gating_einsum is None and block.mlp.lora_linear is None:
            block.mlp = cast(FeedForward, _Mlp(block.mlp, strips))
        return block

    # Modules that are called as the ones in whose place they come; `kv_cache` asks whether there is a list of layers.
    decoder.layers = cast(Block, nnx.List([layer(index) for index in range(decoder.depth)]))
    decoder.embedder = cast(Embedder, _Embedder(decoder.embedder, strips))


def weight_first(x: Float[Array, "b t k"], weight: Float[Array, "n k"], dtype: jnp.dtype) -> Float[Array, "b t n"]:
    """`x` times a weight's rows, as the product of the weight and the few columns that `x` turned round has.

    XLA's products go through their first operand as it lies, and repack the second: here the smaller one. The barrier keeps XLA
    from turning the product round again.
    """
    turned = product("mk,nk->nm", x.reshape(-1, x.shape[-1]), weight, dtype)
    return jax.lax.optimization_barrier(turned).T.reshape(*x.shape[:-1], -1)


def by_strips(x: Float[Array, "b t k"], pieces: Sequence[Float[Array, "s k c"]], dtype: jnp.dtype) -> Float[Array, "b t n"]:
    """`x` times a matrix in pieces of some strips each: a product for every piece."""
    rows = x.reshape(-1, x.shape[-1])
    parts = [product("smk,skc->smc", jnp.broadcast_to(rows, (len(piece), *rows.shape)), piece, dtype) for piece in pieces]
    columns = [part.transpose(1, 0, 2).reshape(len(rows), -1) for part in parts]
    return jnp.concatenate(columns, axis=1).reshape(*x.shape[:-1], -1)


class _Matrix(nnx.Module):
    """A matrix from inputs to outputs: as it is, and, where that is asked for, in strips too."""

    def __init__(self, weight: np.ndarray, dtype: jnp.dtype, strips: bool) -> None:
        self.w = nnx.Param(_view(weight))
        self.strips = _strips(weight) if strips else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t f"]:
        if self.strips is not None and x.shape[0] * x.shape[1] in FEW:
            return by_strips(x, [piece[...] for piece in self.strips], self.dtype)
        return product("btd,df->btf", x, self.w[...], self.dtype)


class _Einsum(nnx.Module):
    """`gemma.Einsum` with its weight as a matrix."""

    def __init__(self, equation: str, weight: np.ndarray, dtype: jnp.dtype, strips: bool) -> None:
        inputs, self.output = equation.split("->")
        x, w = inputs.split(",")
        contracted, kept = [axis for axis in w if axis in x], [axis for axis in w if axis not in x]
        sizes = dict(zip(w, weight.shape, strict=True))
        self.kept, self.kept_sizes = "".join(kept), tuple(sizes[axis] for axis in kept)
        matrix = weight.transpose([w.index(axis) for axis in contracted + kept])
        self.matrix = _Matrix(matrix.reshape(int(np.prod([sizes[axis] for axis in contracted])), -1), dtype, strips)

    def __call__(self, equation: str, x: Float[Array, "b t *inputs"]) -> Array:
        b, t = x.shape[:2]
        result = self.matrix(x.reshape(b, t, -1)).reshape(b, t, *self.kept_sizes)
        return result.transpose([("bt" + self.kept).index(axis) for axis in self.output])


class _Mlp(nnx.Module):
    """`gemma.FeedForward` with its gate and up-projection apart, and its second weight turned round."""

    def __init__(self, mlp: FeedForward, strips: bool) -> None:
        self.gate, self.up = (_Matrix(part, mlp.dtype, strips) for part in np.asarray(mlp.gating_einsum[...]))
        self.linear = nnx.Param(_view(np.ascontiguousarray(np.asarray(mlp.linear[...]).T)))
        self.dtype = mlp.dtype

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return weight_first(gelu_gate(self.gate(x), self.up(x)), self.linear[...], self.dtype)


class _Embedder(nnx.Module):
    """`gemma.Embedder` with its table as the first operand of logits, or in strips."""

    def __init__(self, embedder: Embedder, strips: bool) -> None:
        self.embedder = embedder
        self.strips = _strips(np.asarray(embedder.input_embedding[...]).T) if strips else None

    def encode(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """See `gemma.Embedder`."""
        return self.embedder.encode(tokens)

    def decode(self, x: Float[Array, "b t d"], dtype: jnp.dtype) -> Float[Array, "b t v"]:
        """See `gemma.Embedder`."""
        if x.dtype != jnp.float32:
            return self.embedder.decode(x, dtype)
        if self.strips is not None and x.shape[0] * x.shape[1] in FEW:
            return by_strips(x, [piece[...] for piece in self.strips], dtype)
        return weight_first(x, self.embedder.input_embedding[...], dtype)


def _strips(matrix: Float[np.ndarray, "k n"]) -> nnx.List | None:
    """A matrix as pieces `[s, k, 64]` of strips; None when it does not split into strips."""
    inputs, outputs = matrix.shape
    if outputs % STRIP:
        return None
    strips = np.ascontiguousarray(matrix.reshape(inputs, -1, STRIP).transpose(1, 0, 2))
    pieces = 1
    if strips.nbytes >= LARGE:  # of one size, or nearly: what pieces of one size read is made once for all of them
        pieces = next((count for count in PIECES if len(strips) % count == 0), min(len(strips), PIECES[-1]))
    return nnx.List([nnx.Param(_view(piece)) for piece in np.array_split(strips, pieces)])


def _view(array: np.ndarray) -> Array:
    """An array of JAX's on the CPU: the same memory, where its alignment allows."""
    return jax.device_put(array, jax.devices("cpu")[0], may_alias=True)
