"""Which dtype a model computes in, by device."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

ComputeDtype = Literal["auto", "float32", "bfloat16"]


def compute_dtype(name: ComputeDtype = "auto") -> jnp.dtype:
    """The dtype of activations and matmul inputs.

    `auto` is bfloat16 where the hardware multiplies it fast (TPUs, NVIDIA since compute capability 8.0) and float32
    elsewhere. float16 is not offered for the decoder: Gemma's residual stream exceeds its range.
    """
    if name != "auto":
        return jnp.dtype(name)
    device = jax.devices()[0]
    if device.platform == "tpu":
        return jnp.dtype(jnp.bfloat16)
    if device.platform == "gpu" and float(getattr(device, "compute_capability", "0")) >= 8.0:
        return jnp.dtype(jnp.bfloat16)
    return jnp.dtype(jnp.float32)


def vision_dtype(compute: jnp.dtype, parameters: jnp.dtype) -> jnp.dtype:
    """The dtype that the vision tower computes in: as the decoder, but float16 parameters in a float32 model as they are.

    Its activations are small enough for float16, the reference runs it so, and on a T4 it is a fraction of the time.
    """
    return jnp.dtype(jnp.float16) if compute == jnp.float32 and jnp.dtype(parameters) == jnp.float16 else compute
