"""Pointers on the disk and in a real fake-gcs-server: whoever read an older state does not move them."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ONE_DEVICE, REPOSITORY
from paligemma import retry
from paligemma.errors import DamagedError, PaliGemmaError
from paligemma.registry.pointer import Pointer, move_pointer, read_pointer
from paligemma.storage import failures, files
from servers.fault_proxy import FaultProxy, LoseResponse, random_schedule
from servers.gcs import GcsServer

BUCKET = "bucket-of-pointers"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
MOVES = st.lists(st.tuples(st.integers(0, 2), st.booleans(), JSON), max_size=12)


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with GcsServer() as running:
        running.create_bucket(BUCKET)
        yield running


@pytest.fixture(autouse=True)
def _quick(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.002, maximum=0.02, timeout=1.0))


@pytest.fixture(scope="module", params=["disk", "bucket"])
def new_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Gives places where nothing is yet."""
    numbers, folder = itertools.count(), tmp_path_factory.mktemp("pointers")
    start = str(folder) if request.param == "disk" else f"gs://{BUCKET}"
    return lambda: f"{start}/{next(numbers)}/latest.json"


@settings(max_examples=40)
@given(MOVES)
def test_a_pointer_moves_for_whoever_read_its_last_state(new_place: Callable[[], str], moves: list) -> None:
    """Three clients read or move, in any order, and are told what a single memory cell would tell them."""
    place, current, version = new_place(), None, 0
    seen = {client: (read_pointer(place), 0) for client in range(3)}
    for client, reads, value in moves:
        pointer, seen_version = seen[client]
        if reads:
            assert read_pointer(place).value == current
            seen[client] = read_pointer(place), version
        elif seen_version == version:
            moved = move_pointer(place, value, pointer.generation)
            current, version = value, version + 1
            seen[client] = moved, version
            assert read_pointer(place) == moved
        else:
            with pytest.raises(failures.ChangedError, match="written by somebody else"):
                move_pointer(place, value, pointer.generation)
            assert read_pointer(place).value == current


def test_the_same_value_again_is_a_move(new_place: Callable[[], str]) -> None:
    place = new_place()
    first = move_pointer(place, {"version": "a"}, 0)
    second = move_pointer(place, {"version": "b"}, first.generation)
    third = move_pointer(place, {"version": "a"}, second.generation)
    assert len({0, first.generation, second.generation, third.generation}) == 4
    with pytest.raises(failures.ChangedError):
        move_pointer(place, {"version": "c"}, first.generation)


@pytest.mark.parametrize("contents", [b"", b"latest", b"[]", b'{"move": "1"}', b"\xff"])
def test_what_is_no_pointer_is_damaged(new_place: Callable[[], str], contents: bytes) -> None:
    place = new_place()
    files.write_file(place, contents)
    with pytest.raises(DamagedError, match=r"^The pointer (cannot be read|has no value)") as caught:
        read_pointer(place)
    assert place in str(caught.value)


RACER = """
import sys
from paligemma.registry.pointer import move_pointer, read_pointer
from paligemma.storage.failures import ChangedError
place, name = sys.argv[1:]
for number, _ in enumerate(sys.stdin):
    pointer = read_pointer(place)
    print("read", flush=True)
    sys.stdin.readline()
    try:
        move_pointer(place, f"{name}{number}", pointer.generation)
        print("won", flush=True)
    except ChangedError:
        print("lost", flush=True)
"""


def test_of_two_racing_processes_exactly_one_wins_each_round(new_place: Callable[[], str]) -> None:
    place, pipe = new_place(), subprocess.PIPE
    environment = {**ONE_DEVICE, "STORAGE_EMULATOR_HOST": os.environ["STORAGE_EMULATOR_HOST"]}

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, "-c", RACER, place, name]
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdin=pipe, stdout=pipe, text=True)

    with start("a") as one, start("b") as other:
        racers = {"a": one, "b": other}
        winners = []
        try:
            for number in range(60):
                for expected in ({"read"}, {"won", "lost"}):
                    for racer in random.Random(number).sample(list(racers.values()), 2):
                        racer.stdin.write("go\n")
                        racer.stdin.flush()
                    answers = {name: racer.stdout.readline().strip() for name, racer in racers.items()}
                    assert set(answers.values()) == expected
                (winner,) = (name for name, answer in answers.items() if answer == "won")
                assert read_pointer(place).value == f"{winner}{number}"
                winners.append(winner)
        finally:
            for racer in racers.values():
                racer.kill()
    assert set(winners) == {"a", "b"}  # or it was no race


def test_a_move_whose_answer_is_lost_is_made_once(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"gs://{BUCKET}/lost/latest.json"
    first = move_pointer(place, 1, 0)
    lost: list[int] = []

    def lose_first(request):
        if request.method == "POST" and not lost:
            lost.append(request.number)
            return LoseResponse()
        return None

    with FaultProxy(server.url, lose_first) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        moved = move_pointer(place, 2, first.generation)
    assert lost
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    assert read_pointer(place) == moved == Pointer(2, moved.generation)


@pytest.mark.parametrize("seed", range(25))
def test_under_faults_a_pointer_is_whole_and_what_was_said_is_true(
    server: GcsServer, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    place = f"gs://{BUCKET}/faults{seed}/latest.json"
    pointer, possible, message = move_pointer(place, 0, 0), {0}, place
    with FaultProxy(server.url, random_schedule(seed)) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        for value in range(1, 8):
            try:
                pointer = move_pointer(place, value, pointer.generation)
                possible = {value}
            except PaliGemmaError as error:
                possible |= {value}  # it may have been made, and its answer lost
                message = str(error)
                break
    assert place in message
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    assert read_pointer(place).value in possible


MOVERS = """
import os, sys
from paligemma.registry.pointer import move_pointer, read_pointer
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        while True:
            pointer = read_pointer(sys.argv[1])
            move_pointer(sys.argv[1], (pointer.value or 0) + 1, pointer.generation)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def test_a_killed_mover_leaves_a_whole_pointer_and_blocks_nobody(tmp_path: Path) -> None:
    """SIGKILL at 50 random moments, and more until it moved 50 times; its successor goes on from where it was."""
    chance, last, kills, place, pipe = random.Random(0), 0, 0, tmp_path / "latest.json", subprocess.PIPE
    command = [sys.executable, "-c", MOVERS, str(place)]
    with subprocess.Popen(command, cwd=REPOSITORY, env=ONE_DEVICE, stdin=pipe, stdout=pipe, text=True) as parent:
        while kills < 50 or last <= 50:
            kills += 1
            parent.stdin.write("go\n")
            parent.stdin.flush()
            child = int(parent.stdout.readline())
            time.sleep(chance.uniform(0.0, 0.03))
            os.kill(child, signal.SIGKILL)
            assert parent.stdout.readline() == "ended\n"
            value = read_pointer(place).value or 0
            assert value >= last
            last = value
        parent.stdin.close()
