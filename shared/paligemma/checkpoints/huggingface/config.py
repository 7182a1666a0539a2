"""Converts between transformers' `config.json` and ours. Refuses, rather than ignores, what our network does not compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from paligemma.checkpoints.architecture import PADDING
from paligemma.checkpoints.huggingface.names import DEQUANTIZE
from paligemma.errors import InputError
from paligemma.models.config import DecoderConfig, PaliGemmaConfig, describe_validation_error

# transformers' defaults (its classes SiglipVisionConfig, GemmaConfig, Gemma2Config): the published files omit many keys.
_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
    "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_channels": 3,
}  # fmt: skip
_SAME = {
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "attention_bias": False,
    "tie_word_embeddings": True, "vocab_size": 256000,
}  # fmt: skip
_TEXT = {
    "gemma": _SAME | {
        "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "gemma2": _SAME | {
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
}  # fmt: skip


def is_huggingface_config(values: object) -> bool:
    """Whether a configuration is in transformers' format, not ours."""
    return isinstance(values, Mapping) and ("model_type" in values or "vision_config" in values)


def parse_huggingface_config(values: Mapping[str, Any], where: object) -> PaliGemmaConfig:
    """Our architecture from transformers' configuration.

    The sliding window of Gemma 2 is left out: big_vision's PaliGemma 2 has none.

    Raises:
        InputError: it is not a PaliGemma's, or needs something that our network does not compute.
    """
    text_values, vision_values = values.get("text_config"), values.get("vision_config")
    kind = text_values.get("model_type", "gemma") if isinstance(text_values, Mapping) else None
    if quantized := values.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, Mapping) else None
        raise InputError(
            f"The model is quantized{f', by {method}' if isinstance(method, str) else ''}.",
            where=where,
            expected="weights as trained, without quantization_config in config.json",
            fix=DEQUANTIZE,
        )
    if values.get("model_type") != "paligemma" or kind not in _TEXT or not isinstance(vision_values, Mapping):
        raise InputError(
            f"The configuration is not of a PaliGemma: it is of {_kind_of(values.get('model_type'), kind)}.",
            where=where,
            expected="model_type paligemma, its text_config gemma or gemma2",
        )
    assert isinstance(text_values, Mapping)
    # null means the default, except for soft caps, where it means no cap
    said = {key: value for key, value in text_values.items() if value is not None or "softcapping" in key}
    vision, text = _VISION | dict(vision_values), _TEXT[kind] | said
    try:
        _check_computed(values, vision, text, where)
        return _translated(values, vision, text, kind, where)
    except ValidationError as error:
        message = describe_validation_error(error, PaliGemmaConfig)
        raise InputError(f"The model configuration is wrong: {message}.", where=where) from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"The model configuration is wrong: {error}.", where=where) from None


def _kind_of(kind: object, text: object) -> str:
    if kind != "paligemma":
        return repr(kind)
    return f"one whose text_config is {text!r}" if text else "one without text_config and vision_config"


def _check_computed(values: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any], where: object) -> None:
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    computed = {
        "vision_config.hidden_act": (vision["hidden_act"], "gelu_pytorch_tanh"),
        "vision_config.layer_norm_eps": (vision["layer_norm_eps"], 1e-6),
        "vision_config.num_channels": (vision["num_channels"], 3),
        "text_config.hidden_activation": (text["hidden_activation"], "gelu_pytorch_tanh"),
        "text_config.rms_norm_eps": (text["rms_norm_eps"], 1e-6),
        "text_config.attention_bias": (text["attention_bias"], False),
        "text_config.rope_theta": (rope.get("rope_theta", text.get("rope_theta", 10_000.0)), 10_000.0),
        "text_config.rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "tie_word_embeddings": (values.get("tie_word_embeddings", True) and text["tie_word_embeddings"], True),
    }
    if others := [f"{key} is {found!r}, not {ours!r}" for key, (found, ours) in computed.items() if found != ours]:
        raise InputError(f"This PaliGemma computes what ours does not: {'; '.join(others)}.", where=where)


