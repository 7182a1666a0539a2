"""The storage layer against a real fake-gcs-server process, directly and through a proxy that injects faults."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import REPOSITORY
from paligemma import retry
from paligemma.errors import DamagedError, InputError, PaliGemmaError
from paligemma.storage import cache, failures, folders, gcs, versions
from paligemma.storage.failures import ChangedError
from paligemma.storage.location import GcsLocation, parse_location
from servers.fault_proxy import Corrupt, FaultProxy, Status, WrongChecksum, random_schedule
from servers.gcs import GcsServer

BUCKET = "bucket-of-tests"
MANIFEST = "manifest"


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with GcsServer() as running:
        running.create_bucket(BUCKET)
        yield running


@pytest.fixture(autouse=True)
def _quick_and_small(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.002, maximum=0.02, timeout=1.0))
    monkeypatch.setattr(gcs, "RANGE_BYTES", 256 * 1024)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> GcsLocation:
    """A prefix of the test's own, the same in every run: random schedules are drawn from the paths of requests too."""
    return GcsLocation(BUCKET, hashlib.sha256(request.node.name.encode()).hexdigest()[:16])


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 1_000_000])
def test_a_file_goes_up_and_comes_back(place: GcsLocation, tmp_path: Path, size: int) -> None:
    (tmp_path / "up").write_bytes(noise(size))
    stored = gcs.upload(tmp_path / "up", place / "a/b c+ü")
    assert (stored.size, stored.crc32c) == (size, gcs.crc32c_of(noise(size)))
    arrived: list[int] = []
    gcs.download(place / "a/b c+ü", tmp_path / "down", arrived.append)
    assert (tmp_path / "down").read_bytes() == noise(size)
    assert sum(arrived) == size
    assert [found.location.name for found in gcs.list_objects(place)] == [f"{place.name}/a/b c+ü"]
    assert {path.name for path in tmp_path.iterdir()} == {"up", "down"}


def test_a_conditional_write_sees_other_writers(place: GcsLocation) -> None:
    first = gcs.write_bytes(place, b"one", if_generation=0)
    with pytest.raises(failures.ChangedError):
        gcs.write_bytes(place, b"two", if_generation=0)
    gcs.write_bytes(place, b"two", if_generation=first.generation)
    assert gcs.read_bytes(place)[0] == b"two"


def test_a_killed_downloads_ranges_are_kept(server: GcsServer, place: GcsLocation, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "up").write_bytes(noise(2_000_000))
    gcs.upload(tmp_path / "up", place)
    monkeypatch.setattr(gcs, "STREAMS", 1)
    ranges: list[int] = []

    def die_after_three(count: int) -> None:
        ranges.append(count)
        if len(ranges) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gcs.download(place, tmp_path / "down", die_after_three)
    assert not (tmp_path / "down").exists()
    with FaultProxy(server.url, lambda _: None) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        gcs.download(place, tmp_path / "down")
        fetched = [request for request, _, _ in proxy.log if request.range]
    assert (tmp_path / "down").read_bytes() == noise(2_000_000)
    assert 0 < len(fetched) <= 5  # of eight


@pytest.mark.parametrize("seed", range(200))
def test_every_fault_schedule_ends_in_a_correct_object_or_a_clear_error(
    server: GcsServer, place: GcsLocation, tmp_path: Path, monkeypatch, seed: int
) -> None:
    old, new = noise(300_000, seed), noise(700_000, seed + 1000)
    gcs.write_bytes(place, old)
    (tmp_path / "new").write_bytes(new)
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.002, maximum=0.02, timeout=0.3))  # many faults never end
    outcomes = []
    with FaultProxy(server.url, random_schedule(seed)) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        for action in (
            lambda: gcs.upload(tmp_path / "new", place),
            lambda: gcs.download(place, tmp_path / "down"),
            lambda: gcs.read_bytes(place),
        ):
            try:
                action()
                outcomes.append(("done", str(place)))
            except PaliGemmaError as error:
                outcomes.append((type(error).__name__, str(error)))
    assert all(str(place) in words for _, words in outcomes)
    outcomes = [kind for kind, _ in outcomes]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    stored = gcs.read_bytes(place)[0]
    assert stored in (old, new)  # never a part
    if outcomes[0] == "done":
        assert stored == new
    if outcomes[1] == "done":
        assert (tmp_path / "down").read_bytes() == stored
    else:
        assert not (tmp_path / "down").exists()
    assert set(outcomes) <= {"done", "StorageUnavailableError", "DamagedError"}


