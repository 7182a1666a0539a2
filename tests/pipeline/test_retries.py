"""How often a step is tried again, by what each backend makes of its settings."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from conftest import REPOSITORY
from pipelines.compile import compile_pipeline
from pipelines.placement import placer
from pipelines.profiles import ACCELERATED, ROBUSTNESS
from servers.argo import STOCK_DEFAULTS, Attempt, Decision, decide, merged, run, strategy_of

HOUR = 3600
DIGEST = f"sha256:{'0' * 64}"
IMAGES = {target: f"pkg.dev/p/{target}@{DIGEST}" for target in ("cpu", "gpu", "tpu")}
PATCH = REPOSITORY / "pipelines/kubernetes/workflow-defaults.yaml"


def backoff(duration: float = 10, factor: int = 2, **more: float) -> dict:
    return {"backoff": {"duration": str(duration), "factor": str(factor), **{key: str(value) for key, value in more.items()}}}


@pytest.mark.parametrize(
    ("strategy", "attempts", "now", "expected"),
    [
        (None, [(0, 5, "Failed")], 5, Decision("end")),
        ({"limit": "10"}, [(0, 5, "Succeeded")], 5, Decision("end")),
        ({"limit": "10"}, [(0, 5, "Failed")], 5, Decision("try")),
        ({"limit": "10"}, [(0, 5, "Error")], 5, Decision("end", "not retried by its policy")),
        ({"limit": "2", "retryPolicy": "Always"}, [(0, 5, "Error")], 5, Decision("try")),
        ({"limit": "2", "retryPolicy": "OnError"}, [(0, 5, "Failed")], 5, Decision("end", "not retried by its policy")),
        ({"limit": "2", "retryPolicy": "OnError"}, [(0, 5, "Error")], 5, Decision("try")),
        # The policy is asked again after each attempt.
        ({"limit": "9"}, [(0, 5, "Failed"), (5, 6, "Error")], 6, Decision("end", "not retried by its policy")),
        ({"limit": "1"}, [(0, 1, "Failed"), (1, 2, "Failed")], 2, Decision("end", "No more retries left")),
        ({"limit": "0", "retryPolicy": "Always"}, [(0, 1, "Error")], 1, Decision("end", "No more retries left")),
        ({"retryPolicy": "Always"}, [(0, 1, "Failed")] * 99, 1, Decision("try")),
        ({"limit": "9", **backoff()}, [(0, 5, "Failed")], 6, Decision("wait", at=15)),
        ({"limit": "9", **backoff()}, [(0, 5, "Failed")] * 3, 6, Decision("wait", at=45)),
        ({"limit": "9", **backoff(factor=1)}, [(0, 5, "Failed")] * 3, 6, Decision("wait", at=15)),
        ({"limit": "9", **backoff(cap=15)}, [(0, 5, "Failed")] * 3, 6, Decision("wait", at=20)),
        ({"limit": "9", **backoff()}, [(0, 5, "Failed")], 15, Decision("try")),
        ({"limit": "9", **backoff(maxDuration=60)}, [(0, 50, "Failed")], 60, Decision("try", deadline=60)),
        ({"limit": "9", **backoff(maxDuration=60)}, [(0, 61, "Failed")], 61, Decision("end", "Max duration limit exceeded")),
        (
            {"limit": "9", **backoff(maxDuration=60)},
            [(0, 55, "Failed")],
            55,
            Decision("end", "Backoff would exceed max duration limit"),
        ),
    ],
)
def test_argos_decision(strategy: dict | None, attempts: list, now: float, expected: Decision) -> None:
    assert decide(strategy, [Attempt(*one) for one in attempts], now) == expected


def test_template_defaults_are_merged_into_a_template_with_a_strategy_of_its_own_and_given_to_one_without() -> None:
    own = strategy_of(
        {"maxRetryCount": 3, "backoffDuration": "30s", "backoffFactor": 2.0, "backoffMaxDuration": "600s"},
    )
    assert own == {"limit": "3", "backoff": {"duration": "30", "factor": "2", "maxDuration": "600"}}
    assert merged(own, STOCK_DEFAULTS) == {**own, "retryPolicy": "OnError"}
    assert merged(None, STOCK_DEFAULTS) == STOCK_DEFAULTS
    assert merged(own, None) == own
    assert merged(None, None) is None


def tasks(profile: str, spot: bool, folder: Path) -> dict[str, dict]:
    """The retryPolicy of every step."""
    compile_pipeline(folder / "p.yaml", place_task=placer(profile, IMAGES, spot=spot))
    document = next(yaml.load_all((folder / "p.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    dags = [document["root"]["dag"], *(one["dag"] for one in document["components"].values() if "dag" in one)]
    found = {name: task["retryPolicy"] for dag in dags for name, task in dag["tasks"].items() if "retryPolicy" in task}
    return {step: found[step.replace("_", "-")] for step in ROBUSTNESS}


def server_defaults() -> dict:
    """What the guide's patch sets."""
    return yaml.safe_load(yaml.safe_load(PATCH.read_text())["data"]["workflowDefaults"])["spec"]


@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.parametrize("phase", ["Failed", "Error"])
def test_on_kubeflow_every_step_is_tried_again_as_often_as_the_guide_says(tmp_path: Path, spot: bool, phase: str) -> None:
    defaults = server_defaults()["templateDefaults"]["retryStrategy"]
    for step, policy in tasks("kfp-gpu-l4", spot, tmp_path).items():
        robustness = ROBUSTNESS[step]
        wanted = robustness.spot_retries if spot and step in ACCELERATED else robustness.retries
        strategy = merged(strategy_of(policy), defaults)
        # Each attempt takes all the time that it has, and none is cut short.
        attempts, why = run(strategy, lambda number, now, step=step: (ROBUSTNESS[step].timeout, phase))
        assert (len(attempts) - 1, why) == (wanted, "No more retries left")
        assert {one.finished - one.started for one in attempts} == {robustness.timeout}
        pauses = [after.started - before.finished for before, after in itertools.pairwise(attempts)]
        assert set(pauses) == {60}


def test_as_kubeflow_is_installed_an_exit_code_ends_a_step_and_the_dag_around_one_that_vanished_is_run_again(
    tmp_path: Path,
) -> None:
    """Why the guide has the patch; with it, a DAG and a driver, which have no strategy of their own, are not tried again."""
    policy = tasks("kfp-gpu-l4", True, tmp_path)["finetune"]
    attempts, why = run(merged(strategy_of(policy), STOCK_DEFAULTS), lambda number, now: (HOUR, "Failed"))
    assert (len(attempts), why) == (1, "not retried by its policy")
    assert len(run(merged(None, STOCK_DEFAULTS), lambda number, now: (HOUR, "Error"))[0]) == 3
    patched = server_defaults()
    assert len(run(merged(None, patched["templateDefaults"]["retryStrategy"]), lambda number, now: (HOUR, "Error"))[0]) == 1
    assert patched["ttlStrategy"] == dict.fromkeys(
        ("secondsAfterCompletion", "secondsAfterSuccess", "secondsAfterFailure"), HOUR
    )


def test_the_guides_step_sets_the_patch() -> None:
    guide = (REPOSITORY / "pipelines/guides/gke.md").read_text()
    assert f"--patch-file={PATCH.relative_to(REPOSITORY)}" in guide


def test_on_vertex_the_longest_pause_is_ten_minutes(tmp_path: Path) -> None:
    policy = tasks("vertex-gpu-l4", False, tmp_path)["finetune"]
    assert policy == {"maxRetryCount": 3, "backoffDuration": "30s", "backoffFactor": 2.0, "backoffMaxDuration": "600s"}
