"""What Argo Workflows decides of a template that failed: a model of its retries, without a cluster, on a clock of numbers.

By processNodeRetries and mergedTemplateDefaultsInto of workflow/controller/operator.go, v4.0.5 (lines 978 to 1155, and 4448),
and docs/retries.md. Kubeflow Pipelines makes the strategy from a task's retryPolicy in
backend/src/v2/compiler/argocompiler/container.go, 2.17.0 (lines 614 to 684), as text of whole seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Phase = Literal["Succeeded", "Failed", "Error"]
"""Failed: the main container ended with another code than 0, or its pod failed, be it by its deadline or its node's. Error: the
pod vanished, did not start, or a container of Argo's own failed (inferFailedReason and podReconciliation)."""

STOCK_DEFAULTS = {"limit": "2", "retryPolicy": "OnError"}
"""templateDefaults.retryStrategy that KFP 2.17.0 is installed with:
manifests/kustomize/third-party/argo/base/workflow-controller-configmap-patch.yaml:57."""


@dataclass(frozen=True)
class Attempt:
    """A child of a node that is retried; times in seconds."""

    started: float
    finished: float
    phase: Phase


@dataclass(frozen=True)
class Decision:
    """What becomes of the node: another attempt, which is killed at `deadline`; none before `at`; or an end, and why."""

    what: Literal["try", "wait", "end"]
    why: str = ""
    at: float = 0.0
    deadline: float = math.inf


def strategy_of(policy: Mapping) -> dict:
    """The retryStrategy that KFP makes from the retryPolicy of a compiled task."""
    return {
        "limit": str(policy.get("maxRetryCount", 0)),
        "backoff": {
            "duration": policy.get("backoffDuration", "0s").removesuffix("s"),
            "factor": f"{policy.get('backoffFactor', 0.0):g}",
            "maxDuration": policy.get("backoffMaxDuration", "0s").removesuffix("s"),
        },
    }


def merged(own: Mapping | None, defaults: Mapping | None) -> dict | None:
    """A template's strategy with what the controller's templateDefaults have besides; a template without one gets theirs."""
    if own is None and defaults is None:
        return None
    backoff = {**((defaults or {}).get("backoff") or {}), **((own or {}).get("backoff") or {})}
    return {**(defaults or {}), **(own or {}), **({"backoff": backoff} if backoff else {})}


def decide(strategy: Mapping | None, attempts: list[Attempt], now: float) -> Decision:
    """What the controller does when it looks at a node whose last attempt has ended."""
    if not attempts:
        return Decision("try")
    first, last, count = attempts[0], attempts[-1], len(attempts)
    if strategy is None or last.phase == "Succeeded":
        return Decision("end")
    limit = int(strategy["limit"]) if "limit" in strategy else None
    deadline = math.inf
    if backoff := strategy.get("backoff"):
        if "maxDuration" in backoff:
            deadline = first.started + float(backoff["maxDuration"])
            if now > deadline:
                return Decision("end", "Max duration limit exceeded")
        pause, factor = float(backoff["duration"]), int(backoff.get("factor", 0))
        if factor > 0:
            pause *= factor ** (count - 1)
        pause = min(pause, float(backoff.get("cap", math.inf)))
        if last.finished + pause > deadline:
            return Decision("end", "Backoff would exceed max duration limit")
        if now < last.finished + pause and limit is not None and count <= limit:
            return Decision("wait", at=last.finished + pause)
    policy = strategy.get("retryPolicy") or "OnFailure"
    if policy not in ("Always", "OnFailure", "OnError"):
        raise ValueError(f"{policy} is not a valid RetryPolicy")
    if (last.phase == "Failed" and policy == "OnError") or (last.phase == "Error" and policy == "OnFailure"):
        return Decision("end", "not retried by its policy")
    if limit is not None and count > limit:
        return Decision("end", "No more retries left")
    return Decision("try", deadline=deadline)


def run(strategy: Mapping | None, attempt: Callable[[int, float], tuple[float, Phase]], now: float = 0.0) -> tuple[list, str]:
    """All attempts at a node, and why there are no more.

    Args:
        strategy: merged.
        attempt: given the number of an attempt, from 0, and when it starts, how long it would take, and how it would end.
        now: when the first one starts.
    """
    attempts: list[Attempt] = []
    while True:
        decision = decide(strategy, attempts, now)
        if decision.what == "end":
            return attempts, decision.why
        if decision.what == "wait":
            now = decision.at
            continue
        seconds, phase = attempt(len(attempts), now)
        end = now + seconds
        if end > decision.deadline:  # getDeadline of workflow/controller/workflowpod.go:666, which the pod is started with
            end, phase = decision.deadline, "Failed"
        attempts.append(Attempt(now, end, phase))
        now = end
