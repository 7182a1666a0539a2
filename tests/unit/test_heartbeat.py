"""A job that nobody waits for ends itself, within ten minutes."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from components.evaluate.__main__ import run as evaluate
from components.finetune.__main__ import run as finetune
from paligemma.launch import heartbeat
from paligemma.launch.heartbeat import HEARTBEAT_VARIABLE, AbandonedError, Heartbeat, end_when_abandoned


@pytest.fixture
def heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Heartbeat:
    heart = Heartbeat.open(str(tmp_path), "paligemma-1")
    monkeypatch.setenv(HEARTBEAT_VARIABLE, heart.place)
    return heart


def test_a_job_outlives_its_step_by_ten_minutes_at_most() -> None:
    assert heartbeat.SILENCE_SECONDS + heartbeat.LOOK_SECONDS + heartbeat.SAVE_SECONDS <= 600
    assert heartbeat.BEAT_SECONDS + heartbeat.LOOK_SECONDS < heartbeat.SILENCE_SECONDS / 2


def test_it_goes_on_as_long_as_somebody_waits_and_then_ends(heart: Heartbeat, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LOOK", 0.01), ("SILENCE", 0.2), ("BEAT", 0.05)):
        monkeypatch.setattr(heartbeat, f"{name}_SECONDS", seconds)
    ended = threading.Event()
    heart.beat(now=True)
    end_when_abandoned(ended.set)
    for _ in range(8):
        time.sleep(0.05)
        heart.beat()
    assert not ended.is_set()
    assert ended.wait(5)


def test_one_that_is_started_again_after_that_ends_at_once(heart: Heartbeat, tmp_path: Path) -> None:
    Path(heart.place).parent.mkdir()
    places = {"checkpoint": "embedded:tiny", "records": str(tmp_path / "none"), "output": str(tmp_path / "out")}
    for said in ({"beat": time.time() - 361, "job": "x", "tries": 1}, None):
        Path(heart.place).write_text(json.dumps(said) if said else "")
        for step in (finetune, evaluate):
            with pytest.raises(AbandonedError, match="Nobody has waited") as caught:
                step(**places)
            assert caught.value.exit_code == 2


def test_what_cannot_be_read_is_silence_and_no_end_of_itself(heart: Heartbeat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(heartbeat, "SILENCE_SECONDS", 0.3)
    ended = threading.Event()
    heart.beat(now=True)
    end_when_abandoned(ended.set)
    Path(heart.place).unlink()
    Path(heart.place).mkdir()  # reading it is an error
    time.sleep(0.1)
    assert not ended.is_set()
    Path(heart.place).rmdir()
    heart.beat(now=True)
    assert not ended.wait(0.25)


def test_the_next_attempt_knows_the_job_and_the_tries(heart: Heartbeat, tmp_path: Path) -> None:
    heart.tries += 1
    heart.made("projects/1/locations/x/customJobs/7")
    again = Heartbeat.open(str(tmp_path), "paligemma-1")
    assert (again.job, again.tries) == ("projects/1/locations/x/customJobs/7", 1)
    again.remove()
    assert Heartbeat.open(str(tmp_path), "paligemma-1").tries == 0


def test_without_a_root_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(HEARTBEAT_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    none = Heartbeat.open("", "paligemma-1")
    none.beat(now=True)
    none.remove()
    end_when_abandoned()
    assert list(tmp_path.iterdir()) == []
