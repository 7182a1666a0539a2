"""The stable interface for notebooks, tests and scripts: `load` a checkpoint, then compute logits, tokens or text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float, Int
from PIL import Image

from paligemma.checkpoints.lazy import LazyArray, Resolvable
from paligemma.checkpoints.merge import merged_arrays
from paligemma.checkpoints.open_checkpoint import Checkpoint, open_model
from paligemma.checkpoints.parameters import build_decoding_module
from paligemma.checkpoints.quantized_files import QuantizedArray
from paligemma.checkpoints.tuned import TunedModel
from paligemma.data.images import load_image, preprocess, to_rgb
from paligemma.data.pictures.levels import GreyRange, parse_grey_range
from paligemma.data.tokenizer import Tokenizer
from paligemma.decoding.decode import Decoded, Generator
from paligemma.decoding.settings import DecodeSettings
from paligemma.errors import InputError
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.paligemma import PaliGemma
from paligemma.models.weight_formats import QuantizeConfig, WeightFormat, weight_format

ImageInput = str | Path | Image.Image | np.ndarray
QuestionImages = ImageInput | Sequence[ImageInput]
"""The image that a question is about, or a list of several."""
PROMPT_BUCKET = 16
"""Prompts are padded to a multiple of this many tokens, so that `generate` compiles once for prompts of similar length."""


@dataclass(frozen=True)
class Answer:
    """A text, its log-probability under the model in nats, and each token's, including eos."""

    text: str
    logprob: float
    token_logprobs: tuple[float, ...]


