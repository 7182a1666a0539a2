"""A training step of ours against transformers + torch and keras-hub + jax: same weights, same batch, same work, in one run.

    .venv/bin/python tests/benchmarks/step.py

Only the decoder's attention layers are trained, by SGD, in float32; the loss is on suffix tokens. Every implementation is a
process of its own (`step_workers/`), the peers' in environments that are made from pinned requirements on first use. They take
turns, a few steps each, with a large matmul between for the machine's ceiling; so what else the machine does meets all of
them. Ours in three ways: with no product computed twice (`remat: dots`); `lean`, the recipe's default, which recomputes all;
and with image embeddings cached. Each is started as it is by default, ours with the environment variable of
`paligemma.runtime.host_memory.use_huge_pages`; with `--even`, the peers have it too. Fails if the losses of the first three
steps, hence weights, masks and gradients, do not agree. Needs Linux.

With `--mixed`, an epoch of rows with texts of 10 to 60 tokens is timed, a step being its time over its batches. Each
implementation makes batches of them as it does: ours by buckets of length, with the loader's plan; transformers as rows come,
padded to the longest of a batch; compiled functions, whose shapes are fixed, as rows come, padded to the longest of all.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

os.environ.pop("XLA_FLAGS", None)  # simulated devices would share this machine's cores

import jax
import jax.numpy as jnp
import numpy as np
import typer
from peers import environment, variables
from step_workers.worker import TRAINED

from paligemma.checkpoints.npz import write_npz
from paligemma.data.batch_order import bucket_widths
from paligemma.models.config import DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.models.parameter_shapes import parameter_shapes
from paligemma.storage.cache import cache_folder
from paligemma.training.flops import step_flops

WORKERS = Path(__file__).parent / "step_workers"
TOLERANCE = 1e-4
"""How far the losses (of about 10 nats) may be apart."""

MEDIUM = PaliGemmaConfig(
    img=VisionConfig(image_size=224, patch_size=14, width=384, depth=6, mlp_dim=1536, num_heads=6),
    llm=DecoderConfig(width=512, depth=6, mlp_dim=4096, num_heads=8, num_kv_heads=1, head_dim=64, vocab_size=32_000),
)
SMALL = PaliGemmaConfig(
    img=VisionConfig(image_size=28, patch_size=14, width=32, depth=2, mlp_dim=64, num_heads=2),
    llm=DecoderConfig(width=64, depth=3, mlp_dim=96, num_heads=4, num_kv_heads=1, head_dim=16, vocab_size=256),
)


@dataclass(frozen=True)
class Implementation:
    """What is measured: a script of `step_workers/`, which variant of it, and how rows become batches."""

    name: str
    script: str
    variant: str
    order: Literal["buckets", "longest", "fixed"]


OURS = (
    Implementation("ours", "ours", "", "buckets"),
    Implementation("ours, lean", "ours", "lean", "buckets"),
    Implementation("ours, features cached", "ours", "cached", "buckets"),
)
PEERS = (
    Implementation("transformers", "transformers_torch", "", "longest"),
    Implementation("transformers, compiled", "transformers_torch", "compiled", "fixed"),
    Implementation("keras-hub", "keras_hub_jax", "", "fixed"),
)
EPOCH = 16
"""Rows of an epoch of mixed lengths."""


@dataclass
class Worker:
    """One implementation in its process; see `step_workers/worker.py` for what is said to it."""

    name: str
    process: subprocess.Popen
    report: dict = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list)

    def answer(self) -> dict:
        """The next line it writes."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}; its messages are above")
        return json.loads(line)

    def take(self, steps: int) -> None:
        """Has it take some steps, and notes their times."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.milliseconds += answer.pop("milliseconds")
        self.report |= answer


@contextmanager
def start(implementation: Implementation, python: str | Path, case: Path, huge_pages: bool) -> Iterator[Worker]:
    """Starts a worker on a case, and waits until its step is compiled and has been taken a few times."""
    command = [python, WORKERS / f"{implementation.script}.py", case, implementation.variant, implementation.order]
    process = subprocess.Popen(command, env=variables(huge_pages), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        worker = Worker(implementation.name, process)
        worker.report = worker.answer()
        print(f"{worker.name}: losses {worker.report['losses']}, {worker.report['versions']}", file=sys.stderr)
        yield worker
    finally:
        process.kill()
        process.wait()


def random_parameter(rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Random values for a parameter, of a size that keeps activations near one, made without a copy in another dtype."""
    if name.endswith(("scale", "bias")):
        deviation = 0.1
    elif name.endswith("attn_vec_einsum/w"):
        deviation = (shape[-3] * shape[-2]) ** -0.5
    elif name.endswith("embedding"):  # the decoder's table and the tower's positions: large enough to tell masks apart
        deviation = shape[-1] ** -0.5
    else:  # the input's axis is the last but one, or the one before that, followed by the tower's heads
        by_head = name.endswith(("query/kernel", "key/kernel", "value/kernel"))
        deviation = shape[-3 if by_head else -2] ** -0.5
    mean = 1.0 if name.startswith("img/") and name.endswith("scale") else 0.0
    values = np.empty(int(np.prod(shape)), dtype)
    for part in np.split(values, range(2**24, len(values), 2**24)):
        part[:] = mean + deviation * rng.standard_normal(len(part), np.float32)
    return values.reshape(shape)


