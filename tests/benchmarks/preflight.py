"""Compares the memory that preflight predicts for the target `cpu` with what the step takes when it runs.

PYTHONPATH=shared:. .venv/bin/python tests/benchmarks/preflight.py

The same step, lowered from shapes, is compiled and run in a process of its own; measured is how far the resident memory rises
above what it was before the arguments were made; of three runs, the middle one.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

os.environ.pop("XLA_FLAGS", None)

import jax
import numpy as np
from step import MEDIUM

from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.preflight.abstract import abstract_step
from paligemma.preflight.analyze import CPU_ALLOWANCE
from paligemma.training.recipe import parse_recipe

CASES = {  # name: settings, text tokens
    "tiny": (["batch_size=64"], 32),
    "tiny, remat=none": (["batch_size=64", "remat=none"], 32),
    "medium": (["batch_size=4"], 64),
    "medium, remat=dots": (["batch_size=4", "remat=dots"], 64),
    "medium, remat=none": (["batch_size=4", "remat=none"], 64),
    "medium, adamw": (["batch_size=4", "optimizer=adamw"], 64),
}


def resident(peak: bool = False) -> int:
    """Bytes now, or at most since `forget_peak`."""
    key = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def measure(name: str) -> None:
    """In a process of its own: prints predicted and measured bytes."""
    settings, text = CASES[name]
    config = open_checkpoint("embedded:tiny").config if name.startswith("tiny") else MEDIUM
    recipe = parse_recipe("", ["steps=2", *settings], "benchmark")
    step, shapes = abstract_step(config, recipe, jax.devices()[:1], "float32", text)
    compiled = step.lower(*shapes).compile()
    memory = compiled.memory_analysis()
    predicted = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    predicted += memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes
    predicted = int(predicted * (1 + CPU_ALLOWANCE))
    before = resident()
    rng = np.random.default_rng(0)

    def filled(leaf):
        if np.issubdtype(leaf.dtype, np.integer):
            return jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding)
        return jax.device_put((0.02 * rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype), leaf.sharding)

    state, frozen, batch = jax.tree.map(filled, shapes)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    for _ in range(3):
        state, metrics = compiled(state, frozen, batch)
        jax.block_until_ready(metrics)
    print(predicted, resident(peak=True) - before)


def main() -> None:
    print("| case | predicted, MB | measured, MB | measured to predicted |")
    print("| --- | --- | --- | --- |")
    for name in CASES:
        runs = []
        for _ in range(3):
            done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
            runs.append(tuple(map(int, done.stdout.split())))
        predicted, measured = statistics.median_low(runs)  # the middle one, as the prediction is the same
        print(f"| {name} | {predicted / 1e6:.0f} | {measured / 1e6:.0f} | {measured / predicted:.2f} |", flush=True)


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
