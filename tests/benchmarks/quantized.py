"""Quantized frozen weights against float16 (steps) and float32 (decoding) on this CPU: time, memory, loss.

    .venv/bin/python tests/benchmarks/quantized.py
    .venv/bin/python tests/benchmarks/quantized.py --train 200

A medium model with random weights. Every kind is a process of its own, and they take turns, so that what else the machine does
meets all of them. Figures are medians of ratios within a turn. Memory is the process's peak over what it had before loading.
With `--train`, each kind takes that many steps of `trainable: attention` from the same weights on the same batches, and the
loss on rows that were not trained on is compared. The rows can be learnt: their suffix repeats their prefix. Needs Linux.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

os.environ.pop("XLA_FLAGS", None)  # simulated devices would share this machine's cores

import jax
import numpy as np
import typer
from step import MEDIUM, write_case

import paligemma
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.parameters import build_module
from paligemma.data.batch import TrainBatch, train_batch
from paligemma.decoding.settings import DecodeSettings
from paligemma.models.weight_formats import WeightFormat
from paligemma.training.optimizer import make_optimizer
from paligemma.training.recipe import parse_recipe
from paligemma.training.step import StepSettings, init_state, make_loss_function, make_train_step
from paligemma.training.trainable import compile_pattern, is_trainable, split_trainable

KINDS = {"step": ("float16", "int8", "nf4"), "decode": ("float32", "int8", "nf4")}
BATCH, TEXT, NEW_TOKENS = 4, 32, 32


def peak() -> float:
    """The most memory that this process had, in MiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def rows(seed: int, count: int) -> TrainBatch:
    """Rows whose suffix repeats their prefix, with random images."""
    rng = np.random.default_rng(seed)
    half = rng.integers(2, 66, (count, TEXT // 2))
    suffix = np.tile(np.arange(TEXT) >= TEXT // 2, (count, 1)).astype(np.int32)
    images = rng.integers(0, 256, (count, 224, 224, 3), np.uint8)
    return train_batch(images, np.concatenate([half, half], axis=1), suffix, suffix)


def worker(what: str, kind: str, checkpoint: str, train: int) -> None:
    """Answers every line of standard input with the seconds of a turn; the first answer says memory and loss."""
    before = peak()
    if what == "decode":
        model = paligemma.load(checkpoint, dtype=kind)
        rng = np.random.default_rng(0)
        images = rng.uniform(-1, 1, (8, 224, 224, 3)).astype(np.float32)
        tokens = rng.integers(2, 66, (8, 16))

        def turn(size: int) -> float:
            started = time.perf_counter()
            given = tokens[:size]
            model.search(images[:size], given, np.ones_like(given), np.zeros_like(given), DecodeSettings(NEW_TOKENS))
            return time.perf_counter() - started

        for size in (1, 8):
            turn(size)
        print(json.dumps({"mib": peak() - before}), flush=True)
        for line in sys.stdin:
            print(json.dumps(turn(int(line))), flush=True)
        return
    base = open_checkpoint(checkpoint)
    trainable = "attention" if train else "lora"
    recipe = parse_recipe("", [f"frozen_dtype={kind}", f"trainable={trainable}", f"steps={train or 2}", "learning_rate=0.03"])
    pattern = compile_pattern(recipe.trainable)

    def held_in(name: str, array) -> str | WeightFormat:
        return "float32" if is_trainable(pattern, name) else recipe.frozen_in(name, tuple(array.shape))

    lora = recipe.lora if trainable == "lora" else None
    graph, trained, frozen = split_trainable(build_module(base.config, base.arrays, held_in, lora=lora), pattern)
    jax.block_until_ready(jax.tree.leaves(frozen))
    optimizer = make_optimizer(recipe, train or 2)
    step, state = make_train_step(graph, optimizer, StepSettings.of(recipe)), init_state(trained, optimizer)
    held_out = None
    for number in range(train):
        state, metrics = step(state, frozen, rows(number, BATCH))
        if number % 20 == 0:
            print(f"{kind}: step {number}, loss {float(metrics.loss):.4f}", file=sys.stderr)
    if train:
        total, count = make_loss_function(graph, StepSettings.of(recipe))(state.trainable, frozen, rows(10**6, 32))
        held_out = float(total) / float(count)
    batch = rows(0, BATCH)
    state, _ = step(state, frozen, batch)
    jax.block_until_ready(state)
    print(json.dumps({"mib": peak() - before, "loss": held_out}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        state, _ = step(state, frozen, batch)
        jax.block_until_ready(state)
        print(json.dumps(time.perf_counter() - started), flush=True)


def compare(what: str, checkpoint: Path, turns: int, train: int, sizes: tuple[int, ...]) -> None:
    """Prints a line of a table for each kind."""
    command = [sys.executable, __file__, "--checkpoint", str(checkpoint), "--train", str(train)]
    processes, first = {}, {}
    for kind in KINDS[what]:
        made = subprocess.Popen(
            [*command, "--worker", f"{what}:{kind}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes[kind], first[kind] = made, json.loads(made.stdout.readline())
    seconds: dict[tuple[str, int], list[float]] = {(kind, size): [] for kind in processes for size in sizes}
    for _ in range(turns):
        for size in sizes:
            for kind, process in processes.items():
                process.stdin.write(f"{size}\n")
                process.stdin.flush()
                seconds[kind, size].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    plain = KINDS[what][0]
    for kind in processes:
        figures = []
        for size in sizes:
            ratio = statistics.median(a / b for a, b in zip(seconds[kind, size], seconds[plain, size], strict=True))
            figures += [f"{statistics.median(seconds[kind, size]):.2f}", f"{ratio:.2f}"]
        memory = [f"{first[kind]['mib']:.0f}", f"{first[kind]['mib'] / first[plain]['mib']:.2f}"]
        loss = [f"{first[kind]['loss']:.4f}"] if first[kind].get("loss") is not None else []
        print(f"| {what} | {kind} | {' | '.join([*figures, *memory, *loss])} |", flush=True)


def main(
    turns: Annotated[int, typer.Option(help="Turns of each kind.", min=1)] = 7,
    train: Annotated[int, typer.Option(help="Steps to train before the loss is compared; 0: none.", min=0)] = 0,
    checkpoint: Annotated[Path | None, typer.Option(hidden=True)] = None,
    worker_: Annotated[str, typer.Option("--worker", hidden=True)] = "",
) -> None:
    """Prints seconds, ratios, MiB and their ratio for every kind."""
    if worker_:
        return worker(*worker_.split(":"), str(checkpoint), train)
    with tempfile.TemporaryDirectory() as folder:
        write_case(Path(folder), MEDIUM, [TEXT])
        path = Path(folder) / "checkpoint.npz"
        print("| | kind | s, ratio (decode: of 1 row, of 8 rows) | MiB, ratio |")
        compare("step", path, turns, train, (BATCH,))
        if not train:
            compare("decode", path, turns, 0, (1, 8))


if __name__ == "__main__":
    typer.run(main)
