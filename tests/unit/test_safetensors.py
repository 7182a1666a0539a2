"""Safetensors files: read in place, and refused when they lie."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.checkpoints.safetensors_files import INDEX_FILE, Outgoing, read_safetensors, weight_files, write_safetensors
from paligemma.errors import DamagedError, InputError

ARRAYS = {
    "a": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b": np.array([1.5, -2.0], np.float16),
    "c": np.array([[3e38]], ml_dtypes.bfloat16),
}


def write(folder: Path, arrays: dict[str, np.ndarray] = ARRAYS, **options) -> None:
    outgoing = (Outgoing(name, values.shape, values.dtype, [values[:1], values[1:]]) for name, values in arrays.items())
    write_safetensors(folder, outgoing, **options)


def write_raw(path: Path, header: object, data: bytes = b"\0" * 16) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(*offsets: int, shape: object = (4,), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_round_trip_slices_and_the_librarys_own_reader(tmp_path: Path) -> None:
    write(tmp_path)
    read = read_safetensors(tmp_path / "model.safetensors")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in read.items()} == {
        name: (values.shape, values.dtype) for name, values in ARRAYS.items()
    }
    np.testing.assert_array_equal(read["a"][1, :, 2:], ARRAYS["a"][1, :, 2:])
    assert isinstance(read["a"].values(), np.memmap)
    theirs = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(theirs[name], values)
        np.testing.assert_array_equal(read[name][...], values)


def test_shards_are_closed_before_they_are_too_large(tmp_path: Path) -> None:
    write(tmp_path, shard_bytes=97)
    assert [path.name for path in weight_files(tmp_path / INDEX_FILE)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert json.loads((tmp_path / INDEX_FILE).read_text())["metadata"] == {"total_size": 102}
    read = read_safetensors(tmp_path / INDEX_FILE)
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(read[name][...], values)


def test_empty_tensors_are_read(tmp_path: Path) -> None:
    write(tmp_path, {"a": np.zeros((0, 4), np.float32)})
    assert read_safetensors(tmp_path / "model.safetensors")["a"][...].shape == (0, 4)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "a": {}}',
        {"a": []},
        {"a": entry(0, 16, dtype="F99")},
        {"a": entry(0, 16, dtype=["F32"])},
        {"a": entry(0, 16, shape=(-4,))},
        {"a": entry(0, 16, shape=(4.0,))},
        {"a": entry(0, 16, shape=(True, 4))},
        {"a": entry(0, 16, shape=(4_000_000_000, 1_000_000))},
        {"a": entry(0, 16, shape=None)},
        {"a": entry(0, 12, shape=(3,))},
        {"a": entry(0, 20, shape=(5,))},
        {"a": entry(4, 20)},
        {"a": entry(-16, 0)},
        {"a": entry(16, 0)},
        {"a": entry(0)},
        {"a": entry(0, 16), "b": entry(0, 16)},
        {"a": entry(0, 8, shape=(2,)), "b": entry(4, 16, shape=(3,))},
        {"a": entry(0, 4, shape=(1,)), "b": entry(8, 16, shape=(2,))},
    ],
    ids=str,
)
def test_a_header_that_lies_is_damaged(tmp_path: Path, header: object) -> None:
    with pytest.raises(DamagedError, match="cannot be read"):
        read_safetensors(write_raw(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize("length", [2**64 - 1, 2**40, 100_000_001, 17])
def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path, length: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + b" " * 16)
    with pytest.raises(DamagedError, match="longer than the file"):
        read_safetensors(tmp_path / "x.safetensors")


@settings(max_examples=50)
@given(st.floats(0, 0.999))
def test_a_truncated_file_is_damaged(tmp_path_factory, share: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    write(folder)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DamagedError):
        read_safetensors(path)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_damaged_or_read_or_named(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(DamagedError, InputError):
        read_safetensors(path)


@pytest.mark.parametrize("change", ["no shard", "moved", "unnamed", "elsewhere", "pickle", "text"])
def test_an_index_that_does_not_agree_with_its_files_is_damaged(tmp_path: Path, change: str) -> None:
    write(tmp_path, shard_bytes=97)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    first, second = sorted(set(index["weight_map"].values()))
    if change == "no shard":
        (tmp_path / second).unlink()
    elif change == "moved":
        index["weight_map"]["a"] = second
    elif change == "unnamed":
        del index["weight_map"]["b"]
    elif change == "elsewhere":
        index["weight_map"]["a"] = f"../{first}"
    elif change == "pickle":
        index["weight_map"]["a"] = "pytorch_model.bin"
    (tmp_path / INDEX_FILE).write_text("text" if change == "text" else json.dumps(index))
    with pytest.raises(DamagedError):
        read_safetensors(tmp_path / INDEX_FILE)


def test_no_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint file"):
        read_safetensors(tmp_path / "none.safetensors")
