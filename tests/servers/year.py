"""A schedule over a simulated year: our own client against the double of Kubeflow Pipelines, Argo's retries, and spot machines.

Real are what is scheduled (compiled by the profile, with its retries), how it is replaced and cancelled, and where a training's
state is. Simulated are the clock, Argo (`servers.argo`), how long steps take, and machines that are taken away. An attempt
leaves what its training had saved last: a step whose machine is taken away has less than a second of grace (see
pipelines/README.md).
"""

from __future__ import annotations

import functools
import json
import math
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import yaml

from components.finetune.job import state_location
from paligemma.launch import heartbeat, watch
from paligemma.launch.watch import LAUNCH_VARIABLE
from paligemma.training.fit import SECONDS_BETWEEN_SAVES, SECONDS_TO_FIRST_SAVE, STEPS_BETWEEN_SAVES
from pipelines.backends.job import Job, make_job
from pipelines.backends.kubeflow import Kubeflow
from pipelines.placement import placer
from servers.argo import merged, run, strategy_of
from servers.kubeflow import KubeflowServer

MINUTE, HOUR, DAY, WEEK = 60.0, 3600.0, 86400.0, 604800.0
BETWEEN_PREEMPTIONS = 3 * HOUR
STARTING = 5 * MINUTE
"""Of a training: the image, the checkpoint, compiling, and the state that it goes on from."""
STEP = 0.3
"""Seconds of one."""
CAPACITY = 10 * MINUTE
"""What a spot machine is waited for, on average."""
GRACE = 30.0
"""Seconds that Kubernetes gives a pod that is ended."""
VANISHING = 0.2
"""Share of the machines that go without their pods' being seen to fail."""
SECONDS = {
    "fetch-checkpoint": 10 * MINUTE,
    "preflight": 3 * MINUTE,
    "prepare-data": HOUR,
    "prepare-data-2": 10 * MINUTE,
    "finetune": 20 * HOUR,
    "evaluate": HOUR,
    "evaluate-2": HOUR,
    "publish": 20 * MINUTE,
}
ON_SPOT = ("finetune", "evaluate", "evaluate-2")


EDITS, CANCELLED = MappingProxyType({10: 18 * HOUR, 30: 6 * HOUR}), MappingProxyType({20: 12 * HOUR})
"""When, after a week's run has begun, by week; both while it trains."""

_PATCH = Path(__file__).parents[2] / "pipelines/kubernetes/workflow-defaults.yaml"
PATCHED = yaml.safe_load(yaml.safe_load(_PATCH.read_text())["data"]["workflowDefaults"])["spec"]["templateDefaults"][
    "retryStrategy"
]
"""templateDefaults.retryStrategy after the guide's step."""
AS_IT_WAS = MappingProxyType({"backoffDuration": "30s", "backoffFactor": 2.0, "backoffMaxDuration": "600s"})
"""What every task had on KFP, as on Vertex AI, before Argo's source was read."""


@dataclass
class Ran:
    """A run of the year. Times in seconds from its beginning."""

    name: str
    started: float
    ended: float = math.inf
    how: str = ""
    attempts: int = 0
    preemptions: int = 0
    starts: list[float] = field(default_factory=list)  # seconds of training done already, where an attempt made its first step
    repeated: float = 0.0  # seconds of training that were lost
    launched: bool = False  # whether training is a job of its own
    outlived: float = 0.0  # by how many seconds something on an accelerator outlived it


@dataclass
class Year:
    """What became of it."""

    runs: list[Ran] = field(default_factory=list)
    skipped: int = 0

    def count(self, how: str) -> int:
        """Runs that ended so."""
        return sum(one.how == how for one in self.runs)

    @property
    def at_once(self) -> int:
        """Most runs under way at the same time."""
        return max(sum(other.started <= one.started < other.ended for other in self.runs) for one in self.runs)

    @property
    def outlived(self) -> float:
        """By how many seconds something on an accelerator outlived its run, at most."""
        return max(one.outlived for one in self.runs)

    @property
    def from_nothing(self) -> int:
        """Attempts that began a training from step 0 though one before had made steps of it."""
        return sum(max(0, one.starts.count(0.0) - 1) for one in self.runs)


def simulate(
    profile: str,
    server: KubeflowServer,
    defaults: Mapping | None,
    weeks: int = 52,
    edits: Mapping[int, float] = EDITS,
    cancelled: Mapping[int, float] = CANCELLED,
    policy: Mapping | None = None,
    seed: int = 0,
) -> Year:
    """Schedules a profile on spot machines for Mondays at three, and lets time pass.

    Args:
        profile: of kfp.
        server: running.
        defaults: templateDefaults.retryStrategy of Argo's controller.
        weeks: how many.
        edits: at what time after a week's run has begun the schedule is changed, by week.
        cancelled: when a week's run is cancelled, likewise.
        policy: in place of every compiled retryPolicy but its count.
        seed: of what happens to machines.
    """
    chance, year = random.Random(seed), Year()
    client = Kubeflow(server.url, "", "paligemma")
    _schedule(client, profile, 0)
    for week in range(weeks):
        now = week * WEEK + 3 * HOUR
        if year.runs and year.runs[-1].ended > now:  # the double is told late, as all of a run is simulated at once
            server.runs[year.runs[-1].name]["state"] = "RUNNING"
        fired = [name for name in map(server.fire, list(server.recurring_runs)) if name]
        year.skipped += not fired
        for name in fired:
            ran = _run(server.runs[name], week, now, defaults, policy, chance)
            year.runs.append(ran)
            if week in edits:
                _schedule(client, profile, week)
                if name in server.collected and now + edits[week] < ran.ended:
                    _end(ran, now + edits[week], "killed")
            if week in cancelled and now + cancelled[week] < ran.ended:
                client.cancel(name)
                _end(ran, now + cancelled[week], "cancelled")
            server.runs[name]["state"] = {"succeeded": "SUCCEEDED", "cancelled": "CANCELED"}.get(ran.how, "FAILED")
    return year


