"""Compiles a job for a target, judges whether it fits, and looks for a recipe that does when it does not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from paligemma.checkpoints.architecture import parameter_shapes
from paligemma.errors import InputError, PaliGemmaError
from paligemma.lineage.record import canonical_sha256
from paligemma.models.config import PaliGemmaConfig
from paligemma.preflight.targets import GIB, TARGETS, Target, find_target
from paligemma.preflight.worker import RESULT
from paligemma.storage.atomic import write_file
from paligemma.storage.cache import cache_folder
from paligemma.training.flops import step_flops
from paligemma.training.recipe import Recipe
from paligemma.training.trainable import compile_pattern, is_trainable

PRICES_FILE = Path(__file__).parent / "prices.yaml"
MEMORY_VARIABLE = "PALIGEMMA_MEMORY_BYTES"
"""Memory for the target `cpu`, in place of this machine's: what a container or another machine has."""

CPU_ALLOWANCE = 0.1
"""What allocator and XLA's threads take on a CPU beyond the compiler's figures: see tests/benchmarks/preflight.py."""

TIMEOUT = 1800
"""Seconds that a compilation may take."""

_WHEELS = {"tpu": ("libtpu", "preflight"), "cuda": ("jax_cuda12_plugin", "preflight")}


class DoesNotFitError(PaliGemmaError):
    """The target cannot hold the job."""

    exit_code = 2


@dataclass(frozen=True)
class Report:
    """What became of compiling a job for a target. Bytes are of one device.

    Attributes:
        fits: whether the sum of all is below the limit.
        total: arguments, temporaries, outputs that are not arguments, and code; 0 if the compiler gave up.
        limit: what a program can have, less the margin.
        flops: operations that a step needs, over all devices, without those that rematerialization repeats.
        seconds: of a step at the very best: its arithmetic at the data sheet's speed, or reading its memory once and
            writing and reading what it computes, whichever is longer; None where the speed is not known.
        dollars_per_hour: of all devices; None without a price.
        found: the compiler's figures.
    """

    target: str
    batch_size: int
    fits: bool
    total: int
    limit: int
    flops: float
    seconds: float | None
    dollars_per_hour: float | None
    found: Mapping[str, object]

    def hours(self, steps: int) -> float | None:
        """Of so many steps, at the very best."""
        return None if self.seconds is None else steps * self.seconds / 3600


def examine(
    config: PaliGemmaConfig, recipe: Recipe, target: str, text_tokens: int, prices: Mapping[str, float], fresh: bool = False
) -> Report:
    """Compiles and judges. The compiler's answer is kept in the cache folder, by the hash of all that it depends on.

    Args:
        config: the architecture.
        recipe: how to train; its batch is over all devices.
        target: a name of `TARGETS`.
        text_tokens: of every row's text, at most.
        prices: dollars an hour by device.
        fresh: compile even if the answer is known.

    Raises:
        InputError: the batch does not split over the devices, or a wheel is missing.
        PaliGemmaError: the compiler failed for another reason than memory.
    """
    place = find_target(target)
    found = _compile(config, recipe, target, place, text_tokens, fresh)
    limit = int((place.memory or _machine_memory()) * (1 - place.margin))
    total = sum(found.get(key, 0) for key in ("arguments", "temporaries", "outputs", "code"))
    if place.platform == "cpu":
        total = int(total * (1 + CPU_ALLOWANCE))
    used = total * place.devices if place.platform == "cpu" else total  # simulated devices share the machine's memory
    flops = _flops(config, recipe, text_tokens)
    return Report(
        target=target,
        batch_size=recipe.batch_size,
        fits="out_of_memory" not in found and used < limit,
        total=total,
        limit=limit // place.devices if place.platform == "cpu" else limit,
        flops=flops,
        seconds=_seconds(place, found, flops),
        dollars_per_hour=prices[place.device] * place.devices if place.device in prices else None,
        found=found,
    )


def find_fitting(
    config: PaliGemmaConfig, recipe: Recipe, target: str, text_tokens: int, prices: Mapping[str, float]
) -> tuple[Recipe, list[str]] | None:
    """The first change of a recipe that fits, those that cost least first; and the overrides that make it.

    A batch that is worked through in parts (`accumulate`) trains the same; only where that is not enough is it made smaller.
    """
    for changes in _easier(recipe, TARGETS[target].devices):
        changed = Recipe.model_validate(recipe.model_dump(exclude_none=True) | changes)
        if examine(config, changed, target, text_tokens, prices).fits:
            return changed, [f"{key}={value}" for key, value in changes.items()]
    return None


