"""SigLIP vision tower: patches, pre-norm transformer, biased projection to the decoder's width. No pooling.

Parameter names and numerics follow big_vision's `models/vit.py`: LayerNorm epsilon 1e-6, tanh-approximated GELU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from paligemma.models.attention import PLAIN, AttentionForm, attend
from paligemma.models.config import VisionConfig
from paligemma.models.layers import LayerPlan, scan_layers, stack
from paligemma.runtime.sharding import split_rows


class MultiHeadAttention(nnx.Module):
    """Bidirectional self-attention with biases."""

    def __init__(self, config: VisionConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        heads = (config.num_heads, config.width // config.num_heads)
        self.query = nnx.LinearGeneral(config.width, heads, dtype=dtype, rngs=rngs)
        self.key = nnx.LinearGeneral(config.width, heads, dtype=dtype, rngs=rngs)
        self.value = nnx.LinearGeneral(config.width, heads, dtype=dtype, rngs=rngs)
        self.out = nnx.LinearGeneral(heads, config.width, axis=(-2, -1), dtype=dtype, rngs=rngs)
        self.scale = heads[1] ** -0.5
        # A float16 tower computes its softmax in float16, as the reference does, so the outputs are equal to the last bit.
        self.softmax_dtype = dtype if dtype == jnp.float16 else jnp.float32

    def __call__(self, x: Float[Array, "b s d"], form: AttentionForm = PLAIN) -> Float[Array, "b s d"]:
        query, key, value = self.query(x) * self.scale, self.key(x), self.value(x)
        # Its heads are many and narrow: with blocks on a TPU, 3.4 million cycles at 896 px where the other order takes 6.3.
        return self.out(attend(query, key, value, softmax_dtype=self.softmax_dtype, form=form._replace(order="first")))


class MlpBlock(nnx.Module):
    """Two linear layers with a tanh-approximated GELU between them."""

    def __init__(self, config: VisionConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.Dense_0 = nnx.Linear(config.width, config.mlp_dim, dtype=dtype, rngs=rngs)
        self.Dense_1 = nnx.Linear(config.mlp_dim, config.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        return self.Dense_1(jax.nn.gelu(self.Dense_0(x), approximate=True))


class EncoderBlock(nnx.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: VisionConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.LayerNorm_0 = nnx.LayerNorm(config.width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.MultiHeadDotProductAttention_0 = MultiHeadAttention(config, dtype, rngs)
        self.LayerNorm_1 = nnx.LayerNorm(config.width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.MlpBlock_0 = MlpBlock(config, dtype, rngs)

    def __call__(self, x: Float[Array, "b s d"], form: AttentionForm = PLAIN) -> Float[Array, "b s d"]:
        x = x + self.MultiHeadDotProductAttention_0(self.LayerNorm_0(x), form)
        return x + self.MlpBlock_0(self.LayerNorm_1(x))


class Transformer(nnx.Module):
    """The stacked layers and the final norm."""

    def __init__(self, config: VisionConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        self.encoderblock = stack(lambda rngs: EncoderBlock(config, dtype, rngs), config.depth, rngs)
        self.encoder_norm = nnx.LayerNorm(config.width, epsilon=1e-6, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"], plan: LayerPlan) -> Float[Array, "b s d"]:
        x = split_rows(plan.mesh, x)

        def layer(block: EncoderBlock, x: Float[Array, "b s d"], _: None) -> tuple[Float[Array, "b s d"], None]:
            return block(x, plan.attention), None

        x, _ = scan_layers(layer, self.encoderblock, x, plan=plan, floats=self.dtype)
        return self.encoder_norm(x)


class VisionTower(nnx.Module):
    """Maps images in [-1, 1] to one embedding per patch, in the decoder's width."""

    def __init__(self, config: VisionConfig, output_width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        patch = (config.patch_size, config.patch_size)
        self.embedding = nnx.Conv(3, config.width, patch, strides=patch, padding="VALID", dtype=dtype, rngs=rngs)
        initial = nnx.initializers.normal(config.width**-0.5)
        self.pos_embedding = nnx.Param(initial(rngs.params(), (1, config.num_patches, config.width)))
        self.Transformer = Transformer(config, dtype, rngs)
        self.head = nnx.Linear(config.width, output_width, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, images: Float[Array, "b height width 3"], plan: LayerPlan | None = None) -> Float[Array, "b s d"]:
        """Embeddings of images; of the plan, `mesh` and `attention` count."""
        x = self.embedding(images.astype(self.dtype))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = x + self.pos_embedding[...].astype(self.dtype)
        # Its layers keep all that the backward pass needs, if there is one: it is hardly ever trained.
        own = LayerPlan() if plan is None else LayerPlan(mesh=plan.mesh, attention=plan.attention)
        return self.head(self.Transformer(x, own))
