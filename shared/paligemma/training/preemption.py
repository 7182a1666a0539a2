"""Preemption: stops at the end of a step when the machine is taken away, not in the middle of one."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import jax
from jax.experimental import multihost_utils

from paligemma.errors import StoppedError
from paligemma.runtime.signals import NotedSignals


class PreemptedError(StoppedError):
    """Training was told to stop. Its state is saved, and the same command continues from there."""

    def __init__(self, step: int, location: object) -> None:
        super().__init__(
            f"Training was interrupted after step {step}.",
            where=f"its state is in {location}",
            fix="run the same command again; it goes on from there",
        )


class PreemptionGuard:
    """Notes SIGTERM and SIGINT during a `with` block, until the training loop asks. Use it in the main thread.

    With several processes, JAX's preemption service handles signals: SIGTERM to one process makes all stop after the same step.
    """

    def __init__(self) -> None:
        self._signals = NotedSignals()

    def __enter__(self) -> Self:
        if jax.process_count() == 1:
            self._signals.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._signals.__exit__(kind, error, trace)

    def should_stop(self, step: int) -> bool:
        """Whether to save and stop after this step. Every process must call this after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signals.noted
