"""PaliGemma (arXiv 2407.07726): image embeddings followed by text embeddings, through one prefix-LM decoder."""

from __future__ import annotations

from typing import overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from paligemma.models.attention import prefix_lm_mask
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.gemma import Decoder, Dropout
from paligemma.models.layers import LayerPlan
from paligemma.models.lora_factors import LoraConfig
from paligemma.models.siglip import VisionTower
from paligemma.precision import FLOAT32, Precision


class PaliGemma(nnx.Module):
    """The network. Parameters keep their dtype; `precision` sets the dtypes of computation."""

    def __init__(
        self,
        config: PaliGemmaConfig,
        *,
        precision: Precision = FLOAT32,
        lora: LoraConfig | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.img = VisionTower(config.img, config.llm.width, precision.vision, rngs)
        self.llm = Decoder(config.llm, precision, lora, rngs)

    def embed_images(self, images: Float[Array, "b *n height width 3"], plan: LayerPlan | None = None) -> Float[Array, "b s d"]:
        """Image embeddings, as they come before the text; of the plan, `mesh` and `attention` count.

        Of n images in an example, the tower sees each alone, and their embeddings follow each other, n x patches of them: as in
        big_vision's `models/proj/paligemma/paligemma.py:74-87`, for pairs of images and for the frames of videos. There is
        nothing between two images, and no embedding of an image's number. Every token sees all of them, and they see each other
        (lines 128-133).
        """
        if images.ndim == 4:
            return self.img(images, plan)
        alone = self.img(images.reshape(-1, *images.shape[2:]), plan)
        return alone.reshape(len(images), -1, alone.shape[-1])

    def embed(self, image: Float[Array, "b s d"], tokens: Int[Array, "b t"]) -> Float[Array, "b p d"]:
        """Image embeddings (from `embed_images`), then text embeddings. Only text embeddings are scaled."""
        text = self.llm.embed(tokens)
        return jnp.concatenate([image.astype(text.dtype), text], axis=1)

    def hidden(
        self,
        image: Float[Array, "b s d"],
        tokens: Int[Array, "b t"],
        mask_ar: Int[Array, "b t"],
        mask_input: Bool[Array, "b t"] | None = None,
        *,
        at: Int[Array, "b q"] | None = None,
        plan: LayerPlan | None = None,
        dropout: Dropout | None = None,
    ) -> Float[Array, "b q d"]:
        """Final hidden states at text positions; `self.llm.logits` maps them to logits.

        Args:
            image: image embeddings from `embed_images`.
            tokens: token ids.
            mask_ar: 0 on the prefix, 1 on the suffix.
            mask_input: False on padding; None if padding need not be hidden, as in training, where only padding follows it.
            at: token indices of the returned states; None for all.
            plan: how the decoder's layers run.
            dropout: dropout in the decoder; None for none.
        """
        x = self.embed(image, tokens)
        patches = image.shape[1]
        mask = prefix_lm_mask(*with_image(patches, mask_ar, mask_input))
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        if at is None:
            at = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return self.llm(x, positions, mask, at + patches, plan, dropout)


@overload
def with_image(
    patches: int, mask_ar: Int[Array, "b t"], mask_input: Bool[Array, "b t"]
) -> tuple[Int[Array, "b p"], Bool[Array, "b p"]]: ...


@overload
def with_image(patches: int, mask_ar: Int[Array, "b t"], mask_input: None) -> tuple[Int[Array, "b p"], None]: ...


def with_image(
    patches: int, mask_ar: Int[Array, "b t"], mask_input: Bool[Array, "b t"] | None
) -> tuple[Int[Array, "b p"], Bool[Array, "b p"] | None]:
    """Masks of image and text together: image tokens are real, and every token sees them."""
    image = jnp.zeros((mask_ar.shape[0], patches), jnp.int32)
    mask_ar = jnp.concatenate([image, mask_ar.astype(jnp.int32)], axis=1)
    if mask_input is not None:
        mask_input = jnp.concatenate([image == 0, mask_input.astype(bool)], axis=1)
    return mask_ar, mask_input


def abstract_model(config: PaliGemmaConfig, precision: Precision = FLOAT32, lora: LoraConfig | None = None) -> PaliGemma:
    """The network with shapes instead of parameters; allocates no memory."""
    return nnx.eval_shape(lambda: PaliGemma(config, precision=precision, lora=lora, rngs=nnx.Rngs(0)))