def _schedule(client: Kubeflow, profile: str, edition: int) -> None:
    client.schedule(_job(profile, edition), "0 0 3 * * 1", False, lambda changes: None)


@functools.cache
def _job(profile: str, edition: int) -> Job:
    images = {target: f"pkg.dev/p/{target}@sha256:{'0' * 64}" for target in ("cpu", "gpu", "tpu")}
    data = {"train_data": "gs://b/train.jsonl", "validation_data": "gs://b/validation.jsonl", "source": "gs://b/model"}
    with tempfile.TemporaryDirectory() as folder:
        parameters = Path(folder) / "parameters.yaml"
        parameters.write_text(yaml.safe_dump({**data, "recipe": {"seed": edition}, "artifact_root": "gs://b/artifacts"}))
        return make_job("weekly", parameters, profile, placer(profile, images, spot=True), "", "")


def _end(ran: Ran, now: float, how: str) -> None:
    """Ends a run before its time. Its pod has its grace; a job of its own hears that nobody waits, and saves."""
    alone = heartbeat.SILENCE_SECONDS + heartbeat.LOOK_SECONDS + heartbeat.SAVE_SECONDS
    ran.ended, ran.how, ran.outlived = now, how, alone if ran.launched else GRACE


def _run(
    posted: Mapping, week: int, now: float, defaults: Mapping | None, policy: Mapping | None, chance: random.Random
) -> Ran:
    """A run from its start to its end, if nobody interferes."""
    pipeline = posted["pipeline_spec"]["pipeline_spec"]
    dags = [pipeline["root"]["dag"], *(one["dag"] for one in pipeline["components"].values() if "dag" in one)]
    tasks = {name: task for dag in dags for name, task in dag["tasks"].items()}
    ran = Ran(posted["run_id"], now)
    states: dict[str, float] = {}
    recipe = posted["runtime_config"]["parameters"]["recipe"]
    place = state_location("x", "", "gs://b/artifacts/state", {"recipe": recipe, "records": f"week {week}"})
    for name in SECONDS:
        executor = pipeline["components"][tasks[name]["componentRef"]["name"]]["executorLabel"]
        container = pipeline["deploymentSpec"]["executors"][executor]["container"]
        told = {entry["name"]: entry["value"] for entry in container.get("env", ())}
        launch = json.loads(told[LAUNCH_VARIABLE]) if LAUNCH_VARIABLE in told else None
        strategy = merged(strategy_of({**tasks[name]["retryPolicy"], **(policy or {})}), defaults)
        key = place if name == "finetune" else name

        def attempt(number: int, at: float, name: str = name, key: str = key, launch: Mapping | None = launch):
            if launch is not None:
                return _waiting(name, key, states, ran, launch["retries"], chance)
            return _attempt(name, key, states, ran, chance)

        attempts, _ = run(strategy, attempt, now)
        now = attempts[-1].finished
        ran.launched |= launch is not None
        ran.ended = now
        if attempts[-1].phase != "Succeeded":
            ran.how = f"failed at {name}"
            return ran
    ran.how = "succeeded"
    return ran


def _waiting(name: str, key: str, states: dict, ran: Ran, retries: int, chance: random.Random) -> tuple[float, str]:
    """A step that has its work done by a job, which it makes again."""
    seconds = 0.0
    for _ in range(retries + 1):
        took, phase = _attempt(name, key, states, ran, chance, several_hosts=True)
        seconds += took + watch.POLL_SECONDS
        if phase == "Succeeded":
            return seconds, phase
        seconds += watch.PAUSE_SECONDS
    return seconds, "Failed"


def _attempt(
    name: str, key: str, states: dict, ran: Ran, chance: random.Random, several_hosts: bool = False
) -> tuple[float, str]:
    """How long it takes, and how it ends."""
    ran.attempts += 1
    left = SECONDS[name] - states.get(key, 0.0)
    if name not in ON_SPOT:
        return left, "Succeeded"
    waited, life = chance.expovariate(1 / CAPACITY), chance.expovariate(1 / BETWEEN_PREEMPTIONS)
    if life > STARTING and name == "finetune":
        ran.starts.append(states.get(key, 0.0))
    if life >= STARTING + left:
        return waited + STARTING + left, "Succeeded"
    ran.preemptions += 1
    worked = max(0.0, life - STARTING)
    kept = worked - worked % (STEPS_BETWEEN_SAVES * STEP if several_hosts else SECONDS_BETWEEN_SAVES)
    if worked and not states.get(key) and not several_hosts and STARTING > SECONDS_TO_FIRST_SAVE:
        kept = max(kept, min(worked, STEP))
    ran.repeated += worked - kept
    states[key] = states.get(key, 0.0) + kept
    return waited + life, "Error" if chance.random() < VANISHING else "Failed"