def read_prices(path: Path = PRICES_FILE) -> tuple[str, dict[str, float]]:
    """The date of a price list, and dollars an hour by device.

    Raises:
        InputError: it is not one.
    """
    try:
        values = yaml.safe_load(path.read_text())
        return str(values["as_of"]), {str(name): float(price) for name, price in values["per_hour"].items()}
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError):
        raise InputError(
            "The prices cannot be read.", where=path, expected="as_of: a date, per_hour: {device: dollars}"
        ) from None


def _easier(recipe: Recipe, devices: int) -> Iterator[dict[str, object]]:
    """Changes that need less memory, from those that cost little time to those that change the training."""
    order = ("none", "dots", "attention", "full")
    rematerialized = [policy for policy in order if order.index(policy) > order.index(recipe.remat)]
    for policy in rematerialized:
        yield {"remat": policy}
    base: dict[str, object] = {"remat": "full"} if rematerialized else {}
    if recipe.loss_chunk > 128:
        base = {**base, "loss_chunk": 128}
        yield base
    parts, most = 2 * recipe.accumulate, recipe.batch_size // devices
    while parts <= most:
        if recipe.batch_size % (parts * devices) == 0:
            yield {**base, "accumulate": parts}
        parts *= 2
    smaller = recipe.batch_size // 2
    while smaller >= devices:
        if smaller % devices == 0:
            yield {**base, "accumulate": 1, "batch_size": smaller}
        smaller //= 2
    if recipe.optimizer != "sgd":
        yield {**base, "accumulate": 1, "batch_size": devices, "optimizer": "sgd"}


def _compile(
    config: PaliGemmaConfig, recipe: Recipe, name: str, target: Target, text_tokens: int, fresh: bool
) -> dict[str, object]:
    wheel, extra = _WHEELS.get(target.platform, ("", ""))
    if wheel and importlib.util.find_spec(wheel) is None:
        raise InputError(
            f"The compiler for {name} is not installed.",
            expected=f"the package {wheel}",
            fix=f"pip install 'paligemma[{extra}]'",
        )
    determining = {"steps", "epochs", "seed", "learning_rate", "save_every", "keep_last", "log_every", "validate_every"}
    job = {
        "config": config.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "target": name,
        "platform": target.platform,
        "devices": target.devices,
        "text_tokens": text_tokens,
    }
    what = {**job, "recipe": {key: value for key, value in job["recipe"].items() if key not in determining}}
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    kept = cache_folder() / "preflight" / f"{canonical_sha256({**what, 'topology': str(target), **packages})}.json"
    if kept.is_file() and not fresh:
        return json.loads(kept.read_text())
    found = _run(job)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_file(kept, (json.dumps(found) + "\n").encode())
    return found


def _run(job: Mapping[str, object]) -> dict[str, object]:
    command = [sys.executable, "-m", "paligemma.preflight.worker"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    try:
        done = subprocess.run(
            command, input=json.dumps(job), capture_output=True, text=True, env=environment, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise PaliGemmaError(f"The compiler took more than {TIMEOUT} seconds.", where=job["target"]) from None
    for line in done.stdout.splitlines():
        if line.startswith(RESULT):
            return json.loads(line.removeprefix(RESULT))
    if "InputError" in done.stderr:
        text = done.stderr.rpartition("InputError: ")[2].strip()
        raise InputError(text.splitlines()[0], where=job["target"], expected=text.partition("expected: ")[2].splitlines()[:1])
    raise PaliGemmaError(f"The compiler failed.\n{done.stderr[-2000:]}", where=job["target"])


def _flops(config: PaliGemmaConfig, recipe: Recipe, text_tokens: int) -> float:
    pattern = compile_pattern(recipe.trainable)
    trained = {name: shape for name, shape in parameter_shapes(config).items() if is_trainable(pattern, name)}
    width = text_tokens - 1
    return step_flops(config, trained, recipe.batch_size, width, width)


def _seconds(target: Target, found: Mapping, flops: float) -> float | None:
    if not target.tflops or "arguments" not in found:
        return None
    moved = found["arguments"] + 2 * found["temporaries"]
    return max(flops / (target.tflops * 1e12 * target.devices), moved / target.bandwidth)


def _machine_memory() -> int:
    told = os.environ.get(MEMORY_VARIABLE)
    return int(told) if told else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.2f}"
