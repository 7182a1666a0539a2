"""The architecture of a PaliGemma: everything needed to build the modules except parameters. Not a training recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from paligemma.errors import InputError, PaliGemmaError, did_you_mean
from paligemma.foreign_json import SMALL_BYTES, read_json


class VisionConfig(BaseModel, frozen=True, extra="forbid"):
    """SigLIP vision transformer (arXiv 2303.15343)."""

    image_size: int = Field(default=224, gt=0, description="Side of the square input image, in pixels.")
    patch_size: int = Field(default=14, gt=0, description="Side of a patch, in pixels; the image size is a multiple of it.")
    width: int = Field(default=1152, gt=0, description="Width of the residual stream.")
    depth: int = Field(default=27, gt=0, description="Number of layers.")
    mlp_dim: int = Field(default=4304, gt=0, description="Hidden width of the MLP.")
    num_heads: int = Field(default=16, gt=0, description="Attention heads; the width is a multiple of it.")

    @model_validator(mode="after")
    def _divisible(self) -> VisionConfig:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self

    @property
    def num_patches(self) -> int:
        """Number of image tokens that the decoder sees."""
        return (self.image_size // self.patch_size) ** 2


class DecoderConfig(BaseModel, frozen=True, extra="forbid"):
    """Gemma decoder (arXiv 2403.08295), with Gemma 2's changes (arXiv 2408.00118) as explicit switches."""

    width: int = Field(default=2048, gt=0, description="Width of the residual stream.")
    depth: int = Field(default=18, gt=0, description="Number of layers.")
    mlp_dim: int = Field(default=16384, gt=0, description="Hidden width of the gated MLP.")
    num_heads: int = Field(default=8, gt=0, description="Query heads.")
    num_kv_heads: int = Field(default=1, gt=0, description="Key/value heads; num_heads is a multiple of it.")
    head_dim: int = Field(default=256, gt=0, description="Width of a head; even, because rotary embedding turns pairs.")
    vocab_size: int = Field(default=257152, gt=0, description="Rows of the embedding.")
    post_norms: bool = Field(default=False, description="Normalize after attention and MLP too (Gemma 2).")
    query_pre_attn_norm: Literal["rsqrt_head_dim", "rsqrt_emb_per_head"] = Field(
        default="rsqrt_head_dim", description="Queries are scaled by 1/sqrt of head_dim, or of width / num_heads (Gemma 2 27B)."
    )
    attn_logits_softcap: float = Field(default=0.0, ge=0, description="Soft cap on attention logits; 0 for none.")
    final_logits_softcap: float = Field(
        default=0.0,
        ge=0,
        description="Recorded, not applied: PaliGemma's reference reads its logits before the output cap, in training "
        "and in decoding (big_vision `paligemma.py`, which passes `pre_logits`).",
    )

    @model_validator(mode="after")
    def _divisible(self) -> DecoderConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary position embedding needs an even one")
        return self

    @property
    def query_scale(self) -> float:
        """Factor on the queries before the attention logits."""
        if self.query_pre_attn_norm == "rsqrt_emb_per_head":
            return (self.width // self.num_heads) ** -0.5
        return self.head_dim**-0.5


class PaliGemmaConfig(BaseModel, frozen=True, extra="forbid"):
    """A vision tower and a decoder; the tower's `head` projects to the decoder's width."""

    img: VisionConfig = VisionConfig()
    llm: DecoderConfig = DecoderConfig()


_SIZES = (224, 448, 896)


def _gemma2(width: int, depth: int, mlp_dim: int, heads: int, kv_heads: int, **others) -> DecoderConfig:
    return DecoderConfig(
        width=width, depth=depth, mlp_dim=mlp_dim, num_heads=heads, num_kv_heads=kv_heads, post_norms=True,
        attn_logits_softcap=50.0, **others,
    )  # fmt: skip


_DECODERS = {
    "paligemma-3b": DecoderConfig(),
    "paligemma2-3b": _gemma2(2304, 26, 9216, 8, 4),
    "paligemma2-10b": _gemma2(3584, 42, 14336, 16, 8),
    "paligemma2-28b": _gemma2(4608, 46, 36864, 32, 16, head_dim=128, query_pre_attn_norm="rsqrt_emb_per_head"),
}

VARIANTS: dict[str, PaliGemmaConfig] = {
    f"{name}-pt-{size}": PaliGemmaConfig(img=VisionConfig(image_size=size), llm=decoder)
    for name, decoder in _DECODERS.items()
    for size in _SIZES
}
"""Published architectures by name; checkpoints tuned on mixtures and tasks share them. Sources: the parameter trees of the
released checkpoints, and the papers' tables (arXiv 2407.07726, 2412.03555, 2408.00118).
"""


def parse_config(config: PaliGemmaConfig | Mapping | str | Path) -> PaliGemmaConfig:
    """Parses a configuration from an object, a mapping, the name of a variant, or the path of a JSON file.

    Raises:
        InputError: the name or file does not exist, or a key is unknown or has a wrong value.
    """
    if isinstance(config, PaliGemmaConfig):
        return config
    if isinstance(config, Mapping):
        return _validate(config, "the given mapping")
    if str(config) in VARIANTS:
        return VARIANTS[str(config)]
    path = Path(config)
    if not path.is_file():
        raise InputError(
            f"There is no model variant and no configuration file called {str(config)!r}.",
            expected=f"a JSON file, or {did_you_mean(str(config), VARIANTS)}",
        )
    return _validate(read_config(path), path)


def read_config(path: Path, error: type[PaliGemmaError] = InputError) -> dict:
    """The values in a configuration file, in our format or transformers'.

    Raises:
        PaliGemmaError: of the type `error`: the file cannot be read.
    """
    return read_json(path, "The model configuration", most=SMALL_BYTES, error=error, fix="correct it, or fetch it again")


def _validate(values: object, where: object) -> PaliGemmaConfig:
    try:
        return PaliGemmaConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(
            "The model configuration is wrong: " + describe_validation_error(error, PaliGemmaConfig),
            where=where,
            fix="compare it with `python -c 'from paligemma.models.config import *; print(VARIANTS)'`",
        ) from None


def describe_validation_error(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for each mistake, with its key path; for an unknown key, the nearest known key."""
    lines = []
    for mistake in error.errors():
        path = ".".join(str(part) for part in mistake["loc"]) or "the whole"
        message = mistake["msg"]
        if mistake["type"] == "extra_forbidden":
            fields: Mapping = model.model_fields
            for part in mistake["loc"][:-1]:
                annotation = fields[str(part)].annotation
                fields = annotation.model_fields if isinstance(annotation, type) else {}
            message = f"unknown key, {did_you_mean(str(mistake['loc'][-1]), fields)}"
        lines.append(f"{path}: {message}")
    return "; ".join(lines)
