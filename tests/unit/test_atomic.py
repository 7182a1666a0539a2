"""Writing files and directories: the old state or the new one, also when the writer is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paligemma.errors import InputError
from paligemma.storage.atomic import write_directory, write_file

MARKER = "marker"

WRITER = """
import sys
from pathlib import Path
from paligemma.storage.atomic import write_directory
target = Path(sys.argv[1])
version = 0
while True:
    version += 1
    with write_directory(target, may_replace="marker") as folder:
        for part in range(8):
            (folder / f"part{part}").write_text(str(version))
        (folder / "marker").write_text(str(version))
    print(version, flush=True)
"""


def fill(target: Path, text: str) -> None:
    with write_directory(target, may_replace=MARKER) as folder:
        (folder / MARKER).write_text(text)


def test_a_directory_appears_whole_and_is_exchanged(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "x"
    for text in ("one", "two"):
        fill(target, text)
        assert (target / MARKER).read_text() == text
    assert [path.name for path in target.parent.iterdir()] == ["x"]


def test_an_exception_leaves_the_old_directory_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path / "x", "old")

    def fail() -> None:
        with write_directory(tmp_path / "x", may_replace=MARKER) as folder:
            (folder / MARKER).write_text("new")
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert (tmp_path / "x" / MARKER).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_user_keeps_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not an artifact of this program"):
        fill(tmp_path / "x", "new")
    assert (tmp_path / "x" / "thesis.txt").read_text() == "precious"


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    fill(tmp_path / "x", "new")
    assert (tmp_path / "x" / MARKER).read_text() == "new"


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    with write_directory(tmp_path / "x", may_replace=MARKER) as folder:
        with pytest.raises(InputError, match="Another process is writing"):
            fill(tmp_path / "x", "second")
        (folder / MARKER).write_text("first")
    assert (tmp_path / "x" / MARKER).read_text() == "first"


def test_readers_see_whole_versions_while_the_writer_is_killed(tmp_path: Path) -> None:
    """SIGKILL at 25 random moments; each successor cleans up and goes on."""
    chance, target = random.Random(0), tmp_path / "x"
    for _ in range(25):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE)
        assert writer.stdout.readline(), "the writer could not start where its killed predecessor left off"
        time.sleep(chance.random() * 0.05)
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        versions = {path.read_text() for path in target.iterdir()}
        assert len(versions) == 1
        assert len(list(target.iterdir())) == 9


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    write_file(tmp_path / "x", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