def write_case(folder: Path, config: PaliGemmaConfig, lengths: Sequence[int]) -> None:
    """Writes random weights, the architecture, and a batch with a text of each of these lengths."""
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config).items()
    write_npz(folder / "checkpoint.npz", ((name, random_parameter(rng, name, shape, "float32")) for name, shape in shapes))
    (folder / "config.json").write_text(config.model_dump_json())
    write_batch(folder / "batch.npz", config, lengths, max(lengths))


def write_batch(file: Path, config: PaliGemmaConfig, lengths: Sequence[int], width: int) -> None:
    """Writes a batch with a random image and a text of each of these lengths, half of it prefix, padded to a width."""
    rng = np.random.default_rng(0)
    size = config.img.image_size
    column, ends = np.arange(width), np.array(lengths)[:, None]
    real, suffix = column < ends, (column >= ends // 2) & (column < ends)
    tokens = np.where(real, rng.integers(1, config.llm.vocab_size, real.shape), 0)
    np.savez(
        file,
        images=rng.uniform(-1, 1, (len(lengths), size, size, 3)).astype(np.float32),
        tokens=tokens.astype(np.int32),
        mask_ar=suffix.astype(np.int32),
        mask_loss=suffix.astype(np.int32),
        mask_input=real.astype(np.int32),
    )


def write_epoch(folder: Path, config: PaliGemmaConfig, shortest: int, longest: int, batch_size: int) -> None:
    """Writes the batches of one epoch of texts from `shortest` to `longest` tokens, once for every order."""
    lengths = np.random.default_rng(1).permutation(np.linspace(shortest, longest, EPOCH).round().astype(int))
    # As the plan of many such rows has it; an epoch is too short for a plan of its own.
    widths = bucket_widths(np.arange(shortest, longest + 1) - 1, 4, 1)
    buckets = np.searchsorted(widths, lengths - 1)
    orders = {
        "buckets": lengths[np.argsort(buckets, kind="stable")].reshape(-1, batch_size),
        "longest": lengths.reshape(-1, batch_size),
        "fixed": lengths.reshape(-1, batch_size),
    }
    for order, batches in orders.items():
        for number, batch in enumerate(batches):
            bucket = widths[np.searchsorted(widths, batch.max() - 1)] + 1  # the last token is no input
            width = {"buckets": bucket, "longest": batch.max(), "fixed": longest}[order]
            write_batch(folder / f"{order}-{number}.npz", config, batch, int(width))


def make_matmul(size: int = 2048) -> Callable[[], float]:
    """A large float32 matmul in JAX; called, it says how many FLOP/s the fastest of a few reached."""
    left, right = jax.random.normal(jax.random.key(0), (2, size, size), jnp.float32)
    multiply = jax.jit(jnp.matmul)

    def measure() -> float:
        seconds = []
        for _ in range(10):
            started = time.perf_counter()
            multiply(left, right).block_until_ready()
            seconds.append(time.perf_counter() - started)
        return 2 * size**3 / min(seconds)

    measure()
    return measure


def check_losses(workers: Sequence[Worker]) -> None:
    """Exits if an implementation does not train as the first does."""
    expected = workers[0].report["losses"]
    for worker in workers[1:]:
        if not np.allclose(worker.report["losses"], expected, rtol=0, atol=TOLERANCE):
            sys.exit(
                f"{worker.name} has the losses {worker.report['losses']}, {workers[0].name} has {expected}: not the same work"
            )


def print_table(workers: Sequence[Worker], flops: float, ceiling: float) -> None:
    """One row for each implementation. What else the machine does only adds time, so ratios are of the fastest steps.

    `flops` are those of a step; 0 where it is not the same for all.
    """
    fastest_peer = min(min(worker.milliseconds) for worker in workers[len(OURS) :])
    print("| implementation | ms/step, fastest | median | to the fastest peer | peak memory | GFLOP/s | of the ceiling |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for worker in workers:
        fastest, median = min(worker.milliseconds), statistics.median(worker.milliseconds)
        rate = flops / fastest * 1000
        print(
            f"| {worker.name} | {fastest:.0f} | {median:.0f} | {fastest / fastest_peer:.2f} "
            f"| {worker.report['peak_bytes'] / 1e9:.2f} GB | "
            + (f"{rate / 1e9:.0f} | {rate / ceiling:.0%} |" if flops else " | |")
        )


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often every implementation has its turn.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps that it takes in a turn.")] = 3,
    mixed: Annotated[bool, typer.Option(help="Texts of 10 to 60 tokens, and not of 64 each.")] = False,
    even: Annotated[bool, typer.Option(help="Large pages of memory for the peers too.")] = False,
    small: Annotated[bool, typer.Option(help="A tiny network and one round: checks the losses, measures nothing.")] = False,
    environments: Annotated[Path | None, typer.Option(help="Folder of the peers' environments.")] = None,
) -> None:
    """Prints a table."""
    config, lengths = (SMALL, (16, 11, 9, 6)) if small else (MEDIUM, (64,) * 4)
    rounds = 1 if small else rounds
    folder = (environments or cache_folder() / "benchmarks").absolute()
    # torch.compile compiles C++.
    peers = [peer for peer in PEERS if peer.variant != "compiled" or shutil.which("g++")]
    pythons = {peer.script: environment(folder, WORKERS / f"{peer.script}.txt") for peer in peers}
    pythons[OURS[0].script] = sys.executable
    with ExitStack() as stack:
        case = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_case(case, config, lengths)
        if mixed:
            write_epoch(case, config, 10, 60, len(lengths))
        workers = [
            stack.enter_context(start(each, pythons[each.script], case, even or each in OURS)) for each in (*OURS, *peers)
        ]
        check_losses(workers)
        matmul, ceiling = make_matmul(), 0.0
        for _ in range(rounds):
            ceiling = max(ceiling, matmul())
            for worker in workers:
                worker.take(steps)
    trained = {name: shape for name, shape in parameter_shapes(config).items() if name.startswith(TRAINED)}
    losses = sum(length - length // 2 for length in lengths) / len(lengths)
    flops = 0.0 if mixed else step_flops(config, trained, len(lengths), max(lengths) - 1, losses)
    print(f"{len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}, {rounds} rounds of {steps} steps")
    needs = "" if mixed else f"a step needs {flops / 1e9:.1f} GFLOP; "
    print(f"{needs}the ceiling, a float32 matmul of 2048, is {ceiling / 1e9:.0f} GFLOP/s")
    print_table(workers, flops, ceiling)


if __name__ == "__main__":
    typer.run(main)
