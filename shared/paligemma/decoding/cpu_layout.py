"""Unstacks a decoder's layers for a CPU, and lays out each weight as its product reads it.

In a loop on a CPU, XLA would copy stacked weights, and transpose those that are not plain matrices, at every token. That moves
twice the weights' bytes, when reading them once already takes all the time. An MLP's gate and up-projection, and the embedding,
stay views of the stacked arrays; attention's weights and the MLP's second weight are copied.

With few rows, XLA's products walk a wide matrix in strips of columns. A strip's parts lie far apart, so this reaches half of
the memory's speed. Small enough models hold such a matrix a second time, strip after strip, in pieces for several cores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from paligemma.models.gemma import Block, Decoder, Embedder, FeedForward, gelu_gate
from paligemma.models.quantized import Quantized
from paligemma.models.scaled_matmul import product
from paligemma.models.weight_formats import WeightFormat

_EQUATIONS = {
    "q_einsum": "btd,ndh->btnh",
    "kv_einsum": "btd,ckdh->cbtkh",
    "qkv_einsum": "btd,cndh->cbtnh",
    "attn_vec_einsum": "btnh,nhd->btd",
}


STRIP = 64
"""Columns of a strip: as many as XLA's products process at a time."""

PIECES = range(16, 65)
"""Pieces of a large matrix. XLA runs each piece's product on one core, and more than 8 pieces on several cores."""

LARGE = 1 << 21
"""Size in bytes from which several cores read a matrix faster than one."""

FEW = range(2, 33)
"""Most rows for which strips are faster."""

INPUTS_OF_A_ROW = 2048
"""Inputs of a piece of an int8 matrix: XLA fuses a product with its weight's conversion if the other operand is under 16 KiB.
"""

MOST_COPIED = 1 << 30
"""Largest decoder, in bytes, that gets strips: they hold its weights a second time."""


def take_apart(decoder: Decoder) -> None:
    """Replaces a decoder's stacked layers by a list, and its output embedding's product, on one CPU."""
    graph, stacked = nnx.split(decoder.layers)
    leaves = [*jax.tree.leaves(stacked), decoder.embedder.input_embedding.get_value()]
    strips = sum(leaf.nbytes for leaf in leaves) <= MOST_COPIED

    def layer(index: int) -> Block:
        block = nnx.merge(graph, jax.tree.map(lambda leaf: _view(np.asarray(leaf)[index]), stacked))
        for name in _EQUATIONS:
            einsum = getattr(block.attn, name, None)
            if einsum is not None and _has_layout(einsum.w.get_value()):
                weight = _on_host(einsum.w.get_value())
                setattr(block.attn, name, _Einsum(_EQUATIONS[name], weight, einsum.dtype, strips))
        adapted = block.mlp.lora_gating_einsum is not None or block.mlp.lora_linear is not None
        if not adapted and _has_layout(block.mlp.linear.get_value()):
            block.mlp = cast(FeedForward, _Mlp(block.mlp, strips))
        return block

    # Modules that are called as the ones in whose place they come; `kv_cache` asks whether there is a list of layers.
    decoder.layers = cast(Block, nnx.List([layer(index) for index in range(decoder.depth)]))
    decoder.embedder = cast(Embedder, _Embedder(decoder.embedder, decoder.precision.products, strips))


def weight_first(x: Float[Array, "b t k"], weight: Float[Array, "n k"], dtype: jnp.dtype) -> Float[Array, "b t n"]:
    """`x` times a weight's rows, computed as the weight times the few columns of `x` transposed.

    XLA's products read the first operand in place and repack the second, which here is the smaller one. The barrier keeps XLA
    from transposing the product back.
    """
    turned = product("mk,nk->nm", x.reshape(-1, x.shape[-1]), weight, dtype)
    return jax.lax.optimization_barrier(turned).T.reshape(*x.shape[:-1], -1)


