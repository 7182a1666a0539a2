"""Asks a target's compiler about a job in a separate process; caches the answer by a hash of everything that decides it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from paligemma.artifacts.record import canonical_sha256
from paligemma.errors import DamagedError, InputError, PaliGemmaError
from paligemma.extras import how_to_install
from paligemma.foreign_json import read_json
from paligemma.models.config import PaliGemmaConfig
from paligemma.preflight.targets import find_target
from paligemma.preflight.worker import RESULT
from paligemma.storage.atomic import expect_file, write_file
from paligemma.storage.cache import cache_folder
from paligemma.training.recipe import Recipe

log = logging.getLogger("paligemma.preflight")


class CompilerMissingError(InputError):
    """The compiler for a target is not installed."""


TIMEOUT = 1800
"""Most seconds for a compilation."""

_WHEELS = {"tpu": ("libtpu", "libtpu"), "cuda": ("jax_cuda12_plugin", "jax-cuda12-pjrt"), "cpu": ("", "")}
"""For each platform: the compiler's module, and the distribution whose version decides the result."""

_SOURCES = (
    "checkpoints/parameters.py",
    "decoding",
    "models",
    *(
        f"preflight/{name}.py"
        for name in ("abstract", "account", "hlo_products", "hlo_text", "hlo_traffic", "summary", "worker")
    ),
    "preflight/targets.py",
    "training",
    "data/batch.py",
    "precision.py",
    "runtime/sharding.py",
)
"""Source files of the step and of decoding, and of the account of them: when they change, the answer may change."""

_IRRELEVANT = {"steps", "epochs", "seed", "learning_rate", "save_every", "keep_last", "log_every", "validate_every"}
"""Recipe keys that affect only constants in the program."""


@dataclass(frozen=True)
class Job:
    """What to compile, and how.

    Attributes:
        config: the architecture.
        target: a name of `TARGETS`.
        text_tokens: most tokens of a row's text.
        full_effort: whether a TPU's compiler takes the minutes that it takes before a run. With less, memory is within 1 %.
        fresh: compile even if the result is cached.
    """

    config: PaliGemmaConfig
    target: str
    text_tokens: int
    full_effort: bool = False
    fresh: bool = False


def compile_step(job: Job, recipe: Recipe) -> dict:
    """The figures of a training step; see `worker.compile_job`.

    Raises:
        InputError: the batch does not split evenly over the devices, or a wheel is missing.
        PaliGemmaError: the compiler failed for a reason other than memory.
    """
    decided_by = {key: value for key, value in _values(recipe).items() if key not in _IRRELEVANT}
    return _found(job, {"program": "step", "recipe": _values(recipe)}, {"recipe": decided_by})


def compile_decoding(job: Job, rows: int, dtype: str, images: int = 1) -> dict:
    """The figures of decoding `rows` prompts of some images with a checkpoint of a dtype; see `worker.compile_job`.

    Raises:
        InputError: a wheel is missing, or the target is a single CPU.
        PaliGemmaError: the compiler failed for a reason other than memory.
    """
    several = {} if images == 1 else {"images": images}
    return _found(job, {"program": "decoding", "rows": rows, "dtype": dtype, **several}, {})


def _values(recipe: Recipe) -> dict:
    return recipe.model_dump(mode="json", exclude_none=True)


def _found(job: Job, program: dict, decided_by: dict) -> dict:
    """What the compiler makes of a program, or made of it before; `decided_by` replaces values that it does not depend on."""
    place = find_target(job.target)
    module, distribution = _WHEELS[place.platform]
    if module and importlib.util.find_spec(module) is None:
        raise CompilerMissingError(
            f"The compiler for {job.target} is not installed.",
            expected=f"the package {module}",
            fix=how_to_install("preflight"),
        )
    if distribution and (other := _other_than_images(distribution)):
        log.warning("%s", other)
    asked = {
        **program,
        "config": job.config.model_dump(mode="json"),
        "target": job.target,
        "platform": place.platform,
        "devices": place.devices,
        "text_tokens": job.text_tokens,
        "full_effort": job.full_effort,
    }
    decided_by = {
        **asked,
        **decided_by,
        "topology": str(place.topology),
        "sources": _sources_sha256(),
        "packages": {name: _version(name) for name in ("jax", "jaxlib", "flax", "optax", distribution) if name},
    }
    kept = cache_folder() / "preflight" / f"{canonical_sha256(decided_by)}.json"
    if kept.is_file() and not job.fresh:
        with contextlib.suppress(DamagedError):  # it is compiled again
            return read_json(kept, "What the compiler found before", nonfinite=True)
    found = _run(asked)
    expect_file(kept)
    write_file(kept, (json.dumps(found) + "\n").encode())
    return found


def compiler_version(target: str) -> str:
    """The name and version of the distribution that compiles for a target; the JAX here compiles for CPUs."""
    _, distribution = _WHEELS[find_target(target).platform]
    return f"{distribution} {_version(distribution)}" if distribution else ""


def _other_than_images(distribution: str) -> str:
    """A warning if the compiler differs from the one in the training image; empty if it is equal, or nothing is pinned.

    The extra `preflight` pins the image's version.
    """
    pinned = [re.match(rf"{distribution}==([^;\s]+)", text) for text in importlib.metadata.requires("paligemma") or ()]
    wanted, there = next((found[1] for found in pinned if found), ""), _version(distribution)
    if not wanted or wanted == there:
        return ""
    return (
        f"The compiler here, {distribution} {there or 'of an unknown version'}, is not the image's ({wanted}), whose figures "
        f"may be others: pip install {distribution}=={wanted}"
    )


@cache
def _sources_sha256() -> str:
    root = Path(__file__).parents[1]
    places = [root / place for place in _SOURCES]
    files = [file for place in places for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # a plugin installed in another way
        return ""


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
            found = json.loads(line.removeprefix(RESULT))
            if "wrong_input" in found:
                raise InputError(f"{job['target']}: {found['wrong_input']}")
            return found
    raise PaliGemmaError(f"The compiler failed.\n{done.stderr[-2000:]}", where=job["target"])