class Model:
    """A loaded PaliGemma.

    Attributes:
        config: its architecture.
        tokenizer: its tokenizer; None if the checkpoint has none.
        module: the Flax NNX network. On GPUs, the decoder's layers are a list, see `build_decoding_module`.
        grey_range: samples of black and white in grey pictures; None: as stated in each file.
        mesh: the devices for `decode`; None for the network's own device.
        images_per_example: number of images that `answer` takes for each question; None: any, as many for each.
    """

    def __init__(
        self,
        module: PaliGemma,
        config: PaliGemmaConfig,
        tokenizer: Tokenizer | None = None,
        mesh: Mesh | None = None,
        grey_range: GreyRange | None = None,
        images_per_example: int | None = None,
    ) -> None:
        self.module, self.config, self.tokenizer = module, config, tokenizer
        self.mesh, self.images_per_example = mesh, images_per_example
        self.grey_range = grey_range
        self._ready: tuple[list, Generator] | None = None

    def logits(
        self,
        images: Float[ArrayLike, "b *n height width 3"],
        tokens: Int[ArrayLike, "b t"],
        mask_ar: Int[ArrayLike, "b t"],
        mask_input: Int[ArrayLike, "b t"] | None = None,
    ) -> Float[jax.Array, "b t v"]:
        """Logits of the next token at every text position, in float32.

        Args:
            images: pixels in [-1, 1], of the model's image size; `[b, n, height, width, 3]` if there are several for each row.
            tokens: token ids.
            mask_ar: 0 on the prefix (fully visible), 1 on the suffix (causal).
            mask_input: 0 on padding; None hides nothing.
        """
        self._check_batch(images, tokens)
        graph, state = nnx.split(self.module)
        mask_input = None if mask_input is None else np.asarray(mask_input, bool)
        return _logits(graph, state, np.asarray(images), np.asarray(tokens), np.asarray(mask_ar), mask_input)

    def decode(
        self,
        images: Float[ArrayLike, "b *n height width 3"],
        tokens: Int[ArrayLike, "b t"],
        mask_input: Int[ArrayLike, "b t"],
        mask_ar: Int[ArrayLike, "b t"],
        max_new_tokens: int,
        eos_id: int | None = None,
        row_mask: ArrayLike | None = None,
    ) -> np.ndarray:
        """Greedy continuation of each prompt, as token ids `[b, max_new_tokens]`.

        Decoding ends when every row has produced `eos_id`. Tokens after a row's own eos are not part of its answer; positions
        that were not decoded are 0.

        Args:
            images: pixels in [-1, 1], of the model's image size; `[b, n, height, width, 3]` if there are several for each row.
            tokens: prompts, padded on the right.
            mask_input: 0 on padding.
            mask_ar: the prompts' mask_ar, usually all 0.
            max_new_tokens: maximum number of tokens to decode, at least 1.
            eos_id: None to decode the full length.
            row_mask: False for rows that only pad the batch and need not end; None when there are none.
        """
        settings = DecodeSettings(max_new_tokens)
        return self.search(images, tokens, mask_input, mask_ar, settings, eos_id, row_mask).tokens

    def search(
        self,
        images: Float[ArrayLike, "b *n height width 3"],
        tokens: Int[ArrayLike, "b t"],
        mask_input: Int[ArrayLike, "b t"],
        mask_ar: Int[ArrayLike, "b t"],
        settings: DecodeSettings,
        eos_id: int | None = None,
        row_mask: ArrayLike | None = None,
        row_seeds: ArrayLike | None = None,
    ) -> Decoded:
        """Like `decode`, with any decoding settings, and with log-probabilities.

        Args:
            settings: greedy, sampling, best of several samples, or beam search, which needs an `eos_id`.
            row_seeds: a seed for each row's samples; by default the settings' seed plus its index in the batch.
        """
        self._check_batch(images, tokens)
        if settings.beams > 1 and eos_id is None:
            raise InputError("A beam search needs to know how an answer ends.", expected="eos_id")
        return self.generator()(
            np.asarray(images),
            np.asarray(tokens),
            np.asarray(mask_input),
            np.asarray(mask_ar),
            settings,
            eos_id,
            None if row_mask is None else np.asarray(row_mask),
            None if row_seeds is None else np.asarray(row_seeds),
        )

    def generator(self) -> Generator:
        """The network, ready to decode. Recreated after its parameters are replaced."""
        leaves = jax.tree.leaves(nnx.state(self.module))
        if self._ready is None or any(old is not new for old, new in zip(self._ready[0], leaves, strict=True)):
            self._ready = leaves, Generator(self.module, self.mesh)
        return self._ready[1]

    def generate(self, images: Sequence[QuestionImages], prompts: Sequence[str] | str, max_new_tokens: int = 32) -> list[str]:
        """Answers to one prompt for each image, or for the images of each list.

        Args:
            images: file paths, PIL images, or arrays `[height, width, 3]` of uint8, of any size; or lists of as many each, of
                questions about several images together.
            prompts: one for each entry of `images`, or one for all.
            max_new_tokens: maximum number of tokens to decode.

        Raises:
            InputError: an image cannot be read, the checkpoint has no tokenizer, or a model that was tuned on another number of
                images is asked.
        """
        return [answer.text for answer in self.answer(images, prompts, DecodeSettings(max_new_tokens))]

    def answer(
        self,
        images: Sequence[QuestionImages],
        prompts: Sequence[str] | str,
        settings: DecodeSettings,
        seeds: Sequence[int] | None = None,
    ) -> list[Answer]:
        """Like `generate`, with any decoding settings, and with log-probabilities.

        Args:
            images: see `generate`.
            prompts: see `generate`.
            settings: greedy, sampling, best of several samples, or beam search.
            seeds: a seed for each answer's samples; by default the settings' seed plus its index.
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
        groups = [_several(image) for image in images]
        self._check_number({len(group) for group in groups})
        size = self.config.img.image_size
        read = [[preprocess(_pixels(image, self.grey_range), size) for image in group] for group in groups]
        pixels = np.stack([group[0] if len(group) == 1 else np.stack(group) for group in read])
        tokens, mask = pad_prompts([self.tokenizer.prefix_ids(prompt) for prompt in prompts])
        eos = self.tokenizer.eos_id
        row_seeds = None if seeds is None else np.asarray(seeds)
        found = self.search(pixels, tokens, mask, np.zeros_like(tokens), settings, eos, row_seeds=row_seeds)
        answers = []
        for ids, logprobs, score in zip(found.tokens.tolist(), found.logprobs.tolist(), found.scores.tolist(), strict=True):
            length = ids.index(eos) + 1 if eos in ids else len(ids)
            answers.append(Answer(self.tokenizer.decode(ids), score, tuple(logprobs[:length])))
        return answers

    def _check_batch(self, images, tokens) -> None:
        size, shape = self.config.img.image_size, tuple(np.shape(images))
        several = shape[1:2] if len(shape) == 5 else ()
        expected = (len(tokens), *several, size, size, 3)
        if shape != expected or several == (0,):
            raise InputError(f"The images have shape {shape}.", expected=expected)

    def _check_number(self, found: set[int]) -> None:
        """Confirms that all questions have one number of images, and the right one."""
        wanted = self.images_per_example
        if len(found) > 1 or 0 in found:
            counts = ", ".join(map(str, sorted(found)))
            raise InputError(f"The questions are about {counts} images each.", expected="as many for each, at least one")
        if wanted is not None and found != {wanted}:
            raise InputError(
                f"The model was tuned on {wanted} image{'s' if wanted > 1 else ''} in a row, the question has {found.pop()}.",
                fix="give as many" + (", each with an --image of its own" if wanted > 1 else ""),
            )


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
        config: the architecture, as an object, mapping, JSON file or variant name; by default `config.json` beside the weights,
            else inferred from an `.npz` file's shapes. If its image size differs from the weights', position embeddings are
            resampled.
        dtype: dtype of the parameters in memory; by default the file's own, and for the decoder's weights on an accelerator the
            dtype that it multiplies in. `int8` and `nf4` quantize weights, also those that were tuned.
        base: a tuned model's base checkpoint, if it has moved since training.

    Raises:
        InputError: nothing is there, or the configuration is unknown.
        DamagedError: a file is incomplete, does not fit the architecture, or is not the tuned model's base.
    """
    return build_model(*open_model(path, config, base), dtype=dtype)


