"""Determines whether a job fits a target, how fast it can run there at best, and what its steps cost."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from paligemma.checkpoints.parameters import parameters_by_name
from paligemma.errors import InputError, PaliGemmaError
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.lora_factors import LoraConfig
from paligemma.models.paligemma import abstract_model
from paligemma.preflight.compiler import compile_for
from paligemma.preflight.targets import GIB, Target, find_target
from paligemma.training.flops import step_flops
from paligemma.training.recipe import Recipe
from paligemma.training.trainable import compile_pattern, is_trainable
from paligemma.yaml_text import read_yaml

PRICES_FILE = Path(__file__).parent / "prices.yaml"
MEMORY_VARIABLE = "PALIGEMMA_MEMORY_BYTES"
"""Overrides this machine's memory for the target `cpu`, e.g. with a container's or another machine's."""

CPU_ALLOWANCE = 0.15
"""Memory of the allocator and XLA's threads on a CPU, beyond the compiler's figures: see tests/benchmarks/preflight.py."""


class DoesNotFitError(PaliGemmaError):
    """The target cannot hold the job."""

    exit_code = 2


@dataclass(frozen=True)
class Report:
    """The result of compiling a job for a target. Bytes are per device.

    Attributes:
        target: the target's name.
        batch_size: examples per step, over all devices.
        fits: whether the peak is below the limit.
        peak: bytes of arguments, temporaries, outputs that are not arguments, and code together; 0 if the compiler gave up.
        memory: bytes available to a program.
        margin: share of it that should stay free.
        limit: `memory` without the margin.
        flops: operations of a step over all devices, without those repeated by rematerialization.
        bytes_moved: lower bound of memory traffic per step: inputs are read once, results are written and read.
        bytes_received: bytes received from other devices per step.
        seconds: lower bound for a step: the longest of arithmetic, memory and messages at data sheet speed; None if the speed
            is unknown.
        share_of_peak: share of the data sheet's arithmetic speed that such a step reaches.
        steps: planned steps; None if the recipe does not say.
        hours: lower bound for all steps.
        dollars_per_hour: price of all devices; None without a price.
        dollars: lower bound for the price of all steps.
        found: the compiler's figures.
    """

    target: str
    batch_size: int
    fits: bool
    peak: int
    memory: int
    margin: float
    limit: int
    flops: float
    bytes_moved: int | None
    bytes_received: int | None
    seconds: float | None
    share_of_peak: float | None
    steps: int | None
    hours: float | None
    dollars_per_hour: float | None
    dollars: float | None
    found: Mapping[str, Any]

    def as_json(self) -> dict:
        """Plain values."""
        return asdict(self)


def examine(
    config: PaliGemmaConfig,
    recipe: Recipe,
    target: str,
    text_tokens: int,
    prices: Mapping[str, float],
    fresh: bool = False,
    rows: int | None = None,
) -> Report:
    """Compiles a job, or uses a cached result, and judges it.

    Args:
        config: the architecture.
        recipe: how to train; its batch size is over all devices.
        target: a name of `TARGETS`.
        text_tokens: most tokens of a row's text.
        prices: dollars an hour by device name.
        fresh: compile even if the result is cached.
        rows: rows of the training data, for a recipe with epochs; None if unknown.

    Raises:
        InputError: the batch does not split evenly over the devices, or a wheel is missing.
        PaliGemmaError: the compiler failed for a reason other than memory.
    """
    place = find_target(target)
    found = compile_for(config, recipe, target, text_tokens, fresh)
    peak = sum(found.get(key, 0) for key in ("arguments", "temporaries", "outputs", "code"))
    if place.platform == "cpu":
        peak = int(peak * (1 + CPU_ALLOWANCE))
    memory = device_memory(place)
    limit = int(memory * (1 - place.margin))
    flops = needed_flops(config, recipe, text_tokens)
    seconds, steps = _seconds(place, found, flops), planned_steps(recipe, rows)
    hours = None if seconds is None or steps is None else steps * seconds / 3600
    price = prices[place.device] * place.devices if place.device in prices else None
    return Report(
        target=target,
        batch_size=recipe.batch_size,
        fits="out_of_memory" not in found and peak < limit,
        peak=peak,
        memory=memory,
        margin=place.margin,
        limit=limit,
        flops=flops,
        bytes_moved=_moved(found),
        bytes_received=_received(found),
        seconds=seconds,
        share_of_peak=None if seconds is None else flops / (seconds * place.tflops * 1e12 * place.devices),
        steps=steps,
        hours=hours,
        dollars_per_hour=price,
        dollars=None if hours is None or price is None else hours * price,
        found=found,
    )


def planned_steps(recipe: Recipe, rows: int | None) -> int | None:
    """Number of steps in a recipe; None if it depends on the unknown number of rows."""
    return None if recipe.epochs is not None and rows is None else recipe.total_steps(rows or 0)


def device_memory(place: Target) -> int:
    """Memory of one device in bytes. Simulated devices share this machine's memory.

    Raises:
        InputError: the environment variable is not a number of bytes.
    """
    if place.memory:
        return place.memory
    told = os.environ.get(MEMORY_VARIABLE)
    if told and not told.isdecimal():
        raise InputError(f"{told} is not a number of bytes.", where=f"${MEMORY_VARIABLE}", expected="e.g. 17179869184")
    return (int(told) if told else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // place.devices


def needed_flops(config: PaliGemmaConfig, recipe: Recipe, text_tokens: int) -> float:
    """Operations of a step, without recomputation."""
    trained = trained_shapes(config, recipe.trainable, recipe.lora)
    width = text_tokens - 1
    return step_flops(config, trained, recipe.batch_size, width, width)


def read_prices(path: Path = PRICES_FILE) -> tuple[str, dict[str, float]]:
    """The date of a price list, and dollars an hour by device.

    Raises:
        InputError: the file is not a price list.
    """
    values = read_yaml(path, "The list of prices")
    try:
        return str(values["as_of"]), {str(name): float(price) for name, price in values["per_hour"].items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise InputError(
            "The prices cannot be read: they are not what is expected.",
            where=path,
            expected="as_of: a date, per_hour: {device: dollars}",
        ) from None


def _moved(found: Mapping) -> int | None:
    return found["arguments"] + 2 * found["temporaries"] if "arguments" in found else None


def _received(found: Mapping) -> int | None:
    return sum(one["bytes"] for one in found["collectives"].values()) if "collectives" in found else None


def _seconds(place: Target, found: Mapping, flops: float) -> float | None:
    moved, received = _moved(found), _received(found)
    if not place.tflops or moved is None or received is None:
        return None
    messages = received / place.links if place.links else 0.0
    return max(flops / (place.tflops * 1e12 * place.devices), moved / place.bandwidth, messages)


def in_gib(size: float) -> str:
    """Formats bytes for people."""
    return f"{size / GIB:.2f}"
