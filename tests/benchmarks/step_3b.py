"""Training steps of PaliGemma 3B at 224 pixels on this machine, one example at a time: memory, seconds, share of the ceiling.

    .venv/bin/python tests/benchmarks/step_3b.py --set remat=attention

The checkpoint is opened, loaded, split and stepped as `finetune` does it, by a recipe. Random float16 weights are written once
to the cache (5.5 GiB), or a real checkpoint is given. Needs Linux, and what the table says of memory.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

os.environ.pop("XLA_FLAGS", None)  # simulated devices would share this machine's cores

import jax
import numpy as np
import typer
from flax import nnx
from step import make_matmul, random_parameter

from paligemma.checkpoints.npz import write_npz
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.parameters import build_module, parameters_by_name
from paligemma.data.batch import TrainBatch, train_batch
from paligemma.models.config import VARIANTS, PaliGemmaConfig
from paligemma.models.parameter_shapes import parameter_shapes
from paligemma.models.weight_formats import WeightFormat
from paligemma.runtime.sharding import make_mesh, shard_batch
from paligemma.storage.cache import cache_folder
from paligemma.training.flops import step_flops
from paligemma.training.optimizer import make_optimizer
from paligemma.training.recipe import parse_recipe
from paligemma.training.step import StepSettings, init_state, make_train_step
from paligemma.training.trainable import compile_pattern, is_trainable, split_trainable

VARIANT = "paligemma-3b-pt-224"
GIB = 2**30


def memory(which: str) -> float:
    """This process's resident memory in GiB: `VmRSS` now, `VmHWM` at most so far."""
    return int(re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / GIB


def random_checkpoint() -> Path:
    """A file with random weights in float16, written on first use, one parameter at a time."""
    path = cache_folder() / "benchmarks" / f"{VARIANT}-random.npz"
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        rng, shapes = np.random.default_rng(0), parameter_shapes(VARIANTS[VARIANT]).items()
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".partial")
        write_npz(draft, ((name, random_parameter(rng, name, shape, "float16")) for name, shape in shapes))
        draft.rename(path)
    return path


def make_batch(config: PaliGemmaConfig, text: int) -> TrainBatch:
    """One example: a random image, and random text of which the second half is suffix."""
    rng, size = np.random.default_rng(0), config.img.image_size
    suffix = (np.arange(text) >= text // 2)[None].astype(np.int32)
    images = rng.integers(0, 256, (1, size, size, 3), np.uint8)
    return train_batch(images, rng.integers(1, config.llm.vocab_size, (1, text)), suffix, suffix)


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps to time, after the first.")] = 5,
    text: Annotated[int, typer.Option(min=2, help="Text tokens, half of them suffix.")] = 64,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides of the recipe.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights in place of random ones.", show_default=False)] = None,
) -> None:
    """Prints what is held, how much memory that took, and how long a step takes."""
    recipe = parse_recipe(overrides=["batch_size=1", *(set_ or [])])
    pattern = compile_pattern(recipe.trainable)
    base = open_checkpoint(checkpoint or random_checkpoint())
    print(f"recipe: {' '.join(set_ or []) or 'defaults'}; at the start {memory('VmRSS'):.2f} GiB")

    def held_in(name: str, array) -> str | WeightFormat:
        return "float32" if is_trainable(pattern, name) else recipe.frozen_in(name, tuple(array.shape))

    started, mesh = time.perf_counter(), make_mesh()
    lora = recipe.lora if recipe.trainable == "lora" else None
    model = build_module(base.config, base.arrays, held_in, recipe.compute_dtype, mesh, lora, recipe.seed)
    jax.block_until_ready(nnx.state(model))
    held = Counter()
    for name, variable in parameters_by_name(model).items():
        held[f"{'trained' if is_trainable(pattern, name) else 'frozen'} {variable[...].dtype}"] += variable[...].nbytes
    graph, trainable, frozen = split_trainable(model, pattern)
    shapes = {name: variable.shape for name, variable in parameters_by_name(trainable).items()}
    optimizer = make_optimizer(recipe, steps + 1)
    state, batch = init_state(trainable, optimizer), shard_batch(mesh, make_batch(base.config, text))
    del model, trainable
    parameters = sum(held.values()) / GIB
    print(f"parameters: {parameters:.2f} GiB: {', '.join(f'{size / GIB:.2f} {kind}' for kind, size in held.items())}")
    print(f"loaded in {time.perf_counter() - started:.1f} s; resident {memory('VmRSS'):.2f}, peak {memory('VmHWM'):.2f} GiB")

    started = time.perf_counter()
    step = make_train_step(graph, optimizer, StepSettings.of(recipe)).lower(state, frozen, batch).compile()
    program = step.memory_analysis()
    temporary = program.temp_size_in_bytes / GIB
    needed = (program.argument_size_in_bytes + program.output_size_in_bytes - program.alias_size_in_bytes) / GIB + temporary
    print(
        f"compiled in {time.perf_counter() - started:.1f} s; needs {needed:.2f} GiB, {temporary:.2f} for intermediate results"
    )

    matmul = make_matmul()
    ceiling, seconds, losses = matmul(), [], []
    for number in range(steps + 1):
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, frozen, batch))
        seconds.append(time.perf_counter() - started)
        losses.append(float(metrics.loss))
        ceiling = max(ceiling, matmul())
        if number in (0, steps):
            print(f"after {number + 1} steps: resident {memory('VmRSS'):.2f}, peak {memory('VmHWM'):.2f} GiB")
    if not (np.isfinite(losses).all() and losses[-1] < losses[0]):
        sys.exit(f"this is no training: losses {losses}")
    flops = step_flops(base.config, shapes, 1, text - 1, batch.targets.shape[1])
    fastest, rate = min(seconds[1:]), flops / min(seconds[1:])
    print(f"losses {', '.join(f'{loss:.4f}' for loss in losses)}")
    print(f"step: first {seconds[0]:.2f} s, then fastest {fastest:.2f}, median {statistics.median(seconds[1:]):.2f} s")
    print(
        f"{flops / 1e9:.0f} GFLOP needed, {rate / 1e9:.0f} GFLOP/s, {rate / ceiling:.0%} of a float32 matmul of 2048 "
        f"({ceiling / 1e9:.0f} GFLOP/s); peak memory {memory('VmHWM') / parameters:.2f} x the parameters"
    )
    print(f"{len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    typer.run(main)
