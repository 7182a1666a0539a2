"""Renames any writer's tensors to the names of the published checkpoints. Checks or names every tensor that is left out.

Names differ between transformers releases (its `conversion_mapping.py`, "llava") and with the wrapper that saved the model.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from paligemma.checkpoints.lazy import blocks
from paligemma.checkpoints.safetensors_files import Tensor
from paligemma.errors import DamagedError, InputError
from paligemma.models.config import PaliGemmaConfig

TOWER, LANGUAGE = "vision_tower.vision_model", "language_model.model"
EMBEDDING = f"{LANGUAGE}.embed_tokens.weight"
HEAD = "lm_head.weight"

_ANCHOR = "multi_modal_projector.linear.weight"
"""Every PaliGemma has one tensor of this name. The prefix before it is the prefix of all tensors."""
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_RENAMED = (
    (re.compile(r"^model\.(?=vision_tower|multi_modal_projector|language_model|lm_head)"), ""),
    (re.compile(r"^language_model\.(?=lm_head\.)"), ""),
    (re.compile(r"^vision_tower\.(?!vision_model\.)"), f"{TOWER}."),
    (re.compile(r"^language_model\.(?!model\.)"), f"{LANGUAGE}."),
)
_QUANTIZED = re.compile(
    r".*\.(?:absmax|nested_absmax|quant_map|nested_quant_map|quant_state\..*|SCB|weight_format"  # bitsandbytes
    r"|qweight|qzeros|scales|g_idx"  # GPTQ, AWQ
    r"|weight_scale(?:_inv)?|input_scale|weight_packed|weight_shape|weight_zero_point|weight_g_idx)"  # compressed-tensors, FP8
)
_ADAPTED = re.compile(r".*\.(?:lora_(?:embedding_)?[AB]|lora_magnitude_vector|base_layer|modules_to_save|original_module)\..*")
DEQUANTIZE = (
    'take the model before it was quantized; else: python -c "from transformers import PaliGemmaForConditionalGeneration as P; '
    "m = P.from_pretrained('FOLDER'); m.dequantize().save_pretrained('OUT')\""
)


class LeftOut(NamedTuple):
    """Tensors that are not parameters of the network.

    Attributes:
        name: pattern that matches the whole name.
        what: what the tensors are, for messages.
        expected: the values that they must have; None if they are unused, which gives a warning.
    """

    name: re.Pattern
    what: str
    expected: Callable[[PaliGemmaConfig, Tensor], np.ndarray] | None


LEFT_OUT = (
    LeftOut(re.compile(r".*\.position_ids"), "positions, counted from 0", lambda _, tensor: _counted(tensor)),
    LeftOut(re.compile(r".*\brotary_emb\.(?:original_)?inv_freq"), "frequencies of the rotary embedding",
            lambda config, _: 10_000.0 ** -(np.arange(0, config.llm.head_dim, 2) / config.llm.head_dim)),
    LeftOut(re.compile(rf"{re.escape(TOWER)}\.head\..*"), "SigLIP's pooling head, which PaliGemma does not use", None),
)  # fmt: skip
"""Everything that a checkpoint may hold besides parameters; other tensors are refused."""

log = logging.getLogger("paligemma.checkpoints")


def published_names(config: PaliGemmaConfig, tensors: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """Tensors by their published names, without those of `LEFT_OUT`. A tied output matrix becomes the embedding.

    Args:
        config: the architecture.
        tensors: tensors of a checkpoint, by name.
        where: their location, for messages.

    Raises:
        InputError: the weights are quantized, or adapters are not merged.
        DamagedError: a tensor that is left out differs from its expected values.
    """
    _refuse_other_kinds(tensors, where)
    named: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for full, name in _renamed(tensors):
        if name in named:
            _check_same(named[name], tensors[full], f"{origin[name]} and {full} are the same parameter", where)
        named[name], origin[name] = tensors[full], full
    _leave_out(config, named, where)
    head = named.pop(HEAD, None)
    if head is not None and EMBEDDING not in named:
        log.info("the embedding is %s, which is tied to it", origin[HEAD])
        named[EMBEDDING] = head
    elif head is not None:
        _check_tied(config, named[EMBEDDING], head, origin[HEAD], where)
    return named


def _refuse_other_kinds(names: Sequence[str] | Mapping[str, Tensor], where: object) -> None:
    if found := next(filter(_QUANTIZED.fullmatch, names), None):
        raise InputError(
            f"The weights are quantized: there is {found}.", where=where, expected="weights as trained", fix=DEQUANTIZE
        )
    if found := next(filter(_ADAPTED.fullmatch, names), None):
        raise InputError(
            f"The weights have adapters that are not merged: there is {found}.",
            where=where,
            expected="the weights of a whole model",
            fix="save it with model.merge_and_unload().save_pretrained('OUT')",
        )


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Each name with its published name; names outside the model's prefix stay."""
    plain = {full: _WRAPPERS.sub("", full) for full in tensors}
    prefixes = {name.removesuffix(_ANCHOR).removesuffix("model.") for name in plain.values() if name.endswith(_ANCHOR)}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    for full, name in plain.items():
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            for pattern, replacement in _RENAMED:
                name = pattern.sub(replacement, name)
        yield full, name


def _leave_out(config: PaliGemmaConfig, named: dict[str, Tensor], where: object) -> None:
    unused: dict[str, list[str]] = {}
    for name in list(named):
        rule = next((rule for rule in LEFT_OUT if rule.name.fullmatch(name)), None)
        if rule is None:
            continue
        tensor = named.pop(name)
        if rule.expected is None:
            unused.setdefault(rule.what, []).append(name)
            continue
        expected, found = rule.expected(config, tensor), np.asarray(tensor[...], np.float64)
        coarse = 1e-5 if tensor.dtype.itemsize > 2 else 1e-2
        if found.size != expected.size or not np.allclose(found.reshape(-1), expected, rtol=coarse, atol=0):
            raise DamagedError(
                f"{name} has other values than the network computes with.",
                where=where,
                expected=rule.what,
                fix="use the code that the model was made with",
            )
    for what, names in unused.items():
        log.warning("%d tensors are not used, %s: %s", len(names), what, ", ".join(names[:3]) + ", ..." * (len(names) > 3))


def _counted(tensor: Tensor) -> np.ndarray:
    return np.arange(np.prod(tensor.shape, dtype=int))


def _check_tied(config: PaliGemmaConfig, embedding: Tensor, head: Tensor, name: str, where: object) -> None:
    """Confirms that the output matrix equals the embedding in the vocabulary's rows."""
    rows = config.llm.vocab_size
    if all(len(one.shape) == 2 and one.shape[0] >= rows for one in (embedding, head)):
        embedding, head = embedding.first(rows), head.first(rows)
    _check_same(embedding, head, f"{name} is tied to the embedding", where)


def _check_same(one: Tensor, other: Tensor, why: str, where: object) -> None:
    if one.shape == other.shape and all(_equal(one[block], other[block]) for block in blocks(one.shape, 8)):
        return
    raise DamagedError(
        f"Two tensors differ that should be one: {why}.",
        where=where,
        expected="equal values; our network has one parameter for both",
        fix="save the model with tied weights, or leave out the one that is not used",
    )


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype == other.dtype:  # bitwise, since NaN equals nothing
        return np.array_equal(np.ascontiguousarray(one).view(np.uint8), np.ascontiguousarray(other).view(np.uint8))
    return np.array_equal(one.astype(np.float64), other.astype(np.float64))
