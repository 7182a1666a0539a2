"""The training loop: steps over batches, fetches metrics one step late, saves states, validates, and stops cleanly."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
from flax import nnx

from paligemma.errors import PaliGemmaError
from paligemma.training.feed import FedBatch
from paligemma.training.preemption import PreemptedError, PreemptionGuard
from paligemma.training.recipe import Recipe
from paligemma.training.state import StateStore
from paligemma.training.step import StepMetrics, TrainState, TrainStep
from paligemma.training.telemetry import Clock, Telemetry

log = logging.getLogger("paligemma.finetune")

SECONDS_BETWEEN_SAVES = 600.0
SECONDS_TO_FIRST_SAVE = 30.0
"""Seconds to the first save of a new run. Compiling on accelerators takes longer, so the state is saved after their first step:
a machine that is preempted soon after does not cost the run its beginning.
"""
STEPS_BETWEEN_SAVES = 100
"""With several processes, saves go by steps: clocks differ, and all processes must save at the same steps."""


class DivergedError(PaliGemmaError):
    """Loss or gradient is not finite."""

    exit_code = 2


@dataclass
class Progress:
    """A run's progress besides its arrays; saved with them.

    Attributes:
        entries: entries of `metrics.jsonl` so far.
        skipped: number of steps whose loss or gradient was not finite.
        validations: step and loss of each validation.
        stopped: whether training stopped early, because validation loss no longer improved.
    """

    entries: list[dict] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    stopped: bool = False

    @property
    def best_loss(self) -> float:
        """The lowest validation loss; infinite before the first validation."""
        return min((loss for _, loss in self.validations), default=math.inf)


@dataclass(frozen=True)
class Loop:
    """Everything that a run's steps need.

    Attributes:
        recipe: the recipe.
        steps: total number of steps.
        step: the compiled step.
        frozen: parameters that are not trained.
        batches: batches from the first remaining step on.
        schedule: learning rate by number of updates.
        validate: computes the loss on the validation rows, in nats a suffix token; None without validation rows.
        flops: counts the operations of a batch.
        peak_flops: peak speed of the devices in operations a second.
        on_divergence: called with the rows of a batch with non-finite loss or gradient; returns where it wrote them.
    """

    recipe: Recipe
    steps: int
    step: TrainStep
    frozen: nnx.State
    batches: Generator[FedBatch]
    schedule: Callable[[int], Any]
    validate: Callable[[nnx.State], float] | None
    flops: Callable[[FedBatch], float]
    peak_flops: float
    on_divergence: Callable[[int, FedBatch], str]


def fit(
    loop: Loop, state: TrainState, done: int, progress: Progress, store: StateStore, telemetry: Telemetry, location: object
) -> TrainState:
    """Runs the steps after `done`; returns the last state. `location` is the store's location, for messages.

    Every `log_every`-th step, and the first and the last, becomes an entry of `telemetry`: step (from 1), loss (before the
    update, nats a suffix token), gradient_norm, learning_rate, and over the steps since the previous entry:
    examples_per_second, tflops (needed operations, 10^12 a second), share_of_peak, and seconds_data, seconds_step,
    seconds_save, seconds_validate (time spent waiting for each). Entries after a validation have validation_loss.

    Raises:
        DivergedError: a loss or gradient is not finite, and the recipe says to stop.
        PreemptedError: SIGTERM or SIGINT came; the state is saved.
    """
    recipe, clock = loop.recipe, Clock()
    validate_every = recipe.validate_every or loop.steps
    meter = _Meter(loop, clock, progress, telemetry, done)
    last_save = _begin(done)

    def save(number: int, metric: float | None = None) -> None:
        nonlocal last_save
        meter.flush()  # a state with a non-finite loss is not saved
        with clock.phase("save"):
            store.save(number, state, asdict(progress), metric)
        last_save = time.monotonic()

    with PreemptionGuard() as guard:
        for number in range(done + 1, loop.steps + 1):
            if progress.stopped:
                break
            with clock.phase("data"):
                fed = next(loop.batches)
            with clock.phase("step"):
                state, metrics = loop.step(state, loop.frozen, fed.batch)
                meter.record(number, metrics, fed)
            if loop.validate and (number % validate_every == 0 or number == loop.steps):
                meter.flush()
                with clock.phase("validate"):
                    loss = loop.validate(state.trainable)
                better = loss < progress.best_loss
                progress.validations.append((number, loss))
                telemetry.write({"step": number, "validation_loss": loss})
                log.info("step %d: validation loss %.4f%s", number, loss, ", the best" if better else "")
                progress.stopped = _has_stalled(progress.validations, recipe.patience)
                if (better and recipe.select == "best") or progress.stopped:
                    save(number, loss)
            if guard.should_stop(number):
                save(number)
                store.wait()
                raise PreemptedError(number, location)
            if _is_due(recipe, number, last_save):
                save(number)
        meter.flush()
    return state


def _has_stalled(validations: list[tuple[int, float]], patience: int | None) -> bool:
    """Whether the best validation was `patience` or more validations ago."""
    if patience is None:
        return False
    losses = [loss for _, loss in validations]
    return len(losses) - 1 - losses.index(min(losses)) >= patience


def _begin(done: int) -> float:
    """The time from which the wait for the next save counts."""
    early = 0.0 if done else SECONDS_BETWEEN_SAVES - SECONDS_TO_FIRST_SAVE
    return time.monotonic() - early


def _is_due(recipe: Recipe, number: int, last_save: float) -> bool:
    if recipe.save_every is not None:
        return number % recipe.save_every == 0
    if jax.process_count() > 1:
        return number % STEPS_BETWEEN_SAVES == 0
    return time.monotonic() - last_save >= SECONDS_BETWEEN_SAVES


class _Meter:
    """Turns the metrics of steps into entries, one step late, so that the device always has a next step queued."""

    def __init__(self, loop: Loop, clock: Clock, progress: Progress, telemetry: Telemetry, done: int) -> None:
        self._loop, self._clock, self._progress, self._telemetry = loop, clock, progress, telemetry
        self._pending: tuple[int, StepMetrics, FedBatch] | None = None
        self._line_step, self._line_started, self._flops = done, time.monotonic(), 0.0

    def record(self, number: int, metrics: StepMetrics, fed: FedBatch) -> None:
        """Takes a step's metrics, and writes those of the previous step."""
        self.flush()
        self._pending = number, metrics, fed

    def flush(self) -> None:
        """Waits for the last step, and writes its metrics.

        Raises:
            DivergedError: the metrics are not finite, and the recipe says to stop.
        """
        if self._pending is None:
            return
        (number, metrics, fed), self._pending = self._pending, None
        loss, norm = (float(value) for value in jax.device_get(metrics))
        self._flops += self._loop.flops(fed)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._diverged(number, fed, loss, norm)
        recipe = self._loop.recipe
        self._telemetry.advance(f"step {number}, loss {loss:.4f}")
        if number % recipe.log_every and number not in (1, self._loop.steps):
            return
        now = time.monotonic()
        seconds = max(now - self._line_started, 1e-9)
        tflops = self._flops / seconds / 1e12
        entry = {
            "step": number,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": float(self._loop.schedule(number - 1 - len(self._progress.skipped))),
            "examples_per_second": (number - self._line_step) * recipe.batch_size / seconds,
            "tflops": tflops,
            "share_of_peak": tflops * 1e12 / self._loop.peak_flops,
            **{f"seconds_{phase}": spent for phase, spent in sorted(self._clock.take().items())},
        }
        self._line_step, self._line_started, self._flops = number, now, 0.0
        self._telemetry.write(entry)
        self._progress.entries = self._telemetry.entries

    def _diverged(self, number: int, fed: FedBatch, loss: float, norm: float) -> None:
        noted = self._loop.on_divergence(number, fed)
        if self._loop.recipe.non_finite == "skip":
            self._progress.skipped.append(number)
            log.warning("step %d is left out: loss %s, gradient norm %s; its rows are in %s", number, loss, norm, noted)
            return
        raise DivergedError(
            f"The loss or its gradient is not finite: loss {loss}, gradient norm {norm}.",
            where=f"step {number} of {self._loop.steps}; its rows are in {noted}",
            expected="finite numbers",
            fix="lower learning_rate, set gradient_clip=1.0, or set non_finite=skip to leave such steps out",
        )
