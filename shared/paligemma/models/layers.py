"""Stacked layers: one module whose parameters have a leading layer axis, as the checkpoints store them, and how they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import jax
from flax import nnx

Remat = Literal["none", "dots", "attention", "full"]
"""What the backward pass of a layer recomputes, from fast to lean.

`none`: nothing. `dots`: everything but the results of matrix products with weights. `attention`: the MLP, which is most of
a layer; what attention's projections gave is saved. `full`: the whole layer; only its input is saved.
"""

ATTENTION_SAVED = "attention_saved"
"""Name, for `jax.checkpoint` policies, of what `attention` saves."""

PRODUCT_SAVED = "product_saved"
"""Name of what `dots` saves."""

M = TypeVar("M", bound=nnx.Module)


@dataclass(frozen=True)
class LayerPlan:
    """How a stack of layers runs; the results are the same.

    Attributes:
        remat: what the backward pass recomputes.
        unroll: one copy of the layer's code for each layer, in place of a loop: slower to compile, faster to run, and the
            last layer can be spared what nobody reads. A loop holds the memory of one layer at a time.
    """

    remat: Remat = "none"
    unroll: bool = False

    def checkpoint(self, layer: Callable) -> Callable:
        """The layer with this plan's recomputation."""
        if self.remat == "none":
            return layer
        policies = jax.checkpoint_policies
        policy = {
            "dots": policies.save_only_these_names(PRODUCT_SAVED),
            "attention": policies.save_only_these_names(ATTENTION_SAVED),
            "full": policies.nothing_saveable,
        }[self.remat]
        # Inside a loop XLA cannot merge the recomputation with the first pass, so the barriers that prevent it only cost.
        return jax.checkpoint(layer, policy=policy, prevent_cse=self.unroll)


def stack(make: Callable[[nnx.Rngs], M], depth: int, rngs: nnx.Rngs) -> M:
    """Builds `depth` independently initialized copies of a module as one module with a leading layer axis."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs: nnx.Rngs) -> M:
        return make(rngs)

    return build(rngs)


def scan_layers(apply: Callable, layers: nnx.Module, carry, xs=None, plan: LayerPlan | None = None):
    """Runs `apply(layer, carry, x) -> (carry, y)` over the stacked layers in a loop; compiles the body once.

    Returns the last carry and the stacked `y`.
    """
    graph, parameters = nnx.split(layers)

    def body(carry, inputs):
        layer_parameters, x = inputs
        return apply(nnx.merge(graph, layer_parameters), carry, x)

    return jax.lax.scan((plan or LayerPlan()).checkpoint(body), carry, (parameters, xs))


def unstack(layers: M) -> list[M]:
    """The layers of a stack, one by one."""
    graph, parameters = nnx.split(layers)
    leaves, tree = jax.tree.flatten(parameters)
    depth = leaves[0].shape[0]
    # Gradients of a split are joined in one go; those of indexing would be summed up layer by layer.
    columns = [[part[0] for part in jax.lax.split(leaf, [1] * depth)] for leaf in leaves]
    return [nnx.merge(graph, jax.tree.unflatten(tree, row)) for row in zip(*columns, strict=True)]
