"""The precision policy: the dtypes of a model's parameters, matrix products and activations."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from paligemma.choices import ComputeDtype


@dataclass(frozen=True)
class Precision:
    """The dtypes of a model. Norm variance, rotary angles, softmax, logits and loss are always float32.

    Attributes:
        activations: dtype of the decoder's residual stream and layer outputs.
        products: dtype of the operands of the decoder's matrix products. For float16 with float32 activations, see
            `models/scaled_matmul.py`.
        vision: dtype of the vision tower's activations and products.
    """

    activations: jnp.dtype
    products: jnp.dtype
    vision: jnp.dtype

    @staticmethod
    def of(compute: ComputeDtype = "auto", vision_parameters: jnp.dtype | str = "float32") -> Precision:
        """The policy for a compute dtype on the current device.

        Args:
            compute: `bfloat16` (the range of float32, 8 bits of precision), `float32`, or `float16`. Gemma's residual stream
                exceeds float16's range, so activations stay float32, and only operands of products are float16. `auto` is
                bfloat16 where the hardware multiplies it fast (TPUs, NVIDIA since compute capability 8.0), float16 on older
                NVIDIA devices with tensor cores (7.0, 7.5: V100, T4), float32 elsewhere.
            vision_parameters: dtype of the vision tower's parameters. SigLIP's activations are small enough for float16, so a
                float16 tower computes in float16, as the reference does, unless `compute` is bfloat16.
        """
        products = jnp.dtype(_fast_dtype() if compute == "auto" else compute)
        activations = jnp.dtype(jnp.bfloat16 if products == jnp.bfloat16 else jnp.float32)
        in_float16 = products == jnp.float16 or jnp.dtype(vision_parameters) == jnp.float16
        vision = jnp.dtype(jnp.float16) if in_float16 and products != jnp.bfloat16 else activations
        return Precision(activations, products, vision)


FLOAT32 = Precision(jnp.dtype(jnp.float32), jnp.dtype(jnp.float32), jnp.dtype(jnp.float32))


def _fast_dtype() -> str:
    device = jax.devices()[0]
    if device.platform == "tpu":
        return "bfloat16"
    if device.platform != "gpu":
        return "float32"
    capability = float(getattr(device, "compute_capability", "0"))
    return "bfloat16" if capability >= 8.0 else "float16" if capability >= 7.0 else "float32"