@pytest.mark.parametrize("seed", [0, 2, 3, 4, 5, 6])
def test_a_resumable_upload_survives_faults(
    server: GcsServer, place: GcsLocation, tmp_path: Path, monkeypatch, seed: int
) -> None:
    contents = noise(9 * 1024 * 1024, seed)  # beyond 8 MiB the client opens a resumable session
    monkeypatch.setattr(gcs, "RANGE_BYTES", 1024 * 1024)
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.002, maximum=0.02, timeout=20.0))
    (tmp_path / "x").write_bytes(contents)
    with FaultProxy(server.url, random_schedule(seed, share=0.4)) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        gcs.upload(tmp_path / "x", place, if_generation=0)
        chunks = [request for request, _, _ in proxy.log if request.method == "PUT"]
        assert len(chunks) >= 9
        assert any(fault for _, fault, _ in proxy.log)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    assert gcs.read_bytes(place)[0] == contents


def test_a_server_that_asks_for_patience_is_given_it(server: GcsServer, place: GcsLocation, monkeypatch) -> None:
    gcs.write_bytes(place, b"x")
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.001, maximum=2.0, timeout=5.0))
    with FaultProxy(server.url, lambda request: Status(429, retry_after=1) if request.number == 0 else None) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        started = time.monotonic()
        assert gcs.stat(place) is not None
        assert time.monotonic() - started >= 1.0


def test_a_service_that_stays_away_is_named(server: GcsServer, place: GcsLocation, monkeypatch) -> None:
    with FaultProxy(server.url, lambda _: Status(503)) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        with pytest.raises(failures.StorageUnavailableError) as caught:
            gcs.read_bytes(place)
    assert str(place) in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("fault", [Corrupt(at_byte=5), WrongChecksum()])
def test_bytes_that_never_match_are_damaged(server: GcsServer, place: GcsLocation, tmp_path: Path, monkeypatch, fault) -> None:
    gcs.write_bytes(place, noise(1000))
    media = isinstance(fault, Corrupt)
    with FaultProxy(server.url, lambda request: fault if media == request.path.startswith("/download") else None) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        with pytest.raises(DamagedError):
            gcs.read_bytes(place)
        with pytest.raises(DamagedError):
            gcs.download(place, tmp_path / "down")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "message"), [(403, "storage.objects.get"), (401, "no Google credentials")])
def test_refusals_say_what_is_missing(server: GcsServer, place: GcsLocation, monkeypatch, code: int, message: str) -> None:
    with FaultProxy(server.url, lambda _: Status(code)) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        with pytest.raises(InputError, match=message) as caught:
            gcs.read_bytes(place)
    assert BUCKET in str(caught.value)


