"""Maps our parameters to transformers' tensors and back: one table of names and axes, applied slice by slice."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from paligemma.checkpoints.architecture import PADDING, HasShape, check_shapes, nearest_variant
from paligemma.checkpoints.huggingface.names import EMBEDDING, LANGUAGE, TOWER, published_names
from paligemma.checkpoints.lazy import BLOCK, LazyArray, Stacked, copy, empty
from paligemma.checkpoints.safetensors_files import Tensor
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.parameter_shapes import parameter_shapes


class Row(NamedTuple):
    """One of our parameters, and the transformers tensors that make it up.

    Axes are letters; letters in parentheses are a single axis in the file. There is one tensor per layer `l` and per entry of
    `parts`, counted by `c`.
    """

    ours: str
    axes: str
    theirs: str
    their_axes: str
    parts: tuple[str, ...] = ()
    post_norms: bool | None = None  # only in decoders with, or without, post-norms


_OURS, _THEIRS = "img/Transformer/encoderblock", f"{TOWER}.encoder.layers.{{l}}"
_ATTENTION = f"{_OURS}/MultiHeadDotProductAttention_0"
_LAYERS, _LAYER = "llm/layers", f"{LANGUAGE}.layers.{{l}}"

TABLE = (
    Row("img/embedding/kernel", "y x i d", f"{TOWER}.embeddings.patch_embedding.weight", "d i y x"),
    Row("img/embedding/bias", "d", f"{TOWER}.embeddings.patch_embedding.bias", "d"),
    Row("img/pos_embedding", "o p d", f"{TOWER}.embeddings.position_embedding.weight", "(o p) d"),
    Row(f"{_OURS}/LayerNorm_0/scale", "l d", f"{_THEIRS}.layer_norm1.weight", "d"),
    Row(f"{_OURS}/LayerNorm_0/bias", "l d", f"{_THEIRS}.layer_norm1.bias", "d"),
    Row(f"{_OURS}/LayerNorm_1/scale", "l d", f"{_THEIRS}.layer_norm2.weight", "d"),
    Row(f"{_OURS}/LayerNorm_1/bias", "l d", f"{_THEIRS}.layer_norm2.bias", "d"),
    Row(f"{_OURS}/MlpBlock_0/Dense_0/kernel", "l d f", f"{_THEIRS}.mlp.fc1.weight", "f d"),
    Row(f"{_OURS}/MlpBlock_0/Dense_0/bias", "l f", f"{_THEIRS}.mlp.fc1.bias", "f"),
    Row(f"{_OURS}/MlpBlock_0/Dense_1/kernel", "l f d", f"{_THEIRS}.mlp.fc2.weight", "d f"),
    Row(f"{_OURS}/MlpBlock_0/Dense_1/bias", "l d", f"{_THEIRS}.mlp.fc2.bias", "d"),
    Row(f"{_ATTENTION}/query/kernel", "l d n h", f"{_THEIRS}.self_attn.q_proj.weight", "(n h) d"),
    Row(f"{_ATTENTION}/query/bias", "l n h", f"{_THEIRS}.self_attn.q_proj.bias", "(n h)"),
    Row(f"{_ATTENTION}/key/kernel", "l d n h", f"{_THEIRS}.self_attn.k_proj.weight", "(n h) d"),
    Row(f"{_ATTENTION}/key/bias", "l n h", f"{_THEIRS}.self_attn.k_proj.bias", "(n h)"),
    Row(f"{_ATTENTION}/value/kernel", "l d n h", f"{_THEIRS}.self_attn.v_proj.weight", "(n h) d"),
    Row(f"{_ATTENTION}/value/bias", "l n h", f"{_THEIRS}.self_attn.v_proj.bias", "(n h)"),
    Row(f"{_ATTENTION}/out/kernel", "l n h d", f"{_THEIRS}.self_attn.out_proj.weight", "d (n h)"),
    Row(f"{_ATTENTION}/out/bias", "l d", f"{_THEIRS}.self_attn.out_proj.bias", "d"),
    Row("img/Transformer/encoder_norm/scale", "d", f"{TOWER}.post_layernorm.weight", "d"),
    Row("img/Transformer/encoder_norm/bias", "d", f"{TOWER}.post_layernorm.bias", "d"),
    Row("img/head/kernel", "d w", "multi_modal_projector.linear.weight", "w d"),
    Row("img/head/bias", "w", "multi_modal_projector.linear.bias", "w"),
    Row("llm/embedder/input_embedding", "v d", f"{LANGUAGE}.embed_tokens.weight", "v d"),
    Row(f"{_LAYERS}/attn/q_einsum/w", "l n d h", f"{_LAYER}.self_attn.q_proj.weight", "(n h) d"),
    Row(f"{_LAYERS}/attn/kv_einsum/w", "l c n d h", f"{_LAYER}.self_attn.{{c}}_proj.weight", "(n h) d", ("k", "v")),
    Row(f"{_LAYERS}/attn/qkv_einsum/w", "l c n d h", f"{_LAYER}.self_attn.{{c}}_proj.weight", "(n h) d", ("q", "k", "v")),
    Row(f"{_LAYERS}/attn/attn_vec_einsum/w", "l n h d", f"{_LAYER}.self_attn.o_proj.weight", "d (n h)"),
    Row(f"{_LAYERS}/mlp/gating_einsum", "l c d f", f"{_LAYER}.mlp.{{c}}_proj.weight", "f d", ("gate", "up")),
    Row(f"{_LAYERS}/mlp/linear", "l f d", f"{_LAYER}.mlp.down_proj.weight", "d f"),
    Row(f"{_LAYERS}/pre_attention_norm/scale", "l d", f"{_LAYER}.input_layernorm.weight", "d"),
    # Gemma's second norm comes before the MLP, Gemma 2's after the attention: transformers gives both the same name.
    Row(f"{_LAYERS}/pre_ffw_norm/scale", "l d", f"{_LAYER}.post_attention_layernorm.weight", "d", post_norms=False),
    Row(f"{_LAYERS}/post_attention_norm/scale", "l d", f"{_LAYER}.post_attention_layernorm.weight", "d", post_norms=True),
    Row(f"{_LAYERS}/pre_ffw_norm/scale", "l d", f"{_LAYER}.pre_feedforward_layernorm.weight", "d", post_norms=True),
    Row(f"{_LAYERS}/post_ffw_norm/scale", "l d", f"{_LAYER}.post_feedforward_layernorm.weight", "d", post_norms=True),
    Row("llm/final_norm/scale", "d", f"{LANGUAGE}.norm.weight", "d"),
)
"""The transformers names are those of the published checkpoints, which every release reads."""

_POSITIONS = f"{TOWER}.embeddings.position_embedding.weight"


@dataclass(frozen=True)
class _Link:
    """The table's row for one tensor: its name, its part of our parameter, and the sizes of its axes."""

    row: Row
    theirs: str
    layer: int | None
    part: int | None
    sizes: Mapping[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(math.prod(self.sizes[letter] for letter in group) for group in _groups(self.row.their_axes))


def tensor_shapes(config: PaliGemmaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, named as in the published checkpoints, without padding of the vocabulary."""
    return {link.theirs: link.shape for link in _links(config)}


def from_tensors(config: PaliGemmaConfig, tensors: Mapping[str, Tensor], where: object) -> dict[str, LazyArray]:
    """All our parameters, assembled from memory-mapped tensors when they are indexed.

    Args:
        config: the architecture; its image size may differ from the checkpoint's.
        tensors: tensors of a checkpoint, by the names of any transformers release.
        where: their location, for messages.

    Raises:
        InputError: the weights are quantized, or adapters are not merged.
        DamagedError: names the missing, unexpected and mis-shaped tensors, and duplicates that differ from their originals.
    """
    named = published_names(config, tensors, where)
    rows = config.llm.vocab_size
    found = named[EMBEDDING].shape[:1] if EMBEDDING in named else ()
    if found and rows < found[0] <= rows + PADDING:
        named[EMBEDDING] = named[EMBEDDING].first(rows)
    if _POSITIONS in named:
        side = math.isqrt(max([1, *named[_POSITIONS].shape[:1]]))
        image = config.img.model_copy(update={"image_size": side * config.img.patch_size})
        config = config.model_copy(update={"img": image})

    def nearest(arrays: Mapping[str, HasShape]) -> str:
        return nearest_variant(arrays, tensor_shapes)

    check_shapes(tensor_shapes(config), named, where, nearest)
    return {
        name: _assembled([(link, named[link.theirs]) for link in links])
        for name, links in itertools.groupby(_links(config), lambda link: link.row.ours)
    }


def pieces(config: PaliGemmaConfig, arrays: Mapping[str, LazyArray]) -> Iterator[tuple[str, str, tuple[int, ...], Iterable]]:
    """Every transformers tensor, in the order in which to write it.

    Returns:
        Our parameter's name, the tensor's name, its shape, and an iterable of blocks of its values in C order.
    """
    for link in _links(config):
        yield link.row.ours, link.theirs, link.shape, _Pieces(link, arrays[link.row.ours])


@dataclass(frozen=True)
class _Pieces:
    """A tensor's values in C order, in blocks of consecutive indices along its first axis."""

    link: _Link
    array: LazyArray

    def __iter__(self) -> Iterator[np.ndarray]:
        link = self.link
        within, theirs = _inner(link.row.axes), _letters(link.row.their_axes)
        shape, first = link.shape, theirs[0]  # for an axis of heads times head size: whole heads
        row = math.prod(shape) * self.array.dtype.itemsize // link.sizes[first]
        step = max(1, BLOCK // row)
        outer = tuple(place for place in (link.layer, link.part) if place is not None)
        for start in range(0, link.sizes[first], step):
            chosen = [slice(start, start + step) if letter == first else slice(None) for letter in within]
            values = self.array[(*outer, *chosen)].transpose([within.index(letter) for letter in theirs])
            ordered = empty(values.shape, values.dtype)
            copy(values, ordered)
            yield ordered.reshape(-1, *shape[1:])


@dataclass(frozen=True)
class _View:
    """A tensor with our axes; slicing reads only the slice."""

    link: _Link
    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.link.sizes[letter] for letter in _inner(self.link.row.axes))

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.dtype

    def __getitem__(self, index) -> np.ndarray:
        theirs = _letters(self.link.row.their_axes)
        split = self.tensor.values().reshape([self.link.sizes[letter] for letter in theirs])
        return split.transpose([theirs.index(letter) for letter in _inner(self.link.row.axes)])[index]


def _assembled(linked: Sequence[tuple[_Link, Tensor]]) -> LazyArray:
    """One parameter, assembled from layers of parts, from layers, or from one tensor."""
    views = [_View(link, tensor) for link, tensor in linked]
    row = linked[0][0].row
    if row.parts:
        views = [Stacked(views[first : first + len(row.parts)]) for first in range(0, len(views), len(row.parts))]
    return Stacked(views) if row.axes.startswith("l ") else views[0]


def _links(config: PaliGemmaConfig) -> Iterator[_Link]:
    """One link per tensor. Links of one parameter are consecutive, in the order of its first axes."""
    shapes = parameter_shapes(config)
    for row in TABLE:
        if row.ours not in shapes or row.post_norms not in (None, config.llm.post_norms):
            continue
        sizes = dict(zip(_letters(row.axes), shapes[row.ours], strict=True))
        for layer in range(sizes["l"]) if "l" in sizes else [None]:
            for part, name in enumerate(row.parts) if row.parts else [(None, "")]:
                yield _Link(row, row.theirs.format(l=layer, c=name), layer, part, sizes)


def _letters(axes: str) -> list[str]:
    return [letter for letter in axes if letter.isalpha()]


def _inner(axes: str) -> list[str]:
    """The axes of a single tensor."""
    return [letter for letter in _letters(axes) if letter not in "lc"]


def _groups(axes: str) -> list[list[str]]:
    return [_letters(group) for group in re.findall(r"\([^)]*\)|\w", axes)]
