"""What a run shows while it goes on."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest

from pipelines.run_log import RunLog


class Terminal(io.StringIO):
    """A screen whose last line can be written anew."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("screen", "is_said"), [(Terminal(), True), (io.StringIO(), False)])
def test_a_task_that_is_silent_is_said_to_be_under_way(screen: io.StringIO, is_said: bool, tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log", screen)
    log.write("12:00 - INFO - Executing task 'finetune'\n")
    now = time.monotonic()
    log.tick(now + 2)
    assert ("finetune: 2 s" in screen.getvalue()) == is_said
    log.tick(now + 20)
    assert "  finetune: 20 s" in screen.getvalue()
    log.write("    training: 64 of 128 examples, step 1\n")
    log.tick(time.monotonic() + 40)
    assert "finetune: 40 s, training: 64 of 128 examples, step 1" in screen.getvalue()
    log.write("12:00 - INFO - Task 'finetune' finished with status SUCCESS\n")
    before = screen.getvalue()
    log.tick(now + 100)
    assert screen.getvalue() == before  # between tasks there is nothing to say
    log.close()
    assert "finished with status SUCCESS" in (tmp_path / "log").read_text()


def test_lines_are_whole_on_a_terminal_and_no_control_characters_are_in_a_file(tmp_path: Path) -> None:
    for screen in (Terminal(), io.StringIO()):
        log = RunLog(tmp_path / "log", screen)
        log.write("Executing task 'finetune'\n")
        log.tick(time.monotonic() + 30)
        log.write("Executing task 'evaluate'\n")
        log.close()
        assert screen.getvalue().split("\r\x1b[2K")[-1] == "evaluate\n" or not screen.isatty()
        assert ("\x1b" in screen.getvalue()) == screen.isatty()
