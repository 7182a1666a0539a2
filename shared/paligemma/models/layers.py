"""Stacked layers: one module whose parameters have a leading layer axis, as the checkpoints store them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import jax
from flax import nnx

Remat = Literal["none", "full"]
"""What the backward pass of a layer recomputes: nothing (fast, needs memory), or the whole layer (lean)."""

M = TypeVar("M", bound=nnx.Module)


def stack(make: Callable[[nnx.Rngs], M], depth: int, rngs: nnx.Rngs) -> M:
    """Builds `depth` independently initialized copies of a module as one module with a leading layer axis."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs: nnx.Rngs) -> M:
        return make(rngs)

    return build(rngs)


def scan_layers(apply: Callable, layers: nnx.Module, carry, xs=None, remat: Remat = "none"):
    """Runs `apply(layer, carry, x) -> (carry, y)` over the stacked layers; compiles the body once.

    Returns the last carry and the stacked `y`.
    """
    graph, parameters = nnx.split(layers)

    def body(carry, inputs):
        layer_parameters, x = inputs
        return apply(nnx.merge(graph, layer_parameters), carry, x)

    if remat == "full":
        # Inside a scan XLA cannot merge the recomputation with the first pass, so the barriers that prevent it only cost.
        body = jax.checkpoint(body, prevent_cse=False)
    return jax.lax.scan(body, carry, (parameters, xs))
