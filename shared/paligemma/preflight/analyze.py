"""Judges whether a job fits a target, how fast it can be there at best, and what its steps cost."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from paligemma.checkpoints.architecture import abstract_model
from paligemma.checkpoints.parameters import parameters_by_name
from paligemma.errors import InputError, PaliGemmaError
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.lora import LoraConfig
from paligemma.preflight.compiler import compile_for
from paligemma.preflight.targets import GIB, Target, find_target
from paligemma.training.flops import step_flops
from paligemma.training.recipe import Recipe
from paligemma.training.trainable import compile_pattern, is_trainable
from paligemma.yaml_text import read_yaml

PRICES_FILE = Path(__file__).parent / "prices.yaml"
MEMORY_VARIABLE = "PALIGEMMA_MEMORY_BYTES"
"""Memory for the target `cpu`, in place of this machine's: what a container or another machine has."""

CPU_ALLOWANCE = 0.15
"""What allocator and XLA's threads take on a CPU beyond the compiler's figures: see tests/benchmarks/preflight.py."""


class DoesNotFitError(PaliGemmaError):
    """The target cannot hold the job."""

    exit_code = 2


@dataclass(frozen=True)
class Report:
    """What became of compiling a job for a target. Bytes are of one device.

    Attributes:
        target: its name.
        batch_size: examples in a step, over all devices.
        fits: whether the peak is below the limit.
        peak: arguments, temporaries, outputs that are not arguments, and code, all at once; 0 if the compiler gave up.
        memory: what a program can have.
        margin: share of it that is to stay free.
        limit: the rest.
        flops: operations that a step needs, over all devices, without those that rematerialization repeats.
        bytes_moved: to and from memory in a step, at least: what is there is read once, what is computed written and read.
        bytes_received: from other devices.
        seconds: of a step at the very best: its arithmetic, memory or messages at the data sheet's speed, whichever is
            longest; None where the speed is not known.
        share_of_peak: of the data sheet's arithmetic, that a step of these seconds reaches.
        steps: planned; None if the recipe does not say.
        hours: of all of them, at the very best.
        dollars_per_hour: of all devices; None without a price.
        dollars: of the steps.
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
    """Compiles, or remembers, and judges.

    Args:
        config: the architecture.
        recipe: how to train; its batch is over all devices.
        target: a name of `TARGETS`.
        text_tokens: of every row's text, at most.
        prices: dollars an hour by device.
        fresh: compile even if the answer is known.
        rows: of the training data, for a recipe that has epochs.

    Raises:
        InputError: the batch does not split over the devices, or a wheel is missing.
        PaliGemmaError: the compiler failed for another reason than memory.
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
    """Steps that a recipe makes; None if they depend on the data, which is not known."""
    return None if recipe.epochs is not None and rows is None else recipe.total_steps(rows or 0)


def device_memory(place: Target) -> int:
    """Bytes of one device. Simulated devices share this machine's.

    Raises:
        InputError: the environment says something else than a number of bytes.
    """
    if place.memory:
        return place.memory
    told = os.environ.get(MEMORY_VARIABLE)
    if told and not told.isdecimal():
        raise InputError(f"{told} is no number of bytes.", where=f"${MEMORY_VARIABLE}", expected="e.g. 17179869184")
    return (int(told) if told else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // place.devices


def needed_flops(config: PaliGemmaConfig, recipe: Recipe, text_tokens: int) -> float:
    """Operations of a step, whatever it recomputes."""
    trained = trained_shapes(config, recipe.trainable, recipe.lora)
    width = text_tokens - 1
    return step_flops(config, trained, recipe.batch_size, width, width)


@functools.cache
def trained_shapes(
    config: PaliGemmaConfig, trainable: str | tuple[str, ...], lora: LoraConfig
) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of what a recipe trains."""
    pattern = compile_pattern(trainable)
    model = abstract_model(config, lora=lora if trainable == "lora" else None)
    variables = parameters_by_name(model)
    return MappingProxyType({name: tuple(leaf.shape) for name, leaf in variables.items() if is_trainable(pattern, name)})


def read_prices(path: Path = PRICES_FILE) -> tuple[str, dict[str, float]]:
    """The date of a price list, and dollars an hour by device.

    Raises:
        InputError: it is not one.
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
    """Bytes for people."""
    return f"{size / GIB:.2f}"
