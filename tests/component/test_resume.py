"""Interrupted and gone on with: the same bytes as without a pause, whatever stopped the run, and whenever."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from step_processes import run_step, start_step

from components.finetune.__main__ import run
from conftest import ONE_DEVICE, REPOSITORY, XLA_FLAGS
from paligemma.errors import InputError
from paligemma.training import fit as fit_module
from paligemma.training.preemption import PreemptedError, PreemptionGuard

EVERYTHING = [
    "batch_size=8",
    "steps=40",
    "learning_rate=0.01",
    "optimizer=adamw",
    "dropout=0.2",
    "accumulate=2",
    "augment.colour=0.3",
    "save_every=1",
    "buckets=2",
]


def results(folder: Path) -> tuple[bytes, list[tuple[int, float]]]:
    """The trained parameters, and the loss of every step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "trained.safetensors").read_bytes(), [(line["step"], line["loss"]) for line in lines if "loss" in line]


def flags(records: Path, output: Path, settings: list[str]) -> list[str]:
    given = ["--checkpoint", "embedded:tiny", "--records", str(records), "--output", str(output)]
    return given + [word for setting in settings for word in ("--set", setting)]


def command(records: Path, output: Path, settings: list[str]) -> list[str]:
    return [sys.executable, "-m", "components.finetune", *flags(records, output, settings)]


def test_killed_at_random_moments_it_ends_with_the_same_bytes(records: Path, tmp_path: Path) -> None:
    run_step("finetune", flags(records, tmp_path / "whole", EVERYTHING))
    output, state = tmp_path / "killed", tmp_path / "killed.state"
    chance, kills = random.Random(0), 0
    for _ in range(3):
        before = newest(state)
        process = start_step("finetune", flags(records, output, EVERYTHING))
        while process.is_alive() and newest(state) <= before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))  # a step takes 0.02 s, a save somewhat longer
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 2
    assert not output.exists() or kills < 3
    run_step("finetune", flags(records, output, EVERYTHING))
    assert results(output) == results(tmp_path / "whole")
    assert not state.exists()


def newest(state: Path) -> int:
    """The last step that is saved; -1 without any."""
    return max((int(path.parent.name.split("-")[1]) for path in state.glob("step-*/checkpoint.json")), default=-1)


def test_sigterm_saves_and_exits_with_4(records: Path, tmp_path: Path) -> None:
    settings = ["steps=4000", "log_every=100"]
    process = subprocess.Popen(
        command(records, tmp_path / "x", settings), cwd=REPOSITORY, env=ONE_DEVICE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith("training: "):
            break
    process.terminate()
    said = process.stderr.read()
    assert process.wait() == 4
    assert "run the same command again" in said
    assert newest(tmp_path / "x.state") > 0
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "settings",
    [
        ["optimizer=lion", "trainable=lora", "gradient_clip=1.0", "learning_rate=0.001"],
        ["optimizer=adafactor", "trainable=llm", "weight_decay=0.01", "learning_rate=0.001", "loss_per=token"],
        ["optimizer=momentum", "vision_cache=memory", "schedule=rsqrt", "remat=none", "unroll=true"],
        ["optimizer=adamw", "trainable=lora", "frozen_dtype=nf4", "quantize.block=32", "learning_rate=0.001"],
    ],
    ids=lambda settings: settings[0],
)
def test_every_kind_of_run_goes_on_as_if_nothing_had_been(
    settings: list[str], records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*settings, "steps=7", "validate_every=2", "select=best"]
    run("embedded:tiny", str(records), str(tmp_path / "whole"), str(records), set_=settings)
    monkeypatch.setattr(PreemptionGuard, "should_stop", lambda self, step: step == 3)
    with pytest.raises(PreemptedError, match="after step 3"):
        run("embedded:tiny", str(records), str(tmp_path / "paused"), str(records), set_=settings)
    monkeypatch.setattr(PreemptionGuard, "should_stop", lambda self, step: False)
    run("embedded:tiny", str(records), str(tmp_path / "paused"), str(records), set_=settings)
    assert results(tmp_path / "paused") == results(tmp_path / "whole")
    whole, paused = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "paused"))
    assert paused["validations"] == whole["validations"]


def test_another_recipe_or_other_data_are_refused_with_what_differs(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = str(tmp_path / "state")
    monkeypatch.setattr(PreemptionGuard, "should_stop", lambda self, step: step == 2)
    with pytest.raises(PreemptedError):
        run("embedded:tiny", str(records), str(tmp_path / "x"), set_=["steps=4"], state=state)
    with pytest.raises(InputError, match=r"recipe\.learning_rate: 0\.03 -> 0\.01"):
        run("embedded:tiny", str(records), str(tmp_path / "x"), set_=["steps=4", "learning_rate=0.01"], state=state)
    # What changes nothing about the outcome may change.
    run("embedded:tiny", str(records), str(tmp_path / "x"), set_=["steps=4", "log_every=3"], state=state)


def test_a_state_is_kept_when_it_was_asked_for_and_makes_running_again_cheap(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("embedded:tiny", str(records), str(tmp_path / "x"))
    run(*arguments, set_=["steps=5", "save_every=5"], state=str(tmp_path / "state"))
    first = results(tmp_path / "x")
    monkeypatch.setattr(fit_module._Meter, "record", lambda *_: pytest.fail("a step was made again"))
    run(*arguments, set_=["steps=5", "save_every=5"], state=str(tmp_path / "state"))
    assert results(tmp_path / "x") == first


def test_two_processes_train_as_one(records: Path, tmp_path: Path) -> None:
    """Two real processes over loopback, with two simulated devices each, against one process with four."""
    settings = ["batch_size=8", "steps=4", "learning_rate=0.1", "remat=none", "frozen_dtype=float32", "save_every=2"]
    settings += ["validate_every=4", "vision_cache=memory"]
    validated = ["--validation", str(records)]
    devices = {**ONE_DEVICE, "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {XLA_FLAGS}"}
    run_step("finetune", [*flags(records, tmp_path / "one", settings), *validated], devices)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [*command(records, tmp_path / "two", settings), *validated],
            cwd=REPOSITORY,
            env={
                **ONE_DEVICE,
                "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {XLA_FLAGS}",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            },
        )
        for index in range(2)
    ]
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    (_, one), (_, two) = results(tmp_path / "one"), results(tmp_path / "two")
    assert two == [(step, pytest.approx(loss, abs=1e-5)) for step, loss in one]
    summary = json.loads((tmp_path / "two/summary.json").read_text())
    assert summary["device"] == "4 x cpu"
    assert not (tmp_path / "two.state").exists()
