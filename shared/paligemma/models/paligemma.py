"""PaliGemma: image embeddings in front of text embeddings, through one prefix-LM decoder (arXiv 2407.07726)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from paligemma.models.attention import prefix_lm_mask
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.gemma import Decoder
from paligemma.models.layers import Remat
from paligemma.models.siglip import VisionTower


class PaliGemma(nnx.Module):
    """The network. Parameters keep the dtype they are given; activations are in `dtype`, the tower's in `vision_dtype`."""

    def __init__(self, config: PaliGemmaConfig, *, dtype=jnp.float32, vision_dtype=None, rngs: nnx.Rngs) -> None:
        self.img = VisionTower(config.img, config.llm.width, vision_dtype or dtype, rngs)
        self.llm = Decoder(config.llm, dtype, rngs)

    def embed(self, images: Float[Array, "b height width 3"], tokens: Int[Array, "b t"]) -> Float[Array, "b p d"]:
        """Image embeddings, then text embeddings. Image embeddings are not scaled; text embeddings are."""
        image = self.img(images)
        text = self.llm.embed(tokens)
        return jnp.concatenate([image.astype(text.dtype), text], axis=1)

    def hidden(
        self,
        images: Float[Array, "b height width 3"],
        tokens: Int[Array, "b t"],
        mask_ar: Int[Array, "b t"],
        mask_input: Bool[Array, "b t"] | None = None,
        remat: Remat = "none",
    ) -> Float[Array, "b t d"]:
        """Final hidden states at the text positions; `self.llm.logits` maps them to logits.

        Args:
            images: in [-1, 1].
            tokens: token ids.
            mask_ar: 0 on the prefix, 1 on the suffix.
            mask_input: False on padding; None (as in training) when padding need not be hidden, because nothing that
                counts comes after it.
            remat: what the backward pass recomputes.
        """
        x = self.embed(images, tokens)
        patches = x.shape[1] - tokens.shape[1]
        mask = prefix_lm_mask(*with_image(patches, mask_ar, mask_input))
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        return self.llm(x, positions, mask, remat)[:, patches:]


def with_image(
    patches: int, mask_ar: Int[Array, "b t"], mask_input: Bool[Array, "b t"] | None
) -> tuple[Int[Array, "b p"], Bool[Array, "b p"] | None]:
    """Masks of image and text together: image tokens are real, and visible to everything."""
    image = jnp.zeros((mask_ar.shape[0], patches), jnp.int32)
    mask_ar = jnp.concatenate([image, mask_ar.astype(jnp.int32)], axis=1)
    if mask_input is not None:
        mask_input = jnp.concatenate([image == 0, mask_input.astype(bool)], axis=1)
    return mask_ar, mask_input