def build_model(
    checkpoint: Checkpoint, tuned: TunedModel | None = None, dtype: str | None = None, mesh: Mesh | None = None
) -> Model:
    """Builds a model from an opened checkpoint; a tuned model's parameters replace the checkpoint's.

    Args:
        checkpoint: the base.
        tuned: what was tuned; None for the base alone.
        dtype: dtype of the base's parameters in memory; None: see `load`.
        mesh: the devices to decode on; None for the default device.

    Raises:
        DamagedError: a weight file's bytes do not match their checksums or hashes, if there are any.
    """
    arrays = checkpoint.arrays if tuned is None else merged_arrays(checkpoint.arrays, tuned)

    def held_in(name: str, array: LazyArray) -> np.dtype | WeightFormat:
        stored = array.resolve() if isinstance(array, Resolvable) else array
        if dtype is None and isinstance(stored, QuantizedArray):
            return stored.form
        if dtype == "int8" or dtype == "nf4":
            return weight_format(name, tuple(array.shape), dtype, QuantizeConfig()) or array.dtype
        return array.dtype if dtype is None or array is not checkpoint.arrays[name] else jnp.dtype(dtype)

    with ThreadPoolExecutor(1) as pool:
        # Reading a member of an npz file compares it with its checksum.
        hashed = pool.submit(checkpoint.verify) if checkpoint.weights.suffix != ".npz" else None
        module = build_decoding_module(checkpoint.config, arrays, held_in, mesh)
        if hashed is not None:
            hashed.result()
    tokenizer = Tokenizer(checkpoint.tokenizer) if checkpoint.tokenizer else None
    grey_range = parse_grey_range(tuned.description.grey_range) if tuned is not None else None
    images = tuned.description.images_per_example if tuned is not None else None
    return Model(module, checkpoint.config, tokenizer, mesh, grey_range, images)


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


def _several(images: QuestionImages) -> list[ImageInput]:
    """The images of a question: one, or those of a list."""
    if isinstance(images, str | Path | Image.Image | np.ndarray):
        return [images]
    return list(images)


def _pixels(image: ImageInput, grey_range: GreyRange | None) -> np.ndarray:
    if isinstance(image, str | Path):
        return load_image(image, grey_range)
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image, grey_range))
    return np.asarray(image, np.uint8)


@partial(jax.jit, static_argnames="graph")
def _logits(graph, state, images, tokens, mask_ar, mask_input):
    model = nnx.merge(graph, state)
    return model.llm.logits(model.hidden(model.embed_images(images), tokens, mask_ar, mask_input))
