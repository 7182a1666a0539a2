"""The training loop: steps over batches, metrics fetched one step late, a line of progress."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from paligemma.data.batch import TrainBatch
from paligemma.errors import PaliGemmaError
from paligemma.progress import WorkProgress
from paligemma.sharding import shard_batch
from paligemma.training.step import StepMetrics, TrainState, TrainStep


class DivergedError(PaliGemmaError):
    """Loss or gradient is not a finite number."""

    exit_code = 2


def fit(
    step: TrainStep,
    state: TrainState,
    frozen: nnx.State,
    batches: Iterator[TrainBatch],
    *,
    steps: int,
    batch_size: int,
    schedule: optax.Schedule,
    mesh: Mesh,
    metrics_file: Path,
    log_every: int,
) -> tuple[TrainState, list[dict]]:
    """Runs `steps` steps; returns the last state and what was measured.

    Every `log_every`-th step (and the first and the last) becomes a JSON line of `metrics_file`: step (from 1), loss (nats a
    suffix token, before the update), gradient_norm, learning_rate, examples_per_second (since the line before).

    Raises:
        DivergedError: a loss or gradient is not finite; names the step.
    """
    history: list[dict] = []
    line_started, line_step = time.monotonic(), 0
    with metrics_file.open("w", buffering=1) as file, WorkProgress("training", "examples", steps * batch_size) as progress:

        def record(number: int, metrics: StepMetrics) -> None:
            # Waits for a step's device work; called only once the next step has been handed to the device.
            nonlocal line_started, line_step
            loss, norm = (float(value) for value in jax.device_get(metrics))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise DivergedError(
                    f"The loss or its gradient is not finite: loss {loss}, gradient norm {norm}.",
                    where=f"step {number} of {steps}",
                    expected="finite numbers",
                    fix="lower learning_rate",
                )
            progress.advance(batch_size, f"step {number}, loss {loss:.4f}")
            if number % log_every and number not in (1, steps):
                return
            now = time.monotonic()
            rate = (number - line_step) * batch_size / max(now - line_started, 1e-9)
            line_started, line_step = now, number
            entry = {
                "step": number,
                "loss": loss,
                "gradient_norm": norm,
                "learning_rate": float(schedule(number - 1)),
                "examples_per_second": rate,
            }
            history.append(entry)
            file.write(json.dumps(entry) + "\n")

        pending: tuple[int, StepMetrics] | None = None
        for number in range(1, steps + 1):
            state, metrics = step(state, frozen, shard_batch(mesh, next(batches)))
            if pending is not None:
                record(*pending)
            pending = number, metrics
        if pending is not None:
            record(*pending)
    return state, history