def test_what_is_not_there_is_named(place: GcsLocation, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no object"):
        gcs.read_bytes(place)
    with pytest.raises(InputError, match="no bucket no-such-bucket"):
        gcs.write_bytes(GcsLocation("no-such-bucket", "x"), b"")
    gcs.delete(place)


def test_only_the_generation_that_was_looked_at_is_deleted(place: GcsLocation) -> None:
    first = gcs.write_bytes(place, b"one")
    second = gcs.write_bytes(place, b"another's")
    with pytest.raises(ChangedError, match="was not deleted"):
        gcs.delete(place, first.generation)
    assert gcs.read_bytes(place)[0] == b"another's"
    gcs.delete(place, second.generation)
    assert gcs.stat(place) is None
    gcs.delete(place, second.generation)  # as when the answer to the first request got lost


def test_of_a_folder_nothing_is_removed_that_was_written_after_it_was_listed(
    place: GcsLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "a", "b"):
        gcs.write_bytes(place / name, b"ours")
    real = gcs.list_objects

    def then_somebody_writes(prefix: GcsLocation) -> list[gcs.Object]:
        found = list(real(prefix))
        gcs.write_bytes(place / "a", b"theirs")
        return found

    monkeypatch.setattr(gcs, "list_objects", then_somebody_writes)
    with pytest.raises(ChangedError, match="was not deleted"):
        folders.remove_folder(place, first="first")
    assert [(found.location, gcs.read_bytes(found.location)[0]) for found in real(place)] == [(place / "a", b"theirs")]


def test_an_older_version_that_somebody_wrote_into_meanwhile_is_kept_and_the_new_one_is_published(
    place: GcsLocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        versions.publish(write_version(tmp_path / f"w{number}", number), place, MANIFEST, version_of)
    real = gcs.list_objects

    def then_somebody_writes(prefix: GcsLocation) -> list[gcs.Object]:
        found = list(real(prefix))
        gcs.write_bytes(place / "version-v1/part0", b"theirs")
        return found

    monkeypatch.setattr(gcs, "list_objects", then_somebody_writes)
    versions.publish(write_version(tmp_path / "w3", 3), place, MANIFEST, version_of)
    assert gcs.read_bytes(place / "version-v1/part0")[0] == b"theirs"
    assert "version-v1/part0 was not deleted" in caplog.text
    assert len([found for found in real(place) if "/version-v1/" in found.location.name]) == 1


def test_a_cached_copy_is_used_and_a_damaged_one_is_fetched_again(
    server: GcsServer, place: GcsLocation, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
    gcs.write_bytes(place / "f.bin", noise(500_000))
    path = cache.local_copy(place / "f.bin")
    with FaultProxy(server.url, lambda _: None) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        assert cache.local_copy(place / "f.bin") == path
        assert not [request for request, _, _ in proxy.log if request.path.startswith("/download")]
        path.write_bytes(b"x" + noise(500_000)[1:])
        assert cache.local_copy(place / "f.bin").read_bytes() == noise(500_000)


def test_two_that_want_the_same_do_not_collide(place: GcsLocation, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
    gcs.write_bytes(place / "f.bin", noise(900_000))
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(cache.local_copy(place / "f.bin").read_bytes())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [noise(900_000)] * 4


def test_locations() -> None:
    assert parse_location("gs://b/x/y/") == GcsLocation("b", "x/y")
    assert str(GcsLocation("b", "x") / "y") == "gs://b/x/y"
    assert parse_location("a/b") == Path("a/b")
    for wrong in ("gs://", "gs:///x", "s3://b/x"):
        with pytest.raises(InputError):
            parse_location(wrong)


def write_version(folder: Path, number: int) -> Path:
    """A folder whose manifest names its version and its four files, all holding the version's number."""
    folder.mkdir()
    for part in range(4):
        (folder / f"part{part}").write_text(str(number))
    (folder / MANIFEST).write_text(f"v{number} part0 part1 part2 part3")
    return folder


def version_of(data: bytes) -> tuple[str, list[str]]:
    version, *names = data.decode().split()
    return version, names


def read_version(place: GcsLocation, folder: Path) -> set[str]:
    folder.mkdir()
    versions.fetch(place, folder, MANIFEST, version_of)
    return {path.read_text() for path in folder.iterdir() if path.name != MANIFEST}


def test_versions_follow_each_other_and_all_but_the_last_two_are_deleted(place: GcsLocation, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        versions.publish(write_version(tmp_path / f"w{number}", number), place, MANIFEST, version_of)
        assert read_version(place, tmp_path / f"r{number}") == {str(number)}
    assert {found.location.name.split("/")[1] for found in gcs.list_objects(place)} == {MANIFEST, "version-v2", "version-v3"}


def test_what_is_not_ours_is_not_replaced(place: GcsLocation, tmp_path: Path) -> None:
    gcs.write_bytes(place / "thesis.txt", b"precious")
    with pytest.raises(InputError, match="not an artifact of this program"):
        versions.publish(write_version(tmp_path / "w", 1), place, MANIFEST, version_of)
    assert gcs.read_bytes(place / "thesis.txt")[0] == b"precious"


def test_a_missing_file_of_the_current_version_is_damage(place: GcsLocation, tmp_path: Path) -> None:
    versions.publish(write_version(tmp_path / "w", 1), place, MANIFEST, version_of)
    gcs.delete(place / "version-v1/part2")
    with pytest.raises(DamagedError, match="not whole"):
        read_version(place, tmp_path / "r")


PUBLISHERS = """
import os, sys
from pathlib import Path
sys.path[:0] = ["tests/unit", "tests"]
from test_gcs import MANIFEST, GcsLocation, version_of, versions, write_version
import google.cloud.storage  # imported once, for all the children
place, folder = GcsLocation(*sys.argv[1:3]), Path(sys.argv[3])
for line in sys.stdin:
    number = int(line)
    child = os.fork()
    if child == 0:
        while True:
            versions.publish(write_version(folder / str(number), number), place, MANIFEST, version_of)
            number += 1
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def test_readers_see_whole_versions_while_publishers_are_killed(place: GcsLocation, tmp_path: Path) -> None:
    """SIGKILL at 100 random moments, and more until 20 versions were seen, of publishers that publish version after version."""
    chance, kill, seconds = random.Random(0), 0, 0.15
    versions.publish(write_version(tmp_path / "first", 0), place, MANIFEST, version_of)
    seen: set[str] = set()
    command = [sys.executable, "-c", PUBLISHERS, BUCKET, place.name, str(tmp_path)]
    pipe = subprocess.PIPE
    parent = subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True, process_group=0)
    try:
        while kill < 100 or len(seen) <= 20:
            kill += 1
            parent.stdin.write(f"{1000 * kill}\n")
            parent.stdin.flush()
            child = int(parent.stdout.readline())
            time.sleep(chance.uniform(0.0, seconds))
            during = read_version(place, tmp_path / f"during{kill}")
            os.kill(child, signal.SIGKILL)
            assert parent.stdout.readline() == "ended\n"
            after = read_version(place, tmp_path / f"after{kill}")
            assert len(during) == len(after) == 1
            seconds *= 1 if (during | after) - seen else 1.05  # a slow machine publishes nothing in that time
            seen |= during | after
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()
