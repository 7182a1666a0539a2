"""Reading values with several threads, and the checksum of what was read."""

from __future__ import annotations

import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.checkpoints import checksum


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_checksum_of_two_runs_is_that_of_both(first: bytes, second: bytes) -> None:
    assert checksum.combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_it_is_so_for_runs_of_gigabytes() -> None:
    zeros, size = zlib.crc32(bytes(1 << 20)), 1 << 20
    while size < 1 << 33:
        zeros, size = checksum.combine(zeros, zeros, size), 2 * size
    # x^(2^35) by another way: appending a zero byte 2^33 times is a matrix of 32 bits, squared 33 times.
    assert zeros == _crc_of_zeros(33)


def _crc_of_zeros(doublings: int) -> int:
    matrix = [zlib.crc32(b"\0", 1 << bit) ^ zlib.crc32(b"\0") for bit in range(32)]  # linear part of one zero byte

    def apply(matrix: list[int], value: int) -> int:
        result = 0
        for bit in range(32):
            result ^= matrix[bit] if value >> bit & 1 else 0
        return result

    for _ in range(doublings):
        matrix = [apply(matrix, column) for column in matrix]
    return apply(matrix, 0xFFFFFFFF) ^ 0xFFFFFFFF


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16, ">f4"])
@pytest.mark.parametrize("wanted", [np.float16, np.float32])
@pytest.mark.parametrize("count", [1, 7, 1000, 4097])
def test_values_are_read_and_cast_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype, wanted, count: int) -> None:
    monkeypatch.setattr(checksum, "_PIECE", 4096)
    monkeypatch.setattr(checksum, "_CHUNK", 512)
    values = np.random.default_rng(0).normal(size=count).astype(dtype)
    (tmp_path / "x").write_bytes(b"odd" + values.tobytes() + b"rest")
    read = np.empty((count, 1), wanted)
    assert checksum.read_values(tmp_path / "x", 3, np.dtype(dtype), read) == zlib.crc32(values.tobytes())
    np.testing.assert_array_equal(read[:, 0], values.astype(wanted))
    assert checksum.crc32(values.view(np.uint8)) == zlib.crc32(values.tobytes())


def test_nothing_has_the_checksum_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    assert checksum.read_values(tmp_path / "x", 0, np.dtype(np.float32), np.empty((0, 3), np.float32)) == zlib.crc32(b"")


@pytest.mark.parametrize("length", [0, 10, 39])
def test_a_file_that_became_shorter_is_noticed(tmp_path: Path, length: int) -> None:
    (tmp_path / "x").write_bytes(bytes(length))
    with pytest.raises(EOFError):
        checksum.read_values(tmp_path / "x", 0, np.dtype(np.float32), np.empty(10, np.float32))