def by_strips(x: Float[Array, "b t k"], pieces: Sequence[Float[Array, "s k c"]], dtype: jnp.dtype) -> Float[Array, "b t n"]:
    """`x` times a matrix that is split into pieces of several strips, with one product per piece."""
    rows = x.reshape(-1, x.shape[-1])
    parts = [product("smk,skc->smc", jnp.broadcast_to(rows, (len(piece), *rows.shape)), piece, dtype) for piece in pieces]
    columns = [part.transpose(1, 0, 2).reshape(len(rows), -1) for part in parts]
    return jnp.concatenate(columns, axis=1).reshape(*x.shape[:-1], -1)


class _Matrix(nnx.Module):
    """A matrix from inputs to outputs: plain, and on request in strips too."""

    def __init__(self, weight: np.ndarray, dtype: jnp.dtype, strips: bool) -> None:
        self.w = nnx.Param(_view(weight))
        self.strips = _strips(weight) if strips else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t f"]:
        if self.strips is not None and x.shape[0] * x.shape[1] in FEW:
            return by_strips(x, [piece[...] for piece in self.strips], self.dtype)
        return product("btd,df->btf", x, self.w[...], self.dtype)


class _Int8Matrix(nnx.Module):
    """An int8 matrix, by rows from outputs to inputs, in pieces of some inputs.

    XLA can fuse the conversion of codes into the product of one row, if that row is short and nothing else is near. Of few
    rows, a sum of products is what it fuses the conversion with. Any other product first writes the codes as floats, which many
    rows repay. tests/benchmarks/README.md has what that makes of decoding.
    """

    def __init__(self, weight: Quantized, dtype: jnp.dtype) -> None:
        """Takes a weight that has its inputs first, `[k, n]`, or a table, `[n, k]`."""
        turned = weight if weight.form.inputs == (-1,) else jax.tree.map(lambda leaf: np.asarray(leaf).T, weight)
        starts = range(0, turned.codes.shape[1], INPUTS_OF_A_ROW)
        pieces = [np.ascontiguousarray(turned.codes[:, start : start + INPUTS_OF_A_ROW]) for start in starts]
        self.codes = nnx.List([nnx.Param(_view(piece)) for piece in pieces])
        self.scales = nnx.Param(_view(np.ascontiguousarray(turned.scales)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b t k"]) -> Float[Array, "b t n"]:
        rows, scales = x.reshape(-1, x.shape[-1]), self.scales[...]
        codes = [piece[...] for piece in self.codes]
        parts = [rows[:, place * INPUTS_OF_A_ROW :][:, : piece.shape[1]] for place, piece in enumerate(codes)]
        if len(rows) > FEW[-1] or x.dtype != jnp.float32:
            form = WeightFormat("int8", (-1,))
            weights = [Quantized(piece, scales, form) for piece in codes]
            products = [product("mk,nk->mn", *operands, self.dtype) for operands in zip(parts, weights, strict=True)]
            return sum(products[1:], products[0]).reshape(*x.shape[:-1], -1)
        if len(rows) == 1:
            parts = jax.lax.optimization_barrier(parts)
            sums = [part @ piece.astype(jnp.float32).T for part, piece in zip(parts, codes, strict=True)]
            sums = jax.lax.optimization_barrier(sums)
        else:
            sums = [
                jnp.sum(part[:, None] * piece.astype(jnp.float32), axis=2) for part, piece in zip(parts, codes, strict=True)
            ]
        return (sum(sums[1:], sums[0]) * scales[:, 0]).reshape(*x.shape[:-1], -1)


def _matrix(weight: np.ndarray | Quantized, dtype: jnp.dtype, strips: bool) -> _Matrix | _Int8Matrix:
    """A matrix from inputs to outputs."""
    return _Int8Matrix(weight, dtype) if isinstance(weight, Quantized) else _Matrix(weight, dtype, strips)


def _on_host(weight: Array | Quantized) -> np.ndarray | Quantized:
    return jax.tree.map(np.asarray, weight)


def _has_layout(weight: Array | Quantized) -> bool:
    """Whether there is a layout for a weight: those of nf4 stay as they are."""
    return not isinstance(weight, Quantized) or weight.form.kind == "int8"


class _Einsum(nnx.Module):
    """`gemma.Einsum` with a plain matrix as its weight."""

    def __init__(self, equation: str, weight: np.ndarray | Quantized, dtype: jnp.dtype, strips: bool) -> None:
        inputs, self.output = equation.split("->")
        x, w = inputs.split(",")
        contracted, kept = [axis for axis in w if axis in x], [axis for axis in w if axis not in x]
        sizes = dict(zip(w, weight.shape, strict=True))
        self.kept, self.kept_sizes = "".join(kept), tuple(sizes[axis] for axis in kept)

        def as_matrix(part: np.ndarray) -> np.ndarray:
            turned = part.transpose([w.index(axis) for axis in contracted + kept])
            return turned.reshape(math.prod(turned.shape[: len(contracted)]), -1)

        matrix = jax.tree.map(as_matrix, weight)
        if isinstance(matrix, Quantized):
            matrix = replace(matrix, form=WeightFormat("int8", (-2,)))
        self.matrix = _matrix(matrix, dtype, strips)

    def __call__(self, equation: str, x: Float[Array, "b t *inputs"]) -> Array:
        b, t = x.shape[:2]
        result = self.matrix(x.reshape(b, t, -1)).reshape(b, t, *self.kept_sizes)
        return result.transpose([("bt" + self.kept).index(axis) for axis in self.output])


class _Mlp(nnx.Module):
    """`gemma.FeedForward` with separate gate and up-projection, and its second weight transposed."""

    def __init__(self, mlp: FeedForward, strips: bool) -> None:
        both = _on_host(mlp.gating_einsum.get_value())
        self.gate, self.up = (_matrix(both[part], mlp.dtype, strips) for part in (0, 1))
        linear = _on_host(mlp.linear.get_value())
        is_quantized = isinstance(linear, Quantized)
        self.linear = _Int8Matrix(linear, mlp.dtype) if is_quantized else nnx.Param(_view(np.ascontiguousarray(linear.T)))
        self.dtype = mlp.dtype

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        hidden = gelu_gate(self.gate(x), self.up(x))
        if isinstance(self.linear, _Int8Matrix):
            return self.linear(hidden)
        return weight_first(hidden, self.linear[...], self.dtype)


class _Embedder(nnx.Module):
    """`gemma.Embedder` with its table as the logits' first operand, or in strips."""

    def __init__(self, embedder: Embedder, dtype: jnp.dtype, strips: bool) -> None:
        self.embedder = embedder
        table = _on_host(embedder.input_embedding.get_value())
        self.codes = _Int8Matrix(table, dtype) if isinstance(table, Quantized) else None
        self.strips = _strips(table.T) if strips and not isinstance(table, Quantized) else None

    def encode(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """See `gemma.Embedder`."""
        return self.embedder.encode(tokens)

    def decode(self, x: Float[Array, "b t d"], dtype: jnp.dtype) -> Float[Array, "b t v"]:
        """See `gemma.Embedder`."""
        if self.codes is not None:
            return self.codes(x).astype(jnp.float32)
        if x.dtype != jnp.float32:
            return self.embedder.decode(x, dtype)
        if self.strips is not None and x.shape[0] * x.shape[1] in FEW:
            return by_strips(x, [piece[...] for piece in self.strips], dtype)
        return weight_first(x, self.embedder.input_embedding[...], dtype)


def _strips(matrix: Float[np.ndarray, "k n"]) -> nnx.List | None:
    """A matrix as pieces `[s, k, 64]` of strips; None if it does not split into strips."""
    inputs, outputs = matrix.shape
    if outputs % STRIP:
        return None
    strips = np.ascontiguousarray(matrix.reshape(inputs, -1, STRIP).transpose(1, 0, 2))
    pieces = 1
    if strips.nbytes >= LARGE:  # equal or nearly equal sizes: XLA prepares the input once for pieces of one size
        pieces = next((count for count in PIECES if len(strips) % count == 0), min(len(strips), PIECES[-1]))
    return nnx.List([nnx.Param(_view(piece)) for piece in np.array_split(strips, pieces)])


def _view(array: np.ndarray) -> Array:
    """A JAX array on the CPU; shares memory if the alignment allows."""
    return jax.device_put(array, jax.devices("cpu")[0], may_alias=True)
