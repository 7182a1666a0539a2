"""Formats of quantized weights: which weights they are for, and their one numeric definition, in NumPy.

int8 is symmetric: `scale = max|w| / 127.5`, `code = round(w / scale)`, half to even, at most 127. nf4 is the 4-bit NormalFloat
of QLoRA (arXiv 2305.14314, appendix E): `scale = max|w|`, and the code is the number of the nearest of 16 levels. Codes and
scales are those of qwix (`qwix/_src/core/qarray.py`, `absmax` calibration of float32 weights).
"""

from __future__ import annotations

import math
import re
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from pydantic import BaseModel, Field, field_validator

from paligemma.choices import QuantizedDtype, StoredDtype

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""What the codes of nf4 stand for."""

WeightGroup = Literal["mlp", "attention", "embedding", "vision"]

_LINEARS: dict[WeightGroup, dict[str, tuple[int, ...]]] = {
    "mlp": {r"llm/layers/mlp/(gating_einsum|linear)": (-2,)},
    "attention": {r"llm/layers/attn/(q|kv|qkv)_einsum/w": (-2,), r"llm/layers/attn/attn_vec_einsum/w": (-3, -2)},
    "embedding": {r"llm/embedder/input_embedding": (-1,)},
    "vision": {
        r"img/Transformer/encoderblock/MultiHeadDotProductAttention_0/(query|key|value)/kernel": (-3,),
        r"img/Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel": (-3, -2),
        r"img/Transformer/encoderblock/MlpBlock_0/Dense_[01]/kernel": (-2,),
    },
}
"""For each group the names of its weights, and the axes of each that its product sums over. Norms, biases, position embeddings
and the first and the last layer of the tower are never quantized: together they are 0.3 % of the 3B.
"""

_SMALLEST_SCALE = np.sqrt(np.finfo(np.float32).tiny)


class QuantizeConfig(BaseModel, frozen=True, extra="forbid"):
    """Which frozen weights are quantized, and how finely."""

    block: int = Field(
        default=64,
        ge=2,
        le=4096,
        description="Weights that share a scale in nf4, along the inputs of a linear layer.",
    )
    groups: tuple[WeightGroup, ...] = Field(
        default=("mlp", "attention", "embedding", "vision"),
        min_length=1,
        description="Groups of frozen weights that are quantized: mlp and attention of the decoder, embedding, vision.",
    )
    others: StoredDtype = Field(default="float16", description="Dtype of the frozen parameters that are not quantized.")

    @field_validator("groups")
    @classmethod
    def _once_each(cls, groups: tuple[WeightGroup, ...]) -> tuple[WeightGroup, ...]:
        if len(set(groups)) < len(groups):
            raise ValueError("a group is named twice")
        return groups


class WeightFormat(NamedTuple):
    """How a weight is quantized.

    Attributes:
        kind: `int8` or `nf4`.
        inputs: the axes that the weight's product sums over, counted from the end.
        block: weights along the last of `inputs` that share a scale; 0: all of an output's.
    """

    kind: QuantizedDtype
    inputs: tuple[int, ...]
    block: int = 0

    @property
    def codes_dtype(self) -> np.dtype:
        """Dtype of the codes' array."""
        return np.dtype(np.int8 if self.kind == "int8" else np.uint8)

    def shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the codes and of the scales of a weight with this shape. nf4 has two codes in a byte."""
        codes, scales = list(shape), list(shape)
        if self.kind == "nf4":
            codes[self.inputs[-1]] //= 2
        if self.block:
            scales[self.inputs[-1]] //= self.block
        else:
            for axis in self.inputs:
                scales[axis] = 1
        return tuple(codes), tuple(scales)


def weight_format(name: str, shape: tuple[int, ...], kind: QuantizedDtype, config: QuantizeConfig) -> WeightFormat | None:
    """The format of a parameter; None if it is not quantized.

    int8 has a scale for each output, so that products run on codes and are scaled afterwards. nf4 is for the decoder's linear
    layers. The embedding, whose rows are looked up, and the tower, whose width of 4,304 no block divides, take int8 beside it.

    Args:
        name: the parameter's name, as in big_vision's checkpoints.
        shape: its shape.
        kind: what is asked for.
        config: which groups, and nf4's block.
    """
    for group in config.groups:
        for pattern, inputs in _LINEARS[group].items():
            if re.fullmatch(pattern, name):
                block = math.gcd(shape[inputs[-1]], config.block)
                fine = kind == "nf4" and group in ("mlp", "attention") and block % 2 == 0
                return WeightFormat("nf4", inputs, block) if fine else WeightFormat("int8", inputs)
    return None


def quantize(weight: Float[np.ndarray, "*shape"], form: WeightFormat) -> tuple[np.ndarray, Float32[np.ndarray, "*scales"]]:
    """A weight's codes and scales; see `WeightFormat.shapes`. Equal weights give equal bytes on every machine.

    Args:
        weight: any float dtype, finite.
        form: how to quantize it.

    Returns:
        Codes (int8; for nf4 uint8) and scales (float32). A byte of nf4 has the code of a weight of the first half of its block
        in the low bits, and that of the same place in the second half in the high bits.
    """
    weight = np.asarray(weight, np.float32)
    if form.kind == "int8":
        scales = _scales(np.abs(weight).max(axis=form.inputs, keepdims=True) / np.float32(127.5))
        return np.minimum(np.rint(weight / scales), 127).astype(np.int8), scales
    blocks = _in_blocks(weight, form)
    scales = _scales(np.abs(blocks).max(axis=form.inputs[-1], keepdims=True))
    codes = np.searchsorted(_BETWEEN, blocks / scales).astype(np.uint8)
    low, high = np.split(codes, 2, axis=form.inputs[-1])
    codes_shape, scales_shape = form.shapes(weight.shape)
    return (low | high << 4).reshape(codes_shape), scales.reshape(scales_shape)


def dequantize(codes: np.ndarray, scales: Float32[np.ndarray, "*scales"], form: WeightFormat) -> Float32[np.ndarray, "*shape"]:
    """The weight that the codes and scales of `quantize` stand for: level times scale."""
    if form.kind == "int8":
        return codes.astype(np.float32) * scales
    axis = form.inputs[-1]
    halves = _in_blocks(codes, form._replace(block=form.block // 2))
    levels = np.array(NF4_LEVELS, np.float32)[np.concatenate([halves & 15, halves >> 4], axis)]
    shape = list(codes.shape)
    shape[axis] *= 2
    return (levels * np.expand_dims(scales, axis)).reshape(shape)


def _in_blocks(weight: np.ndarray, form: WeightFormat) -> np.ndarray:
    """A weight with its blocked axis as two: blocks, and places in a block."""
    axis = weight.ndim + form.inputs[-1]
    return weight.reshape(*weight.shape[:axis], -1, form.block, *weight.shape[axis + 1 :])


def _scales(scales: Float32[np.ndarray, "*scales"]) -> Float32[np.ndarray, "*scales"]:
    """Scales by which weights can be divided: 1 where all weights are 0, or nearly."""
    return np.where(scales < _SMALLEST_SCALE, np.float32(1.0), scales)


_BETWEEN = (np.array(NF4_LEVELS[1:], np.float32) + np.array(NF4_LEVELS[:-1], np.float32)) / 2
"""Where the nearest level changes."""
