"""SIGKILL at random moments of every step: never half an artifact, and running again gives the right result."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from step_processes import run_step, start_step

from paligemma.artifacts.record import file_sha256, read_record

STEPS = {
    "fetch_checkpoint": [],
    "prepare_data": ["--data", "{source}/rows.jsonl", "--checkpoint", "embedded:tiny"],
    "finetune": ["--checkpoint", "embedded:tiny", "--records", "{records}", "--set", "steps=4", "--set", "remat=none"],
    "evaluate": ["--checkpoint", "embedded:tiny", "--records", "{records}", "--max-new-tokens", "4"],
}
SAME_EVERY_TIME = {
    "fetch_checkpoint": "checkpoint.npz",
    "prepare_data": "train-00000-of-00001.tfrecord",
    "finetune": "trained.safetensors",
    "evaluate": "predictions.jsonl",
}


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_step_leaves_nothing_or_everything(step: str, records: Path, tmp_path: Path) -> None:
    source = Path(next(e for e in read_record(records).inputs if e.role == "data").uri).parent
    output = tmp_path / "out"
    arguments = [argument.format(records=records, source=source) for argument in STEPS[step]]
    flags = [*arguments, "--output", str(output)]

    run_step(step, ["--help"])  # the first one waits for what all are forked from
    started = time.monotonic()
    run_step(step, flags)
    seconds = time.monotonic() - started
    undisturbed = file_sha256(output / SAME_EVERY_TIME[step])

    chance = random.Random(step)
    for fresh in (True, False, True, False):
        if fresh:
            output = tmp_path / f"out{chance.random()}"
            flags[-1] = str(output)
        process = start_step(step, flags)
        time.sleep(seconds * chance.uniform(0.1, 1.0))
        process.kill()
        process.join()
        if output.exists():  # it finished in time, or its predecessor had
            read_record(output)
            assert file_sha256(output / SAME_EVERY_TIME[step]) == undisturbed
    run_step(step, flags)
    read_record(output)
    assert file_sha256(output / SAME_EVERY_TIME[step]) == undisturbed
    assert not list(output.parent.glob(f".{output.name}*"))
