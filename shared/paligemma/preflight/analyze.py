"""Determines whether a job fits a target, how fast it can run there at best, and what its steps cost."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paligemma.errors import InputError, PaliGemmaError
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.parameter_shapes import parameter_shapes
from paligemma.preflight.abstract import trained_shapes
from paligemma.preflight.compiler import Job, compile_decoding, compile_step
from paligemma.preflight.targets import GIB, Target, find_target
from paligemma.training.flops import step_flops
from paligemma.training.recipe import Recipe
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
class Decoding:
    """The result of compiling decoding for a target. Bytes are per device.

    Attributes:
        rows: prompts that are decoded together.
        parameter_bytes: bytes of the decoder's parameters in 16 bits, which every token needs at least: a device's share.
        token_bytes: bytes through memory per token of all rows; None if the compiler gave up.
        token_seconds: least time of one; None if it is unknown.
        prefill_seconds: least time before the first token; None if it is unknown.
        found: the compiler's figures: see `worker.compile_job`.
    """

    rows: int
    parameter_bytes: int
    token_bytes: int | None
    token_seconds: float | None
    prefill_seconds: float | None
    found: Mapping[str, Any]


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
        flops: operations that a step needs, over all devices: without those repeated by rematerialization.
        flops_done: operations in the compiled step's products, over all devices, by dtype; None if the compiler gave up, or its
            program could not be read.
        bytes_moved: bytes through a device's memory per step.
        bytes_received: bytes received from other devices per step.
        seconds: least time of a step, by the data sheet or by the compiler's cycles: see `summary.seconds`; None if the speed
            is unknown.
        share_of_peak: share of the data sheet's arithmetic speed that such a step reaches with needed operations (MFU).
        steps: planned steps; None if the recipe does not say.
        hours: lower bound for all steps.
        dollars_per_hour: price of all devices; None without a price.
        dollars: lower bound for the price of all steps.
        found: the compiler's figures: see `worker.compile_job`.
        decoding: figures of decoding; None if they were not asked for.
    """

    target: str
    batch_size: int
    fits: bool
    peak: int
    memory: int
    margin: float
    limit: int
    flops: float
    flops_done: Mapping[str, int] | None
    bytes_moved: int | None
    bytes_received: int | None
    seconds: float | None
    share_of_peak: float | None
    steps: int | None
    hours: float | None
    dollars_per_hour: float | None
    dollars: float | None
    found: Mapping[str, Any]
    decoding: Decoding | None = None

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
    full_effort: bool = False,
    decoding: int = 0,
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
        full_effort: whether a TPU's compiler does what it does for a run: minutes, for cycles that say seconds.
        decoding: prompts that are decoded together, if decoding is to be compiled too; 0 if not.

    Raises:
        InputError: the batch does not split evenly over the devices, a wheel is missing, or decoding is asked of one CPU.
        PaliGemmaError: the compiler failed for a reason other than memory.
    """
    place = find_target(target)
    if decoding and place.platform == "cpu" and place.devices == 1:
        raise InputError(
            "Decoding on one CPU has no program without weights: it lays them out anew, by their values in memory.",
            where=target,
            expected="an accelerator, or several simulated CPUs",
        )
    job = Job(config, target, text_tokens, full_effort, fresh)
    found = compile_step(job, recipe)
    step = found["accounts"]["step"] if "accounts" in found else None
    peak = needed_memory(found)
    if place.platform == "cpu":
        peak = int(peak * (1 + CPU_ALLOWANCE))
    memory = device_memory(place)
    limit = int(memory * (1 - place.margin))
    flops = needed_flops(config, recipe, text_tokens)
    seconds, steps = step["seconds"] if step else None, planned_steps(recipe, rows)
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
        flops_done={dtype: done * place.devices for dtype, done in step["flops"].items()} if step else None,
        bytes_moved=step["bytes"] if step else None,
        bytes_received=sum(one["bytes"] for one in step["collectives"].values()) if step else None,
        seconds=seconds,
        share_of_peak=flops / (seconds * place.tflops * 1e12 * place.devices) if seconds else None,
        steps=steps,
        hours=hours,
        dollars_per_hour=price,
        dollars=None if hours is None or price is None else hours * price,
        found=found,
        decoding=_examine_decoding(job, place, decoding, recipe) if decoding else None,
    )


def _examine_decoding(job: Job, place: Target, rows: int, recipe: Recipe) -> Decoding:
    """Decoding with parameters as `finetune` holds the frozen ones."""
    found = compile_decoding(job, rows, recipe.frozen_dtype, recipe.images_per_example)
    parameters = sum(math.prod(shape) for name, shape in parameter_shapes(job.config).items() if name.startswith("llm/"))
    accounts = found.get("accounts", {})
    return Decoding(
        rows=rows,
        parameter_bytes=2 * parameters // place.devices,
        token_bytes=accounts["token"]["bytes"] if accounts else None,
        token_seconds=accounts["token"]["seconds"] if accounts else None,
        prefill_seconds=accounts["prefill"]["seconds"] if accounts else None,
        found=found,
    )


def needed_memory(found: Mapping[str, Any]) -> int:
    """Bytes of arguments, temporaries, outputs that are not arguments, and code together; 0 if the compiler gave up."""
    return sum(found.get(key, 0) for key in ("arguments", "temporaries", "outputs", "code"))


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
    return step_flops(config, trained, recipe.batch_size, width, width, images=recipe.images_per_example)


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


def in_gib(size: float) -> str:
    """Formats bytes for people."""
    return f"{size / GIB:.2f}"
