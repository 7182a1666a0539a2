"""Factors of low-rank adapters (LoRA, arXiv 2106.09685): names, shapes, first values, and their sum with a weight."""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, Field, field_validator

from paligemma.errors import did_you_mean


class Factors(NamedTuple):
    """Axes of an adapter's two factors and of the weight they add to, as einsum letters.

    `a` maps the weight's inputs to the rank `r`, `b` maps that to its outputs. A leading `c` counts weights that are stored
    together (gate and up-projection; query, key and value), each with factors of its own.
    """

    a: str
    b: str
    weight: str


FACTORS = {
    "q_einsum": Factors("dr", "rnh", "ndh"),
    "kv_einsum": Factors("cdr", "crnh", "cndh"),
    "qkv_einsum": Factors("cdr", "crnh", "cndh"),
    "attn_vec_einsum": Factors("nhr", "rd", "nhd"),
    "gating_einsum": Factors("cdr", "crf", "cdf"),
    "linear": Factors("fr", "rd", "fd"),
}
"""Factors of every linear layer of the decoder."""

ATTENTION = ("q_einsum", "kv_einsum", "qkv_einsum", "attn_vec_einsum")
_PREFIX = "lora_"


class LoraConfig(BaseModel, frozen=True, extra="forbid"):
    """Which linear layers get an adapter, and their rank and scale."""

    rank: int = Field(default=8, gt=0, description="Width of the bottleneck.")
    alpha: float = Field(default=16.0, gt=0, description="An adapter adds alpha / rank times its product.")
    targets: tuple[str, ...] = Field(
        default=ATTENTION, description="Linears of the decoder that get an adapter, by their names in the checkpoint."
    )

    @field_validator("targets")
    @classmethod
    def _known(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            if target not in FACTORS:
                raise ValueError(f"there is no linear {target!r}, {did_you_mean(target, FACTORS)}")
        return targets


def is_adapter(name: str) -> bool:
    """Whether a parameter is an adapter's factor by its name, e.g. `llm/layers/attn/lora_q_einsum/a`."""
    return f"/{_PREFIX}" in name


def adapted_weight(name: str) -> tuple[str, str]:
    """Target and weight name of a factor's name: `.../mlp/lora_linear/a` to `linear`, `.../mlp/linear`."""
    match = re.fullmatch(rf"(.*/){_PREFIX}(\w+)/[ab]", name)
    if match is None:
        raise ValueError(f"{name} is not the name of an adapter's factor")
    path, target = match.groups()
    return target, f"{path}{target}/w" if target.endswith("_einsum") and target != "gating_einsum" else f"{path}{target}"


def initial_factor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A factor's initial value in float32: random for the first, zero for the second. Equal on every machine.

    Args:
        name: the parameter's name.
        shape: its shape, with the layer axis in front.
        seed: the run's seed.
    """
    if name.endswith("/b"):
        return np.zeros(shape, np.float32)
    target, _ = adapted_weight(name)
    sizes = dict(zip("l" + FACTORS[target].a, shape, strict=True))
    fan_in = np.prod([size for axis, size in sizes.items() if axis not in "lcr"])
    normal = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, np.float32)
    return normal * np.float32(fan_in**-0.5)


def merge_adapter(target: str, weight: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """A stacked weight with its adapter added, in float32.

    Args:
        target: name of the linear layer.
        weight: `[l, ...]`, any float dtype.
        a: first factor, `[l, ...]`.
        b: second factor, `[l, ...]`.
        scale: alpha / rank.
    """
    factors = FACTORS[target]
    product = np.einsum(f"l{factors.a},l{factors.b}->l{factors.weight}", a, b, optimize=True)
    return weight.astype(np.float32) + np.float32(scale) * product.astype(np.float32)


def merged_shape(target: str, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """Shape `[l, ...]` of the stacked weight for two stacked factors; None if the factors do not fit together."""
    factors, sizes = FACTORS[target], {}
    for axes, shape in ((f"l{factors.a}", a), (f"l{factors.b}", b)):
        if len(axes) != len(shape) or any(sizes.setdefault(axis, size) != size for axis, size in zip(axes, shape, strict=True)):
            return None
    return tuple(sizes[axis] for axis in f"l{factors.weight}")
