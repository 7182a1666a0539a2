"""Writing files and directories: the old state or the new one, also when the writer is killed."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from paligemma.errors import InputError
from paligemma.storage import atomic
from paligemma.storage.atomic import write_directory, write_file
from paligemma.storage.disk_space import explain_full_disk

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


OWN = {MARKER, "part/one"}


def fill_own(target: Path, text: str, meanwhile: Callable[[], object] = lambda: None) -> None:
    with write_directory(target, may_replace=MARKER, files_of=lambda _: OWN) as folder:
        (folder / "part").mkdir()
        for name in OWN:
            (folder / name).write_text(text)
        meanwhile()


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["notes.txt", "part/notes.txt", "more/notes.txt"])
def test_a_file_that_is_none_of_the_artifacts_keeps_it_from_being_replaced(tmp_path: Path, name: str) -> None:
    fill_own(tmp_path / "x", "old")
    (tmp_path / "x" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "x" / name).write_text("precious")
    first = name if name.startswith("part/") else name.partition("/")[0]
    with pytest.raises(
        InputError, match=rf"holds {first}, which is not one of the artifact's files.*\n.*\n.*move what is yours"
    ):
        fill_own(tmp_path / "x", "new", lambda: pytest.fail("it was refused too late"))
    assert contents(tmp_path / "x") == {MARKER: "old", "part/one": "old", name: "precious"}


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/"), os.mkfifo])
def test_so_do_an_empty_folder_a_link_and_a_fifo(tmp_path: Path, make: Callable[[Path], None]) -> None:
    fill_own(tmp_path / "x", "old")
    make(tmp_path / "x" / "mine")
    with pytest.raises(InputError, match="holds mine"):
        fill_own(tmp_path / "x", "new")


def test_what_a_user_adds_while_the_new_one_is_made_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "x"
    fill_own(target, "old")
    for number in (1, 2):
        fill_own(target, f"new {number}", lambda: (target / "notes.txt").write_text("precious"))
        assert contents(target) == {MARKER: f"new {number}", "part/one": f"new {number}"}
        assert contents(tmp_path / f"x.kept-{number}")["notes.txt"] == "precious"
        assert f"x.kept-{number}" in caplog.text
    fill_own(target, "newest")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.kept-1", "x.kept-2"]


def test_a_folder_that_a_user_makes_meanwhile_is_set_aside(tmp_path: Path) -> None:
    def make() -> None:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "thesis.txt").write_text("precious")

    fill_own(tmp_path / "x", "new", make)
    assert contents(tmp_path / "x.kept-1") == {"thesis.txt": "precious"}
    assert contents(tmp_path / "x")[MARKER] == "new"


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


@pytest.mark.parametrize("there_before", [False, True])
def test_a_draft_published_between_opening_and_locking_is_not_the_next_writers(
    there_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there_before:
        fill(tmp_path / "x", "zero")
    _before_the_first_lock(monkeypatch, lambda: fill(tmp_path / "x", "one"))
    with write_directory(tmp_path / "x", may_replace=MARKER) as folder:
        assert (tmp_path / "x" / MARKER).read_text() == "one"
        assert list(folder.iterdir()) == []
        (folder / MARKER).write_text("two")
    assert (tmp_path / "x" / MARKER).read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_draft_removed_between_opening_and_locking_is_not_the_next_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        with pytest.raises(ZeroDivisionError), write_directory(tmp_path / "x", may_replace=MARKER):
            raise ZeroDivisionError

    _before_the_first_lock(monkeypatch, fail)
    fill(tmp_path / "x", "two")
    assert (tmp_path / "x" / MARKER).read_text() == "two"


def test_a_third_writer_who_began_meanwhile_keeps_its_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as third:

        def one_ends_and_another_begins() -> None:
            fill(tmp_path / "x", "one")
            draft = third.enter_context(write_directory(tmp_path / "x", may_replace=MARKER))
            (draft / MARKER).write_text("three")

        _before_the_first_lock(monkeypatch, one_ends_and_another_begins)
        with pytest.raises(InputError, match="Another process is writing"):
            fill(tmp_path / "x", "two")
    assert (tmp_path / "x" / MARKER).read_text() == "three"


def test_nobody_begins_in_the_old_version_while_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "x", "one")
    refused = []

    def remove(folder: Path) -> None:
        assert (folder / MARKER).read_text() == "one"
        with pytest.raises(InputError, match="Another process is writing") as error:
            fill(tmp_path / "x", "three")
        refused.append(error)
        real(folder)

    real = shutil.rmtree
    monkeypatch.setattr(atomic.shutil, "rmtree", remove)
    fill(tmp_path / "x", "two")
    assert len(refused) == 1
    assert (tmp_path / "x" / MARKER).read_text() == "two"


def test_of_many_writers_each_is_refused_or_writes_its_own(tmp_path: Path) -> None:
    refusals = []

    def write(writer: int) -> int:
        done = 0
        for number in range(600):
            text = f"{writer} {number}"
            try:
                with write_directory(tmp_path / "x", may_replace=MARKER) as folder:
                    for part in range(3):
                        (folder / f"part{part}").write_text(text)
                    assert {(folder / f"part{part}").read_text() for part in range(3)} == {text}
                    (folder / MARKER).write_text(text)
                done += 1
            except InputError as error:
                refusals.append(error.what)
        return done

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(write, range(3))) + len(refusals) == 1800
    assert set(refusals) <= {f"Another process is writing {tmp_path / 'x'}."}
    assert len({path.read_text() for path in (tmp_path / "x").iterdir()}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_draft_that_goes_while_it_is_looked_at_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mkdir(exist_ok=True) looks again when there is something, and fails when that has just been published or removed."""
    real, calls = Path.mkdir, []

    def mkdir(path: Path, *arguments: object, **more: object) -> None:
        calls.append(path)
        if path.name == ".x.partial" and calls.count(path) == 1:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        real(path, *arguments, **more)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    fill(tmp_path / "x", "one")
    assert (tmp_path / "x" / MARKER).read_text() == "one"


