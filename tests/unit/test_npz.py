"""big_vision checkpoints: what is read, and what is refused."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.checkpoints.npz import Member, read_npz, write_npz
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.errors import DamagedError, InputError

ARRAYS = {"llm/a": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "img/b": np.array(1.5, np.float16)}


def npy(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, **options)
    return buffer.getvalue()


def test_round_trip_and_slices(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", ARRAYS)
    read = read_npz(tmp_path / "x.npz")
    assert read.keys() == ARRAYS.keys()
    np.testing.assert_array_equal(read["llm/a"][1, :, 2:], ARRAYS["llm/a"][1, :, 2:])
    assert read["img/b"][...] == 1.5
    with np.load(tmp_path / "x.npz") as file:  # numpy reads it too
        np.testing.assert_array_equal(file["llm/a"], ARRAYS["llm/a"])


def test_stored_members_are_memory_mapped(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", ARRAYS)
    values = read_npz(tmp_path / "x.npz")["llm/a"][...]
    while values.base is not None and not isinstance(values, np.memmap):
        values = values.base
    assert isinstance(values, np.memmap)


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_npz(tmp_path / name, ARRAYS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bfloat16_stored_as_void(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3e38], ml_dtypes.bfloat16)
    np.savez(tmp_path / "x.npz", a=values.view("V2"))
    read = read_npz(tmp_path / "x.npz")["a"]
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read[...], values)
    write_npz(tmp_path / "y.npz", {"a": values})
    np.testing.assert_array_equal(read_npz(tmp_path / "y.npz")["a"][1:], values[1:])


def test_params_prefix_deflated_members_and_fortran_order(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", **{"params/a": np.asfortranarray(ARRAYS["llm/a"])})
    np.testing.assert_array_equal(read_npz(tmp_path / "x.npz")["a"][0, 1], ARRAYS["llm/a"][0, 1])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("block", [1, 50, 10_000])
def test_deflated_members_are_streamed_into_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, block: int
) -> None:
    values = np.arange(5 * 3 * 4, dtype=np.float32).reshape(5, 3, 4)
    np.savez_compressed(tmp_path / "x.npz", a=np.asarray(values, order=order), b=np.float16(2), c=np.zeros((0, 3)))
    monkeypatch.setattr("paligemma.checkpoints.npz._PIECE", block)
    read = read_npz(tmp_path / "x.npz")
    for index in (..., 2, (slice(1, 4), 0), (slice(None), slice(1, 3), -1), slice(2, 2), (slice(4, None), ..., slice(0, 1))):
        np.testing.assert_array_equal(read["a"][index], values[index])
    assert read["b"][...] == 2
    assert read["c"][...].shape == (0, 3)


def test_a_part_of_a_large_deflated_member_needs_little_memory(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros((40, 1_000_000), np.float32))
    member = read_npz(tmp_path / "x.npz")["a"]
    tracemalloc.start()
    assert member[7, :10].tolist() == [0.0] * 10
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000 < member.shape[0] * member.shape[1] * 4


def test_a_zip_bomb_is_neither_inflated_nor_allocated(tmp_path: Path) -> None:
    """A terabyte by its header and by the zip directory, a few bytes in the file."""
    shape = (500_000_000_000,)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("llm/a.npy", header.getvalue() + bytes(1000))
        archive.filelist[0].file_size = len(header.getvalue()) + 2 * shape[0]
    tracemalloc.start()
    member = read_npz(tmp_path / "x.npz")["llm/a"]
    with pytest.raises(DamagedError):
        open_checkpoint(tmp_path / "x.npz")  # no such parameter: refused by its name and shape
    with pytest.raises(DamagedError):
        member[:10]  # there is not what its header declares
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert member.shape == shape
    assert peak < 200_000_000


def test_unstacked_layers_are_stacked_in_order(tmp_path: Path) -> None:
    layers = {f"img/Transformer/encoderblock_{n}/x": np.full(2, n, np.float32) for n in range(12)}
    np.savez(tmp_path / "x.npz", **layers)
    read = read_npz(tmp_path / "x.npz")["img/Transformer/encoderblock/x"]
    assert read.shape == (12, 2)
    assert read[:, 0].tolist() == list(range(12))


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{f"img/Transformer/encoderblock_{n}/x": np.zeros(2) for n in (0, 2)})
    with pytest.raises(DamagedError, match="Layers of the vision tower"):
        read_npz(tmp_path / "x.npz")


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", npy(np.array([Evil()], object), allow_pickle=True))
    with pytest.raises(DamagedError, match="pickle"):
        read_npz(tmp_path / "x.npz")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("shape", [b"(4000000000,)", b"(-1,)", b"(1, (", b"('a',)"])
def test_a_header_that_declares_more_than_there_is_allocates_nothing(tmp_path: Path, shape: bytes) -> None:
    honest = npy(np.zeros(4, np.float32))
    start = honest.index(b"(4,)")
    lie = honest[:start] + shape + honest[start + 4 :].replace(b" " * (len(shape) - 4), b"", 1)
    assert len(lie) == len(honest)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", lie)
    with pytest.raises(DamagedError):
        read_npz(tmp_path / "x.npz")


@settings(max_examples=60)
@given(st.floats(0, 0.999))
def test_a_truncated_file_is_damaged(tmp_path_factory, share: float) -> None:
    path = tmp_path_factory.mktemp("cut") / "x.npz"
    write_npz(path, ARRAYS)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DamagedError):
        read_npz(path)


def test_no_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint file"):
        read_npz(tmp_path / "none.npz")


def test_a_flipped_byte_of_a_deflated_member_is_damaged(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.random.default_rng(0).normal(size=500))
    member = read_npz(tmp_path / "x.npz")["a"]
    assert isinstance(member, Member)
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(DamagedError):
        member[...]
