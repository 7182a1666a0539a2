"""Stacked layers: a module whose parameters have a leading layer axis, as in the checkpoints, and ways to run it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int

from paligemma.models.attention import PLAIN, AttentionForm
from paligemma.models.quantized import Quantized, dequantized, is_quantized
from paligemma.runtime.sharding import GATHERED, gather

Remat = Literal["none", "dots", "attention", "full"]
"""What the backward pass of a layer recomputes, from fast to lean.

`none`: nothing. `dots`: everything except products with weights. `attention`: the MLP, which is most of a layer; the outputs of
attention's projections are saved. `full`: the whole layer; only its input is saved.
"""

ATTENTION_SAVED = "attention_saved"
"""Name in `jax.checkpoint` policies for what `attention` saves."""

PRODUCT_SAVED = "product_saved"
"""Name in policies for what `dots` saves."""

IN_PARTS = ("gating_einsum",)
"""Parameters that hold several weights along their first axis. A loop over layers picks each from the stack on its own: XLA
would copy a layer's whole array, and then read each weight from the copy, which doubles the bytes that it moves.
"""

M = TypeVar("M", bound=nnx.Module)


@dataclass(frozen=True)
class LayerPlan:
    """How a stack of layers runs. The results do not depend on it.

    Attributes:
        remat: what the backward pass recomputes; see `Remat`.
        unroll: repeat the code for each layer instead of a loop: slower to compile, faster to run. A loop holds one layer's
            memory at a time.
        trained: regular expression that matches the whole name of trained parameters; see `scan_but_last`.
        mesh: the mesh over which parameters are split, to gather them layer by layer; None if they are not split.
        attention: the form of attention.
    """

    remat: Remat = "none"
    unroll: bool = False
    trained: str = ".*"
    mesh: Mesh | None = None
    attention: AttentionForm = PLAIN

    def checkpoint(self, layer: Callable) -> Callable:
        """Wraps a layer with this plan's recomputation."""
        policies = jax.checkpoint_policies
        if self.remat == "none":
            if self.mesh is None:
                return layer
            # If gathered layers were kept for the backward pass, each device would hold the whole model.
            policy = policies.save_anything_except_these_names(GATHERED)
            return jax.checkpoint(layer, policy=policy, prevent_cse=self.unroll)
        policy = {
            "dots": policies.save_only_these_names(PRODUCT_SAVED),
            "attention": policies.save_only_these_names(ATTENTION_SAVED),
            "full": policies.nothing_saveable,
        }[self.remat]
        # Inside a loop, XLA cannot merge the recomputation with the first pass, so barriers against that only cost time.
        return jax.checkpoint(layer, policy=policy, prevent_cse=self.unroll)


