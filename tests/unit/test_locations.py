"""A folder on a disk and a prefix in a bucket give the same answers, so that nobody needs to ask which of them it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from paligemma.errors import InputError
from paligemma.storage import cache, disk_space, files, folders
from paligemma.storage.disk_space import check_space, room_for, same_disk
from paligemma.storage.failures import ChangedError
from paligemma.storage.location import GcsLocation, Location, absolute_uri, follow, parse_location, relative_way
from servers.gcs import GcsServer


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with GcsServer() as running:
        running.create_bucket("bucket-of-locations")
        yield running


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, server: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Location:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    return tmp_path if request.param == "disk" else GcsLocation("bucket-of-locations", request.node.name)


def test_files_and_folders_are_told_apart(place: Location) -> None:
    files.write_file(place / "a/b/c.txt", b"x")
    files.write_file(place / "d.txt", b"y")
    kinds = {name: (files.is_file(place / name), folders.is_folder(place / name)) for name in ("a", "a/b/c.txt", "d.txt", "z")}
    assert kinds == {"a": (False, True), "a/b/c.txt": (True, False), "d.txt": (True, False), "z": (False, False)}
    assert folders.subfolders(place) == {"a"}
    assert folders.subfolders(place / "z") == set()
    assert folders.first_link(place, "a/b") is None


def test_a_parent_is_found_and_a_way_leads_back(place: Location) -> None:
    assert (place / "a/b").parent == place / "a"
    assert parse_location(absolute_uri(place / "a")) == (place / "a").absolute() == place / "a"
    for end in ("a", "b/c", "../other"):
        target = follow(place, end)
        assert relative_way(place, target) == end
        assert follow(place, relative_way(place, target) or "") == target


def test_there_is_no_way_from_a_disk_to_a_bucket_nor_between_buckets() -> None:
    one, other, disk = GcsLocation("one", "x"), GcsLocation("other", "x"), Path("/x")
    assert [relative_way(*ends) for ends in ((one, other), (one, disk), (disk, one))] == [None] * 3


def test_of_two_who_read_the_same_generation_one_writes(place: Location) -> None:
    pointer = place / "latest.json"
    assert files.read_generation(pointer) == (None, 0)
    first = files.write_generation(pointer, b"one", 0)
    assert files.read_generation(pointer) == (b"one", first)
    second = files.write_generation(pointer, b"two", first)
    for stale in (0, first):
        with pytest.raises(ChangedError, match=r"latest\.json was written by somebody else"):
            files.write_generation(pointer, b"three", stale)
    assert files.read_generation(pointer) == (b"two", second)


def test_an_empty_folder_goes_and_one_with_a_file_stays(place: Location) -> None:
    files.write_file(place / "full/x", b"x")
    if isinstance(place, Path):
        (place / "empty").mkdir()
    for name in ("full", "empty", "missing"):
        folders.remove_empty(place / name)
    assert [folders.is_folder(place / name) for name in ("full", "empty", "missing")] == [True, False, False]


def test_only_a_disk_can_be_full(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "MARGIN", 1 << 60)
    assert same_disk(place, place) == isinstance(place, Path)
    if isinstance(place, Path):
        with pytest.raises(InputError, match="not enough room"):
            check_space(place, 1)
        assert "free, found" in (room_for(1, place) or "")
    else:
        check_space(place, 1)
        assert room_for(1, place) is None


def test_links_count_on_a_disk(tmp_path: Path) -> None:
    (tmp_path / "real/below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert folders.subfolders(tmp_path) == {"real"}
    assert folders.is_folder(tmp_path / "link")
    assert folders.first_link(tmp_path, "link/below") == tmp_path / "link"
    assert folders.first_link(tmp_path, "real/below") is None


def test_a_folder_that_took_anothers_path_is_another(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    before = folders.identity(tmp_path / "a")
    os.utime(tmp_path / "a", (1, 1))
    folders.touch(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mtime > 1
    assert folders.identity(tmp_path / "a") == before
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").mkdir()
    assert folders.identity(tmp_path / "a") != before


def test_unfinished_work_is_beside_its_place_or_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
    assert cache.work_folder(tmp_path / "records", "prepare") == tmp_path / ".records.work"
    one, other = (cache.work_folder(GcsLocation("b", name), "prepare") for name in ("x", "y"))
    assert one.parent == other.parent == tmp_path / "prepare"
    assert one != other
