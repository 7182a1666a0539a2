"""Infers an architecture from a checkpoint's names and shapes, and checks that it is a PaliGemma's."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Protocol

import ml_dtypes
import numpy as np

from paligemma.checkpoints.lazy import FirstRows, LazyArray
from paligemma.errors import DamagedError
from paligemma.models.config import VARIANTS, DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.models.parameter_shapes import EMBEDDING, parameter_shapes

PADDING = 64
"""transformers pads the embedding to a multiple of this many rows, with the image token among them."""

_ATTENTION = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0"


class HasShape(Protocol):
    """Anything with a shape: lazy arrays, arrays, shape structs."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class HasDtype(Protocol):
    """Anything with a dtype."""

    @property
    def dtype(self) -> np.dtype: ...


def infer_config(arrays: Mapping[str, HasShape], where: object = None) -> PaliGemmaConfig:
    """The architecture, from parameter shapes alone.

    Shapes do not show soft caps and query scaling. They are taken from the published variant with these shapes, at any
    resolution. Otherwise, a checkpoint with post-norms gets those of Gemma 2's small sizes (attention soft cap 50), and one
    without gets Gemma 1's (none). Anything else needs a configuration.

    Raises:
        DamagedError: a required parameter is missing, or has a rank that no PaliGemma has.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in arrays or len(arrays[name].shape) != rank:
            near = nearest_variant(arrays)
            raise DamagedError(
                f"This is not a PaliGemma checkpoint, or a part of one: {name} is missing or has the wrong rank. "
                f"Compared with {near}, {differences(parameter_shapes(VARIANTS[near]), arrays)}.",
                where=where,
                expected=f"the parameters of a PaliGemma; the nearest published variant is {near}",
                fix="check that the file is whole, and a big_vision .npz file or a Hugging Face folder",
            )
        return tuple(arrays[name].shape)

    patch_size, _, _, width = shape("img/embedding/kernel", 4)
    _, patches, _ = shape("img/pos_embedding", 3)
    depth, _, num_heads, _ = shape(f"{_ATTENTION}/query/kernel", 4)
    vision = VisionConfig(
        image_size=patch_size * math.isqrt(patches),
        patch_size=patch_size,
        width=width,
        depth=depth,
        mlp_dim=shape("img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel", 3)[2],
        num_heads=num_heads,
    )
    vocab_size, width = shape(EMBEDDING, 2)
    depth, num_heads, head_dim, _ = shape("llm/layers/attn/attn_vec_einsum/w", 4)
    kv = "llm/layers/attn/kv_einsum/w"
    post_norms = "llm/layers/post_attention_norm/scale" in arrays
    decoder = DecoderConfig(
        width=width,
        depth=depth,
        mlp_dim=shape("llm/layers/mlp/linear", 3)[1],
        num_heads=num_heads,
        num_kv_heads=shape(kv, 5)[2] if kv in arrays else num_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        post_norms=post_norms,
        attn_logits_softcap=50.0 if post_norms else 0.0,
    )
    published = (
        variant.llm for variant in VARIANTS.values() if _same_shapes(variant.llm, decoder) or _padded(variant.llm, decoder)
    )
    return PaliGemmaConfig(img=vision, llm=next(published, decoder))


def without_padding(arrays: Mapping[str, LazyArray], config: PaliGemmaConfig) -> dict[str, LazyArray]:
    """The arrays, with the embedding cut to the vocabulary's rows: files made from transformers' have more rows."""
    result = dict(arrays)
    rows, found = config.llm.vocab_size, result.get(EMBEDDING)
    if found is not None and len(found.shape) == 2 and rows < found.shape[0] <= rows + PADDING:
        result[EMBEDDING] = FirstRows(found, rows)
    return result


def _padded(one: DecoderConfig, other: DecoderConfig) -> bool:
    """Whether `other` is `one` plus rows for transformers' image token, padded to a multiple of 64."""
    padded = one.model_copy(update={"vocab_size": (one.vocab_size // PADDING + 1) * PADDING})
    return _same_shapes(padded, other)


def _same_shapes(one: DecoderConfig, other: DecoderConfig) -> bool:
    untold = {"query_pre_attn_norm", "attn_logits_softcap", "final_logits_softcap"}
    return one.model_dump(exclude=untold) == other.model_dump(exclude=untold)


def check_parameters(config: PaliGemmaConfig, arrays: Mapping[str, HasShape], where: object) -> None:
    """Confirms that names and shapes are exactly those of the architecture.

    Raises:
        DamagedError: names the missing, unexpected and mis-shaped parameters.
    """
    check_shapes(parameter_shapes(config), arrays, where, nearest_variant)


def check_shapes(
    expected: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, HasShape],
    where: object,
    nearest: Callable[[Mapping[str, HasShape]], str],
) -> None:
    """Confirms that names and shapes are exactly the expected ones.

    Args:
        expected: shape of every parameter.
        arrays: the arrays to check, by name.
        where: their location, for the message.
        nearest: names the published variant that is most like the arrays.

    Raises:
        DamagedError: names the missing, unexpected and mis-shaped parameters.
    """
    if found := differences(expected, arrays):
        raise DamagedError(
            f"The checkpoint does not fit the architecture. {found}.",
            where=where,
            expected=f"{len(expected)} parameters; the nearest published variant is {nearest(arrays)}",
            fix="check config.json, and that every file is whole; without config.json, an .npz file's shapes tell",
        )


def check_dtypes(arrays: Mapping[str, HasDtype], where: object) -> None:
    """Confirms that parameters are floating-point numbers.

    Raises:
        DamagedError: names the parameters that are not.
    """
    others = [f"{name} is {array.dtype}" for name, array in arrays.items() if not is_floating(array.dtype)]
    if others:
        raise DamagedError(
            f"Parameters are not floating-point numbers: {_shortened(others)}.",
            where=where,
            expected="float32, float16 or bfloat16",
            fix="take the weights as trained: integers are of a quantized or damaged checkpoint",
        )


def is_floating(dtype: np.dtype) -> bool:
    """Whether a dtype holds floating-point numbers, among them those that NumPy does not know by itself (bfloat16, float8)."""
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return np.dtype(dtype).kind != "c"


def differences(expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, HasShape]) -> str:
    """Which parameters are missing, unexpected or mis-shaped; empty if none are."""
    missing = sorted(expected.keys() - arrays.keys())
    unexpected = sorted(arrays.keys() - expected.keys())
    wrong = [
        f"{name} is {tuple(arrays[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    problems = [f"missing: {_shortened(missing)}"] if missing else []
    for name in unexpected[:5]:
        near = difflib.get_close_matches(name, missing, n=1)
        problems.append(f"unexpected: {name}" + (f" (for {near[0]}?)" if near else ""))
    if len(unexpected) > 5:
        problems.append(f"unexpected: {len(unexpected) - 5} more")
    if wrong:
        problems.append(f"mis-shaped: {_shortened(wrong)}")
    return "; ".join(problems)


def nearest_variant(
    arrays: Mapping[str, HasShape],
    shapes_of: Callable[[PaliGemmaConfig], Mapping[str, tuple[int, ...]]] = parameter_shapes,
) -> str:
    """The published variant with the most parameters of equal name and shape; `shapes_of` names them as `arrays` does."""

    def agreement(name: str) -> int:
        shapes = shapes_of(VARIANTS[name])
        return sum(key in arrays and tuple(arrays[key].shape) == shape for key, shape in shapes.items())

    return max(VARIANTS, key=agreement)


def _shortened(items: list[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
