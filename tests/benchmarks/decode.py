"""Greedy decoding of ours against transformers + torch and keras-hub + jax: same weights, same prompts, in one run.

    .venv/bin/python tests/benchmarks/decode.py

Batches of 1 and 8, 32 tokens after the prefill's, in float32. Every implementation is a process of its own
(`decode_workers/`), the peers' in the environments that `step.py` makes. They take turns. Each is started as it is by default,
ours with the environment variable of `paligemma.runtime.host_memory.use_huge_pages`; with `--even`, the peers have it too.
Fails if they do not decode the same tokens. Then evaluation on answers of mixed length, against a loop of fixed length over
rows in their order. Needs Linux.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

os.environ.pop("XLA_FLAGS", None)  # simulated devices would share this machine's cores

import jax
import jax.numpy as jnp
import numpy as np
import typer
from peers import environment, variables
from step import MEDIUM, SMALL, Worker, write_case

import paligemma
from paligemma.decoding.settings import DecodeSettings
from paligemma.storage.cache import cache_folder

WORKERS = Path(__file__).parent / "decode_workers"
NAMES = {"ours": "ours", "transformers": "transformers_torch", "keras-hub": "keras_hub_jax"}
PROMPT, NEW_TOKENS, ROWS, EOS = 16, 32, 64, 1


@contextmanager
def start(name: str, python: str | Path, case: Path, huge_pages: bool):
    """Starts a worker on a case, and waits until it has decoded it."""
    command = [python, WORKERS / f"{NAMES[name]}.py", case]
    process = subprocess.Popen(command, env=variables(huge_pages), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        worker = Worker(name, process)
        worker.report = worker.answer()
        print(f"{name}: {worker.report['versions']}, begins with {worker.report['tokens'][0][:5]}", file=sys.stderr)
        yield worker
    finally:
        process.kill()
        process.wait()


def mixed_lengths(case: Path, batch: int = 8) -> str:
    """Evaluation of answers of mixed length: sorted by it and stopped early, against fixed length in the rows' order.

    Answers are sampled, as random weights repeat themselves otherwise; the end's row of the table is made longer until half
    the answers end within half the length. A row's samples are its own, whatever the order.
    """
    model = paligemma.load(case / "checkpoint.npz")
    table = model.module.llm.embedder.input_embedding
    size = model.config.img.image_size
    images = np.random.default_rng(1).uniform(-1, 1, (ROWS, size, size, 3)).astype(np.float32)
    tokens = np.random.default_rng(2).integers(2, model.config.llm.vocab_size, (ROWS, PROMPT), np.int32)
    real, ordered = np.ones((batch, PROMPT), bool), np.arange(ROWS)

    def run(order: np.ndarray, eos: int | None, length: int = NEW_TOKENS) -> tuple[float, np.ndarray]:
        found = np.zeros((ROWS, length), np.int32)
        settings = DecodeSettings(length, temperature=1.0)
        started = time.perf_counter()
        for rows in order.reshape(-1, batch):
            decoded = model.search(images[rows], tokens[rows], real, 0 * tokens[rows], settings, eos, row_seeds=rows)
            found[rows] = decoded.tokens
        return time.perf_counter() - started, found

    plain = table[...]
    for longer in np.geomspace(1.5, 30, 12):
        table[...] = plain.at[EOS].multiply(longer)
        _, found = run(ordered, EOS)
        lengths = np.where((found == EOS).any(axis=1), np.argmax(found == EOS, axis=1) + 1, NEW_TOKENS)
        if np.median(lengths) <= NEW_TOKENS / 2:
            break
    else:
        return "no answer ends early: mixed lengths are not measured"
    by_length = np.argsort(-lengths, kind="stable")
    ways = ((ordered, None, 1), (ordered, None), (ordered, EOS), (by_length, EOS))
    times = [[run(*way)[0] for way in ways] for _ in range(3)]
    prefill, fixed, stopped, sorted_ = np.min(times[1:], axis=0)  # the first round compiles
    lines = [f"{ROWS} answers of {lengths.min()} to {lengths.max()} tokens, mean {lengths.mean():.1f}, batch {batch}:", ""]
    lines += ["| loop | examples/s | to fixed length | after prefill |", "| --- | --- | --- | --- |"]
    for name, seconds in (("fixed length", fixed), ("stopped early", stopped), ("and sorted by length", sorted_)):
        after = (fixed - prefill) / (seconds - prefill)
        lines.append(f"| {name} | {ROWS / seconds:.2f} | {fixed / seconds:.2f}x | {after:.2f}x |")
    return "\n".join(lines)


def copy_bandwidth() -> float:
    """GB/s read and written by copying 256 MB in JAX: the fastest of a few."""
    array, copy, seconds = jnp.ones(1 << 26, jnp.float32), jax.jit(lambda x: x + 1), []
    for _ in range(6):
        started = time.perf_counter()
        copy(array).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * array.nbytes / min(seconds) / 1e9


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often every implementation has its turn.")] = 5,
    small: Annotated[bool, typer.Option(help="A tiny network and one round: checks the tokens, measures nothing.")] = False,
    even: Annotated[bool, typer.Option(help="Large pages of memory for the peers too.")] = False,
    environments: Annotated[Path | None, typer.Option(help="Folder of the peers' environments.")] = None,
    lengths: Annotated[bool, typer.Option(help="Measure evaluation on answers of mixed length too.")] = True,
    only_lengths: Annotated[bool, typer.Option(help="Measure nothing else.")] = False,
) -> None:
    """Prints tables."""
    folder = (environments or cache_folder() / "benchmarks").absolute()
    requirements = Path(__file__).parent / "step_workers"
    pythons = {name: environment(folder, requirements / f"{NAMES[name]}.txt") for name in NAMES if name != "ours"}
    with ExitStack() as stack:
        case = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_case(case, SMALL if small else MEDIUM, (PROMPT,) * 8)
        if only_lengths:
            return print(mixed_lengths(case))
        workers = [
            stack.enter_context(start(name, pythons.get(name, sys.executable), case, even or name == "ours")) for name in NAMES
        ]
        expected = np.array(workers[0].report["tokens"])
        for worker in workers[1:]:
            same = (np.array(worker.report["tokens"]) == expected).mean()
            if same < 0.95:  # the rest: two tokens about as likely, and what follows them
                sys.exit(f"{worker.name} decodes other tokens than ours: {same:.0%} are the same")
        taken: dict[tuple[str, int], list[list[float]]] = {}
        for _ in range(1 if small else rounds):
            for rows in (1, 8):
                for worker in workers:
                    worker.process.stdin.write(f"{rows}\n")
                    worker.process.stdin.flush()
                    taken.setdefault((worker.name, rows), []).append(worker.answer()["seconds"])
        bandwidth = copy_bandwidth()
        print(f"load average {os.getloadavg()[0]:.1f}, {rounds} rounds, copy bandwidth {bandwidth:.1f} GB/s")
        print("| implementation | batch | prefill, s | tokens/s after it | ours to it |")
        print("| --- | --- | --- | --- | --- |")
        for rows in (1, 8):
            best = {worker.name: np.min(taken[worker.name, rows], axis=0) for worker in workers}
            after = {name: whole - without for name, (_, without, whole) in best.items()}
            for name, (prefill, _, _) in best.items():
                speed = rows * NEW_TOKENS / after[name]
                print(f"| {name} | {rows} | {prefill:.3f} | {speed:.0f} | {after[name] / after['ours']:.2f} |")
        sys.stdout.flush()
        for worker in workers:
            worker.process.kill()
        if lengths and not small:
            print(mixed_lengths(case))
    return None


if __name__ == "__main__":
    typer.run(main)
