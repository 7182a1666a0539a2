"""Rows on the disk: what was written is read again or missing, in no more space than was given."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.data.row_cache import RowCache, Slot
from paligemma.errors import InputError
from paligemma.storage.disk_space import parse_bytes

PAYLOADS = [bytes([number]) * (50 + 7 * number) for number in range(10)]
SIZES = np.array([len(one) for one in PAYLOADS])
CHECKSUMS = np.array([google_crc32c.value(one) for one in PAYLOADS])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path))
    return tmp_path / "streams"


def open_cache(most: int = 10**6, of: str = "one") -> RowCache:
    gc.collect()
    return RowCache(Slot(of), SIZES, CHECKSUMS, most)


@given(st.lists(st.integers(0, 9)), st.integers(0, 900), st.integers(0, 900))
def test_rows_are_there_or_missing_within_the_space(
    tmp_path_factory: pytest.TempPathFactory, written: list[int], most: int, later: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("PALIGEMMA_CACHE", str(folder))
        cache, expected, used = open_cache(most), set(), 0
        for row in written:
            if row not in expected and used + SIZES[row] <= most:
                expected.add(row)
                used += SIZES[row]
            cache.write(row, PAYLOADS[row])
        for row in range(10):
            assert cache.read(row) == (PAYLOADS[row] if row in expected else None)
        assert cache.bytes == used == (folder / "streams/0/rows").stat().st_size
        del cache
        again = open_cache(later)
        for row in range(10):
            assert again.read(row) in ((PAYLOADS[row], None) if row in expected else (None,))
        assert again.bytes <= later
        if later >= most:
            assert {row for row in range(10) if row in again} == expected


def test_what_is_damaged_on_the_disk_is_missing_and_written_again(root: Path) -> None:
    cache = open_cache()
    for row in (3, 4):
        cache.write(row, PAYLOADS[row])
    with (root / "0/rows").open("r+b") as file:
        file.write(b"?")
    assert (cache.read(3), cache.read(4)) == (None, PAYLOADS[4])
    assert 3 not in cache
    cache.write(3, PAYLOADS[3])
    assert cache.read(3) == PAYLOADS[3]


@pytest.mark.parametrize("damage", ["rows shorter", "places shorter", "places longer", "places wild"])
def test_files_that_do_not_belong_together_give_no_wrong_row(root: Path, damage: str) -> None:
    cache = open_cache()
    for row in range(10):
        cache.write(row, PAYLOADS[row])
    del cache
    gc.collect()
    rows, places = root / "0/rows", root / "0/places"
    if damage == "rows shorter":
        os.truncate(rows, 200)
    elif damage == "places wild":
        places.write_bytes(np.array([-5, 2**62, 1, 7, 0, 10**9, -(2**63), 3, 4, 5], np.int64).tobytes())
    else:
        os.truncate(places, 24 if damage == "places shorter" else 4000)
    again = open_cache()
    assert all(again.read(row) in (PAYLOADS[row], None) for row in range(10))
    for row in range(10):
        again.write(row, PAYLOADS[row])
    assert [again.read(row) for row in range(10)] == PAYLOADS


def test_a_full_disk_ends_keeping_and_nothing_else(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache()
    cache.write(1, PAYLOADS[1])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    cache.write(2, PAYLOADS[2])
    monkeypatch.undo()
    cache.write(3, PAYLOADS[3])
    assert [cache.read(row) for row in (1, 2, 3)] == [PAYLOADS[1], None, None]


def test_processes_at_one_time_have_folders_of_their_own_and_leave_no_others(root: Path) -> None:
    first, second = Slot("one"), Slot("one")
    assert (first.folder.name, second.folder.name) == ("0", "1")
    code = "import sys; from paligemma.data.row_cache import Slot; print(Slot(sys.argv[1]).folder.name)"
    where = subprocess.run([sys.executable, "-c", code, "one"], capture_output=True, text=True, check=True)
    assert where.stdout == "2\n"
    (second.folder / "rows").write_bytes(b"x")
    del second
    gc.collect()
    assert Slot("one").folder.name == "1"  # which holds what it asks for
    gc.collect()
    other = Slot("other")
    assert other.folder.name in ("1", "2")
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["0", other.folder.name]
    assert list(other.folder.iterdir()) == [other.folder / "of"]
    assert first.folder.is_dir()


def test_a_file_system_without_locks_is_an_error_and_no_search_without_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(OSError, match="No locks available"):
        Slot("one")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GB", 10**9),
        ("1.5 TB", 1_500_000_000_000),
        ("512MiB", 2**29),
        ("64kb", 64_000),
        ("7", 7),
        (" 2 gib ", 2**31),
        ("0", 0),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_bytes(text, "--disk-budget") == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 G B", "1XB", "1e9", "nan", "9" * 40, "１GB", "1GB\n2"])
def test_what_is_no_size_is_refused_in_words(text: str) -> None:
    with pytest.raises(InputError, match=r"is no number of bytes(.|\n)*--disk-budget(.|\n)*1GB"):
        parse_bytes(text, "--disk-budget")
