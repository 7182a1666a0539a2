"""What a checkpoint's names and shapes say about its architecture, and whether they are a PaliGemma's."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Protocol

from flax import nnx

from paligemma.errors import DamagedError
from paligemma.models.config import VARIANTS, DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.models.lora import LoraConfig
from paligemma.models.paligemma import PaliGemma
from paligemma.precision import FLOAT32, Precision

_ATTENTION = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0"


class HasShape(Protocol):
    """Anything with a shape: lazy arrays, arrays, shape structs."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def abstract_model(config: PaliGemmaConfig, precision: Precision = FLOAT32, lora: LoraConfig | None = None) -> PaliGemma:
    """The network with shapes in place of parameters; takes no memory."""
    return nnx.eval_shape(lambda: PaliGemma(config, precision=precision, lora=lora, rngs=nnx.Rngs(0)))


def parameter_shapes(config: PaliGemmaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, named as in big_vision's checkpoints."""
    state = nnx.to_flat_state(nnx.state(abstract_model(config), nnx.Param))
    return {"/".join(path): variable.shape for path, variable in state}


def infer_config(arrays: Mapping[str, HasShape]) -> PaliGemmaConfig:
    """The architecture, from parameter shapes alone.

    Soft caps and the scaling of queries leave no trace in shapes: a checkpoint with post-norms is taken for Gemma 2's
    small sizes (attention soft cap 50), any other for Gemma 1 (none). Anything else needs a configuration.

    Raises:
        DamagedError: a parameter that is needed is not there, or has a rank no PaliGemma's has.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in arrays or len(arrays[name].shape) != rank:
            found = arrays[name].shape if name in arrays else "nothing"
            raise DamagedError(
                f"This is not a PaliGemma checkpoint: {name} is missing or has the wrong rank.",
                expected=f"an array of rank {rank}, found {found}",
                fix="check that the file is whole and of a supported format (big_vision .npz)",
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
    vocab_size, width = shape("llm/embedder/input_embedding", 2)
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
    return PaliGemmaConfig(img=vision, llm=decoder)


def check_parameters(config: PaliGemmaConfig, arrays: Mapping[str, HasShape], where: object) -> None:
    """Confirms that names and shapes are exactly those of the architecture.

    Raises:
        DamagedError: names the missing, unexpected and mis-shaped parameters.
    """
    expected = parameter_shapes(config)
    missing = sorted(expected.keys() - arrays.keys())
    unexpected = sorted(arrays.keys() - expected.keys())
    wrong = [
        f"{name} is {tuple(arrays[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    if not (missing or unexpected or wrong):
        return
    problems = [f"missing: {_shortened(missing)}"] if missing else []
    for name in unexpected[:5]:
        near = difflib.get_close_matches(name, missing, n=1)
        problems.append(f"unexpected: {name}" + (f" (for {near[0]}?)" if near else ""))
    if len(unexpected) > 5:
        problems.append(f"unexpected: {len(unexpected) - 5} more")
    if wrong:
        problems.append(f"mis-shaped: {_shortened(wrong)}")
    raise DamagedError(
        "The checkpoint does not fit the architecture. " + "; ".join(problems) + ".",
        where=where,
        expected=f"{len(expected)} parameters; the nearest published variant is {nearest_variant(arrays)}",
        fix="check config.json, or leave it out to infer the architecture from the shapes",
    )


def nearest_variant(arrays: Mapping[str, HasShape]) -> str:
    """The published variant whose parameters agree most often in name and shape."""

    def agreement(name: str) -> int:
        shapes = parameter_shapes(VARIANTS[name])
        return sum(key in arrays and tuple(arrays[key].shape) == shape for key, shape in shapes.items())

    return max(VARIANTS, key=agreement)


def _shortened(items: list[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