def _translated(
    values: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any], kind: str, where: object
) -> PaliGemmaConfig:
    image = {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "width": vision["hidden_size"],
        "depth": vision["num_hidden_layers"],
        "mlp_dim": vision["intermediate_size"],
        "num_heads": vision["num_attention_heads"],
    }
    decoder = {
        "width": text["hidden_size"],
        "depth": text["num_hidden_layers"],
        "mlp_dim": text["intermediate_size"],
        "num_heads": text["num_attention_heads"],
        "num_kv_heads": text["num_key_value_heads"],
        "head_dim": text["head_dim"],
        "vocab_size": _vocabulary(values, text["vocab_size"]),
        "post_norms": kind == "gemma2",
        "query_pre_attn_norm": _query_norm(text, where) if kind == "gemma2" else "rsqrt_head_dim",
        "attn_logits_softcap": text.get("attn_logit_softcapping") or 0.0,
        "final_logits_softcap": text.get("final_logit_softcapping") or 0.0,
    }
    return PaliGemmaConfig.model_validate({"img": image, "llm": decoder})


def huggingface_config(config: PaliGemmaConfig, dtype: np.dtype, pieces: int | None) -> dict[str, Any]:
    """transformers' configuration for a folder that we write.

    Args:
        config: the architecture.
        dtype: dtype in which transformers holds the parameters.
        pieces: number of the tokenizer's pieces; None without a tokenizer.
    """
    image, text = config.img, config.llm
    sizes = {
        "hidden_size": text.width,
        "intermediate_size": text.mlp_dim,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "head_dim": text.head_dim,
        "vocab_size": embedding_rows(config, pieces),
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "num_image_tokens": image.num_patches,
        "torch_dtype": dtype.name,
    }
    gemma2 = {
        "query_pre_attn_scalar": _query_scalar(text),
        "attn_logit_softcapping": text.attn_logits_softcap or None,
        "final_logit_softcapping": text.final_logits_softcap or None,
        # Every layer attends to everything. Releases that do not know layer_types get a window that is never too small.
        "layer_types": ["full_attention"] * text.depth,
        "sliding_window": 8192,
    }
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "torch_dtype": dtype.name,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "hidden_size": text.width,
        "projection_dim": text.width,
        "image_token_index": image_token(config, pieces),
        "vocab_size": text.vocab_size,
        "tie_word_embeddings": True,
        "text_config": {"model_type": "gemma2" if text.post_norms else "gemma", **sizes, **(gemma2 if text.post_norms else {})},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": image.width,
            "intermediate_size": image.mlp_dim,
            "num_hidden_layers": image.depth,
            "num_attention_heads": image.num_heads,
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "num_image_tokens": image.num_patches,
            "projection_dim": text.width,
            "vision_use_head": False,
        },
    }


def image_token(config: PaliGemmaConfig, pieces: int | None) -> int:
    """Id of the image token: the first id after the tokenizer's."""
    return config.llm.vocab_size if pieces is None else pieces


def embedding_rows(config: PaliGemmaConfig, pieces: int | None) -> int:
    """Rows of transformers' embedding: the vocabulary, plus the image token if no row is free, padded to a multiple of 64."""
    rows = config.llm.vocab_size
    return rows if image_token(config, pieces) < rows else (rows // PADDING + 1) * PADDING


def _vocabulary(values: Mapping[str, Any], rows: int) -> int:
    """Rows of the embedding, without the rows that transformers added for the image token.

    The top-level `vocab_size` is right in the published files and in ours. Elsewhere it may be transformers' default; then the
    vocabulary ends at the image token, if that is among the last rows.
    """
    for found in (values.get("vocab_size"), values.get("image_token_index", values.get("image_token_id"))):
        if isinstance(found, int) and rows - PADDING <= found <= rows:
            return found
    return rows


def _query_scalar(text: DecoderConfig) -> int:
    return text.head_dim if text.query_pre_attn_norm == "rsqrt_head_dim" else text.width // text.num_heads


def _query_norm(text: Mapping[str, Any], where: object) -> str:
    scalar = text["query_pre_attn_scalar"]
    if scalar == text["head_dim"]:
        return "rsqrt_head_dim"
    if scalar == text["hidden_size"] // text["num_attention_heads"]:
        return "rsqrt_emb_per_head"
    raise InputError(
        f"query_pre_attn_scalar is {scalar}.", where=where, expected="head_dim, or hidden_size / num_attention_heads"
    )
