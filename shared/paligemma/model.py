"""The front door for notebooks, tests and scripts: `load` a checkpoint, ask for logits, tokens or text. Kept stable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import ArrayLike, Float, Int
from PIL import Image

from paligemma.checkpoints.merge import merged_arrays
from paligemma.checkpoints.open import Checkpoint, open_model
from paligemma.checkpoints.parameters import build_module
from paligemma.checkpoints.tuned import TunedModel
from paligemma.data.images import load_image, preprocess, to_rgb
from paligemma.data.tokenizer import Tokenizer
from paligemma.decoding.greedy import NO_EOS, greedy_decode
from paligemma.errors import InputError
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.paligemma import PaliGemma

ImageInput = str | Path | Image.Image | np.ndarray
PROMPT_BUCKET = 16
"""Prompts are padded to a multiple of this many tokens, so that `generate` compiles once for prompts of similar length."""


class Model:
    """A loaded PaliGemma.

    Attributes:
        config: its architecture.
        tokenizer: its tokenizer, or None if the checkpoint came without.
        module: the Flax NNX network.
    """

    def __init__(self, module: PaliGemma, config: PaliGemmaConfig, tokenizer: Tokenizer | None = None) -> None:
        self.module, self.config, self.tokenizer = module, config, tokenizer

    def logits(
        self,
        images: Float[ArrayLike, "b height width 3"],
        tokens: Int[ArrayLike, "b t"],
        mask_ar: Int[ArrayLike, "b t"],
        mask_input: Int[ArrayLike, "b t"] | None = None,
    ) -> Float[jax.Array, "b t v"]:
        """Logits of the next token at every text position, in float32.

        Args:
            images: in [-1, 1], of the model's size.
            tokens: token ids.
            mask_ar: 0 on the prefix (fully visible), 1 on the suffix (causal).
            mask_input: 0 on padding; None hides nothing.
        """
        self._check_batch(images, tokens)
        graph, state = nnx.split(self.module)
        mask_input = None if mask_input is None else jnp.asarray(mask_input, bool)
        return _logits(graph, state, jnp.asarray(images), jnp.asarray(tokens), jnp.asarray(mask_ar), mask_input)

    def decode(
        self,
        images: Float[ArrayLike, "b height width 3"],
        tokens: Int[ArrayLike, "b t"],
        mask_input: Int[ArrayLike, "b t"],
        mask_ar: Int[ArrayLike, "b t"],
        max_new_tokens: int,
        eos_id: int | None = None,
        row_mask: ArrayLike | None = None,
    ) -> np.ndarray:
        """Greedy continuation of each prompt, as token ids `[b, max_new_tokens]`.

        Decoding ends when every row has produced `eos_id`. What follows a row's own eos is not part of its answer; what
        was not decoded is 0.

        Args:
            images: in [-1, 1], of the model's size.
            tokens: prompts, padded on the right.
            mask_input: 0 on padding.
            mask_ar: of the prompts, usually 0.
            max_new_tokens: most tokens to decode, at least 1.
            eos_id: None to decode the full length.
            row_mask: False for rows that only pad the batch and need not end; None when there are none.
        """
        self._check_batch(images, tokens)
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}.", expected="at least 1")
        graph, state = nnx.split(self.module)
        tokens = jnp.asarray(tokens)
        row_mask = jnp.ones(len(tokens), bool) if row_mask is None else jnp.asarray(row_mask, bool)
        eos = jnp.int32(NO_EOS if eos_id is None else eos_id)
        images, mask_ar = jnp.asarray(images), jnp.asarray(mask_ar)
        valid = jnp.asarray(mask_input, bool)
        return np.asarray(
            greedy_decode(graph, state, images, tokens, valid, mask_ar, row_mask, eos, max_new_tokens=max_new_tokens)
        )

    def generate(self, images: Sequence[ImageInput], prompts: Sequence[str] | str, max_new_tokens: int = 32) -> list[str]:
        """Answers to one prompt for each image.

        Args:
            images: file paths, PIL images, or arrays `[height, width, 3]` of uint8; any size.
            prompts: one for each image, or one for all.
            max_new_tokens: most tokens to decode.

        Raises:
            InputError: an image cannot be read, or the checkpoint has no tokenizer.
        """
        if self.tokenizer is None:
            raise InputError(
                "The checkpoint has no tokenizer, so it cannot generate text.", expected="tokenizer.model beside it"
            )
        prompts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
        if len(prompts) != len(images):
            raise InputError(f"There are {len(images)} images and {len(prompts)} prompts.", expected="as many of each")
        if not prompts:
            return []
        pixels = np.stack([preprocess(_pixels(image), self.config.img.image_size) for image in images])
        tokens, mask = pad_prompts([self.tokenizer.prefix_ids(prompt) for prompt in prompts])
        answers = self.decode(pixels, tokens, mask, np.zeros_like(tokens), max_new_tokens, self.tokenizer.eos_id)
        return [self.tokenizer.decode(answer) for answer in answers]

    def _check_batch(self, images, tokens) -> None:
        size = self.config.img.image_size
        expected = (len(tokens), size, size, 3)
        if tuple(np.shape(images)) != expected:
            raise InputError(f"The images have shape {tuple(np.shape(images))}.", expected=expected)


def load(
    path: str | Path,
    config: PaliGemmaConfig | Mapping | str | Path | None = None,
    dtype: str | None = None,
    *,
    base: str | Path | None = None,
) -> Model:
    """Loads a checkpoint or a tuned model.

    Args:
        path: a big_vision `.npz` file, a folder with one, a Hugging Face folder, `embedded:tiny`, or a tuned model's folder;
            local or on `gs://`.
        config: the architecture, as an object, mapping, JSON file or variant name; by default `config.json` beside the
            weights, else inferred from an `.npz` file's shapes. With another image size than the weights', their position
            embeddings are resampled.
        dtype: dtype to hold the parameters in; by default the file's own.
        base: for a tuned model, its base checkpoint when that is not where it was at training time.

    Raises:
        InputError: nothing there, or an unknown configuration.
        DamagedError: a file is not whole, does not fit the architecture, or is not the tuned model's base.
    """
    return build_model(*open_model(path, config, base), dtype=dtype)


def build_model(checkpoint: Checkpoint, tuned: TunedModel | None = None, dtype: str | None = None) -> Model:
    """A model from an opened checkpoint, with a tuned model's parameters in place of its own where there are any."""
    arrays = checkpoint.arrays if tuned is None else merged_arrays(checkpoint.arrays, tuned)

    def dtype_of(name: str, stored: np.dtype) -> np.dtype:
        return stored if dtype is None or arrays[name] is not checkpoint.arrays[name] else jnp.dtype(dtype)

    module = build_module(checkpoint.config, arrays, dtype_of)
    tokenizer = Tokenizer(checkpoint.tokenizer) if checkpoint.tokenizer else None
    return Model(module, checkpoint.config, tokenizer)


def pad_prompts(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids `[b, t]` padded on the right with 0 to a multiple of `PROMPT_BUCKET`, and the mask of real tokens."""
    longest = max(len(prompt) for prompt in prompts)
    width = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
    tokens = np.zeros((len(prompts), width), np.int32)
    mask = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = True
    return tokens, mask


def _pixels(image: ImageInput) -> np.ndarray:
    if isinstance(image, str | Path):
        return load_image(image)
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image))
    return np.asarray(image, np.uint8)


@partial(jax.jit, static_argnames="graph")
def _logits(graph, state, images, tokens, mask_ar, mask_input):
    model = nnx.merge(graph, state)
    return model.llm.logits(model.hidden(model.img(images), tokens, mask_ar, mask_input))
