"""Low-rank adapters (LoRA, arXiv 2106.09685) on the decoder's linear layers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from paligemma.models.lora_factors import FACTORS, LoraConfig


class Adapter(nnx.Module):
    """The product of two thin factors, added to a linear layer's output. The second starts at zero, so the adapter does too."""

    def __init__(self, target: str, weight_shape: tuple[int, ...], config: LoraConfig, rngs: nnx.Rngs) -> None:
        factors = FACTORS[target]
        sizes = dict(zip(factors.weight, weight_shape, strict=True), r=config.rank)
        inputs = [axis for axis in factors.a if axis not in "cr"]
        fan_in = int(np.prod([sizes[axis] for axis in inputs]))
        initial = nnx.initializers.normal(fan_in**-0.5)
        self.a = nnx.Param(initial(rngs.params(), tuple(sizes[axis] for axis in factors.a)))
        self.b = nnx.Param(jnp.zeros(tuple(sizes[axis] for axis in factors.b)))
        together = "c" if factors.a[0] == "c" else ""
        self.down = f"bt{''.join(inputs)},{factors.a}->{together}btr"
        self.up = f"{together}btr,{factors.b}->{together}bt{factors.b.split('r')[1]}"
        self.scale = config.alpha / config.rank

    def __call__(self, x: Float[Array, "b t *inputs"]) -> Float[Array, "*c b t *outputs"]:
        thin = jnp.einsum(self.down, x, self.a[...].astype(x.dtype))
        return jnp.einsum(self.up, thin, self.b[...].astype(x.dtype)) * self.scale


def make_adapter(target: str, weight_shape: tuple[int, ...], config: LoraConfig | None, rngs: nnx.Rngs) -> Adapter | None:
    """An adapter for a weight; None if the weight is not a target."""
    return Adapter(target, weight_shape, config, rngs) if config is not None and target in config.targets else None