def test_what_is_no_folder_at_the_drafts_name_is_an_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".x.partial").write_text("a note")
    with pytest.raises(InputError, match="cannot be made"):
        fill(tmp_path / "x", "one")
    assert (tmp_path / ".x.partial").read_text() == "a note"


def _before_the_first_lock(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Acts between a writer's opening of its draft and its locking of it."""
    real, calls = fcntl.flock, []

    def flock(handle: int, how: int) -> None:
        calls.append(handle)
        if len(calls) == 1:
            act()
        real(handle, how)

    monkeypatch.setattr(atomic.fcntl, "flock", flock)


def test_a_link_to_another_disk_stays_one(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "x").symlink_to("large/x")
    for text in ("one", "two"):
        fill(tmp_path / "x", text)
        assert (tmp_path / "x").is_symlink()
        assert (tmp_path / "large" / "x" / MARKER).read_text() == text


def test_a_file_in_the_way_of_an_output_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="remove what is in its way"):
        fill(tmp_path / "file" / "x", "new")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="remove what is in its way"):
        fill(tmp_path / "loop" / "x", "new")
    with pytest.raises(InputError, match="too long a name"):
        fill(tmp_path / ("x" * 256), "new")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    fill(tmp_path / ("x" * 255), "new")
    write_file(tmp_path / ("y" * 255), "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x" * 255, "y" * 255]


def test_a_full_disk_is_an_error_that_says_how_much_was_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000))

    def fill_up() -> None:
        with write_directory(tmp_path / "x", may_replace=MARKER):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match=r"not enough room .*\n.*more than the 3\.0 MB that were free"):
        fill_up()
    assert list(tmp_path.iterdir()) == []


def test_of_a_copy_the_disk_is_named_that_it_goes_to(tmp_path: Path) -> None:
    for folder in ("from", "to"):
        (tmp_path / folder).mkdir()

    def copy() -> None:
        with explain_full_disk(tmp_path):
            raise OSError(errno.ENOSPC, "full", str(tmp_path / "from/x"), None, str(tmp_path / "to/x"))  # as shutil does

    with pytest.raises(InputError, match=f"not enough room in {tmp_path}/to:"):
        copy()


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