def stack(make: Callable[[nnx.Rngs], M], depth: int, rngs: nnx.Rngs) -> M:
    """Builds `depth` independently initialized copies of a module as one module with a leading layer axis."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs: nnx.Rngs) -> M:
        return make(rngs)

    return build(rngs)


def scan_layers(
    apply: Callable, layers: nnx.Module, carry, xs=None, plan: LayerPlan | None = None, floats: jnp.dtype | None = None
):
    """Runs `apply(layer, carry, x) -> (carry, y)` over the stacked layers in a loop; compiles the body once.

    Layers whose modules know no quantized weights get them in the dtype `floats`, layer by layer.

    Returns the last carry and the stacked `y`.
    """
    graph, parameters = nnx.split(layers)
    plan = plan or LayerPlan()

    def body(carry, inputs):
        layer_parameters, x = inputs
        gathered = gather(plan.mesh, layer_parameters)
        return apply(nnx.merge(graph, gathered if floats is None else dequantized(gathered, floats)), carry, x)

    return jax.lax.scan(plan.checkpoint(body), carry, (parameters, xs))


def loop_layers(apply: Callable, layers: nnx.Module, carry, xs=None):
    """Like `scan_layers`, for passes without gradients: the loop picks what it reads from the stack, and copies nothing."""
    stack = _Stack(layers)

    def body(carry, inputs):
        index, x = inputs
        return apply(stack.layer(stack.pick(index)), carry, x)

    return jax.lax.scan(body, carry, (jnp.arange(stack.depth), xs))


def scan_but_last(apply: Callable, layers: M, name: str, carry, plan: LayerPlan, xs=None) -> tuple[Any, M]:
    """Like `scan_layers`, for the stack with this name, over all layers but the last. Returns the carry and the last layer.

    Trained parameters are split in two, and their gradients are joined from two pieces. Splitting the others, perhaps most of a
    device's memory, would copy them, so the loop picks each layer's from the whole stack.
    """
    stack = _Stack(layers)
    last = stack.depth - 1
    is_split = [re.fullmatch(plan.trained, f"{name}/{one}") is not None for one in stack.names]
    pieces = [jax.lax.split(leaf, [last, 1]) if split else None for leaf, split in zip(stack.leaves, is_split, strict=True)]

    def layer_of(index, own: list) -> M:
        rest = iter(own)
        picked = [next(rest) if split else one for one, split in zip(stack.pick(index, skip=is_split), is_split, strict=True)]
        return stack.layer(gather(plan.mesh, picked))

    def body(carry, inputs):
        index, own, x = inputs
        return apply(layer_of(index, own), carry, x)[0], None

    firsts = [piece[0] for piece in pieces if piece is not None]
    lasts = [piece[1][0] for piece in pieces if piece is not None]
    xs = jax.tree.map(lambda x: x[:-1], xs)
    carry, _ = jax.lax.scan(plan.checkpoint(body), carry, (jnp.arange(last), firsts, xs))
    return carry, layer_of(last, lasts)


class _Stack(Generic[M]):
    """The parameters of stacked layers: their names within a layer, and the layers made of them."""

    def __init__(self, layers: M) -> None:
        self.graph, parameters = nnx.split(layers)
        flat = jax.tree_util.tree_leaves_with_path(parameters, is_leaf=is_quantized)
        self.names = [jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value") for path, _ in flat]
        self.leaves, self.tree = jax.tree.flatten(parameters, is_leaf=is_quantized)
        self.depth = self.leaves[0].shape[0]

    def pick(self, index: Int[Array, ""] | int, skip: Sequence[bool] = ()) -> list:
        """One layer's parameters; those in parts as tuples, and None for those to skip."""
        skip = skip or [False] * len(self.leaves)
        return [
            None if left_out else _picked(leaf, index, name)
            for leaf, name, left_out in zip(self.leaves, self.names, skip, strict=True)
        ]

    def layer(self, parameters: list) -> M:
        """A layer with these parameters."""
        return nnx.merge(self.graph, jax.tree.unflatten(self.tree, parameters))


def _picked(stack: Array | Quantized, index: Int[Array, ""] | int, name: str) -> Any:
    if isinstance(stack, Quantized):
        leaves, tree = jax.tree.flatten(stack)
        picked = [_picked(leaf, index, name) for leaf in leaves]
        if not isinstance(picked[0], tuple):
            return jax.tree.unflatten(tree, picked)
        return tuple(jax.tree.unflatten(tree, part) for part in zip(*picked, strict=True))
    if name.rpartition("/")[2] not in IN_PARTS:
        return jax.lax.dynamic_index_in_dim(stack, index, keepdims=False)
    _, parts, *shape = stack.shape
    origin = (0,) * len(shape)
    return tuple(jax.lax.dynamic_slice(stack, (index, part, *origin), (1, 1, *shape)).reshape(shape) for part in range(parts))


def unstack(layers: M) -> list[M]:
    """The layers of a stack as a list."""
    graph, parameters = nnx.split(layers)
    leaves, tree = jax.tree.flatten(parameters)
    depth = leaves[0].shape[0]
    # Gradients of a split are joined at once; gradients of indexing would be summed layer by layer.
    columns = [[part[0] for part in jax.lax.split(leaf, [1] * depth)] for leaf in leaves]
    return [nnx.merge(graph, jax.tree.unflatten(tree, row)) for row in zip(*columns, strict=True)]


def apart(layers: M) -> list[M]:
    """Stacked layers as a list of abstract ones: shapes instead of arrays, and tuples of them for parameters in parts."""
    stack = _Stack(layers)

    def shape(leaf: Array, name: str) -> Any:
        of_parts = name.rpartition("/")[2] in IN_PARTS
        one = jax.ShapeDtypeStruct(leaf.shape[2 if of_parts else 1 :], leaf.dtype)
        return (one,) * leaf.shape[1] if of_parts else one

    shapes = [shape(leaf, name) for leaf, name in zip(stack.leaves, stack.names, strict=True)]
    return [stack.layer(shapes) for _ in range(stack.depth)]
