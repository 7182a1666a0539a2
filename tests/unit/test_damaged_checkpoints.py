"""Checkpoints that are not what was written: found when they are loaded, and never more than an error with exit code 3."""

from __future__ import annotations

import io
import json
import random
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

import paligemma
from paligemma.artifacts.record import file_sha256
from paligemma.artifacts.store import produce
from paligemma.checkpoints.export import export
from paligemma.checkpoints.lazy import Stacked
from paligemma.checkpoints.npz import read_npz, write_npz
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.parameters import place
from paligemma.checkpoints.safetensors_files import INDEX_FILE, SINGLE_FILE, Outgoing, read_safetensors, write_safetensors
from paligemma.checkpoints.tuned import DESCRIPTION_FILE, WEIGHTS_FILE, Base, TunedDescription, write_tuned
from paligemma.errors import DamagedError
from paligemma.runtime.sharding import fsdp_sharding, make_mesh


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    """The embedded checkpoint in both formats, each with its record, and a tuned model of it."""
    folder = tmp_path_factory.mktemp("artifacts")
    export("embedded:tiny", folder / "big_vision", "big_vision")
    export("embedded:tiny", folder / "huggingface", "huggingface")
    base = open_checkpoint(folder / "big_vision")
    origin = Base(uri=base.location, weights_file=base.weights.name, weights_sha256=base.weights_sha256)
    description = TunedDescription(base=origin, config=base.config, recipe={}, steps=1)
    with produce(folder / "tuned", "tuned model", "test", {}, []) as draft:
        write_tuned(draft.folder, {"llm/final_norm/scale": np.full(128, 0.2, np.float32)}, description)
    return folder


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def without_record(source: Path, folder: Path) -> Path:
    """A copy, as if it came from anywhere."""
    shutil.copytree(source, folder)
    (folder / "lineage.json").unlink()
    return folder


def data_places(path: Path) -> list[int]:
    """A place within the values of each member."""
    with zipfile.ZipFile(path) as archive:
        ends = [info.header_offset for info in archive.infolist()[1:]] + [archive.start_dir]
    return [end - 1 for end in ends]


def test_a_flipped_byte_of_any_array_is_found_and_named(artifacts: Path, tmp_path: Path) -> None:
    folder = without_record(artifacts / "big_vision", tmp_path / "x")
    path = folder / "checkpoint.npz"
    names = zipfile.ZipFile(path).namelist()
    for name, place_in_file in list(zip(names, data_places(path), strict=True))[::5]:
        flip(path, place_in_file)
        with pytest.raises(DamagedError, match="CRC-32") as caught:
            paligemma.load(folder)
        assert name in str(caught.value)
        assert caught.value.exit_code == 3
        flip(path, place_in_file)
    paligemma.load(folder)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_it_is_found_when_devices_read_slices(tmp_path: Path, order: str, dtype) -> None:
    values = np.asarray(np.random.default_rng(0).normal(size=(2, 8, 16)), np.float16, order=order)
    np.savez(tmp_path / "x.npz", **{f"img/Transformer/encoderblock_{layer}/x": values for layer in range(2)})
    stacked = read_npz(tmp_path / "x.npz")["img/Transformer/encoderblock/x"]
    assert isinstance(stacked, Stacked)
    sharding = fsdp_sharding(make_mesh(), stacked.shape)
    assert not sharding.is_fully_replicated
    placed = jax.device_get(place(stacked, np.dtype(dtype), sharding))
    np.testing.assert_array_equal(placed, np.stack([values, values]).astype(dtype))
    flip(tmp_path / "x.npz", data_places(tmp_path / "x.npz")[1])
    for where in (sharding, None):
        with pytest.raises(DamagedError, match=r"encoderblock_1/x\.npy"):
            place(stacked, np.dtype(dtype), where)


def test_an_export_of_damaged_weights_is_not_made(artifacts: Path, tmp_path: Path) -> None:
    folder = without_record(artifacts / "big_vision", tmp_path / "x")
    flip(folder / "checkpoint.npz", data_places(folder / "checkpoint.npz")[3])
    with pytest.raises(DamagedError, match="CRC-32"):
        export(folder, tmp_path / "out", "huggingface")
    assert not (tmp_path / "out").exists()


def test_a_flipped_byte_of_safetensors_is_found_by_the_hash_in_its_record(artifacts: Path, tmp_path: Path) -> None:
    shutil.copytree(artifacts / "huggingface", tmp_path / "x")
    flip(tmp_path / "x" / SINGLE_FILE, -1)
    for use in (paligemma.load, lambda path: export(path, tmp_path / "out", "big_vision")):
        with pytest.raises(DamagedError, match="changed since it was recorded"):
            use(tmp_path / "x")
    with pytest.raises(DamagedError, match="changed since it was recorded"):
        _ = open_checkpoint(tmp_path / "x").weights_sha256


def test_or_by_its_name_in_the_hugging_face_cache(artifacts: Path, tmp_path: Path) -> None:
    snapshot = without_record(artifacts / "huggingface", tmp_path / "snapshots" / "x")
    blob = tmp_path / "blobs" / file_sha256(snapshot / SINGLE_FILE)
    blob.parent.mkdir()
    (snapshot / SINGLE_FILE).rename(blob)
    (snapshot / SINGLE_FILE).symlink_to(blob)
    paligemma.load(snapshot)
    flip(blob, -1)
    with pytest.raises(DamagedError, match="changed since it was recorded"):
        paligemma.load(snapshot)


def test_a_flipped_byte_of_a_tuned_model_or_of_its_base_is_found(artifacts: Path, tmp_path: Path) -> None:
    for name in ("tuned", "big_vision"):
        shutil.copytree(artifacts / name, tmp_path / name)
    paligemma.load(tmp_path / "tuned", base=tmp_path / "big_vision")
    flip(tmp_path / "big_vision" / "checkpoint.npz", 1_000_000)
    with pytest.raises(DamagedError, match="changed since it was recorded"):
        paligemma.load(tmp_path / "tuned", base=tmp_path / "big_vision")
    flip(tmp_path / "tuned" / WEIGHTS_FILE, -1)
    with pytest.raises(DamagedError, match="changed since it was recorded"):
        paligemma.load(tmp_path / "tuned", base=artifacts / "big_vision")


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("big_vision", "checkpoint.npz"),
        ("huggingface", SINGLE_FILE),
        ("huggingface", "config.json"),
        ("tuned", WEIGHTS_FILE),
        ("tuned", DESCRIPTION_FILE),
    ],
)
def test_a_file_cut_off_at_any_of_50_places_is_damaged(artifacts: Path, tmp_path: Path, source: str, file: str) -> None:
    folder = without_record(artifacts / source, tmp_path / "x")
    data, places = (folder / file).read_bytes(), random.Random(0)
    for length in [0, len(data) // 2, len(data) - 3, *(places.randrange(len(data) - 1) for _ in range(50))]:
        (folder / file).write_bytes(data[:length])
        with pytest.raises(DamagedError) as caught:
            paligemma.load(folder)
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("change", ["trained", "adapter", "half", "unknown"])
def test_a_tuned_model_that_does_not_fit_its_base_is_damaged(artifacts: Path, tmp_path: Path, change: str) -> None:
    folder = without_record(artifacts / "tuned", tmp_path / "x")
    arrays = {
        "trained": {"llm/final_norm/scale": np.zeros(127, np.float32)},
        "adapter": {
            "llm/layers/attn/lora_q_einsum/a": np.zeros((4, 128, 2), np.float32),
            "llm/layers/attn/lora_q_einsum/b": np.zeros((4, 3, 4, 32), np.float32),
        },
        "half": {"llm/layers/attn/lora_q_einsum/b": np.zeros((4, 2, 4, 32), np.float32)},
        "unknown": {"llm/layers/attn/lora_z/a": np.zeros(1, np.float32), "llm/layers/attn/lora_z/b": np.zeros(1, np.float32)},
    }[change]
    write_safetensors(folder, [Outgoing(name, values.shape, values.dtype, [values]) for name, values in arrays.items()])
    (folder / SINGLE_FILE).rename(folder / WEIGHTS_FILE)
    description = json.loads((folder / DESCRIPTION_FILE).read_text())
    description["lora"] = {"rank": 2, "targets": ["q_einsum"]}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description))
    with pytest.raises(DamagedError, match=r"of the tuned model does not fit|half an adapter|its base lacks"):
        paligemma.load(folder)


def test_parameters_that_are_no_floats_are_damaged(artifacts: Path, tmp_path: Path) -> None:
    arrays = dict(read_npz(artifacts / "big_vision" / "checkpoint.npz"))
    arrays["img/head/bias"] = np.zeros(arrays["img/head/bias"].shape, np.int32)
    write_npz(tmp_path / "x.npz", arrays)
    with pytest.raises(DamagedError, match="not floating-point numbers: img/head/bias is int32"):
        open_checkpoint(tmp_path / "x.npz")
    folder = without_record(artifacts / "huggingface", tmp_path / "x")
    tensors = read_safetensors(folder / SINGLE_FILE)
    values = {name: np.array(tensor[...]) for name, tensor in tensors.items()}
    name = "multi_modal_projector.linear.bias"
    values[name] = values[name].astype(np.bool_)
    write_safetensors(folder, [Outgoing(name, array.shape, array.dtype, [array]) for name, array in values.items()])
    assert not (folder / INDEX_FILE).exists()
    with pytest.raises(DamagedError, match="img/head/bias is bool"):
        open_checkpoint(folder)


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    size = 1_000_000_000
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        member.write(b"\x93NUMPY\x02\x00" + size.to_bytes(4, "little"))
        for _ in range(50):
            member.write(b" " * 1_000_000)
    tracemalloc.start()
    with pytest.raises(DamagedError, match="header is 1000000000 bytes long"):
        read_npz(tmp_path / "x.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_stored_member_that_claims_to_be_longer_than_it_is_is_damaged(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f2", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", buffer.getvalue() + bytes(1000))
        archive.filelist[0].file_size = len(buffer.getvalue()) + 2 * 10**12
    with pytest.raises(DamagedError, match="not what its header declares"):
        read_npz(tmp_path / "x.npz")


def test_a_file_cut_off_after_it_was_opened_is_damaged(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", {"a": np.zeros(100_000, np.float32)})
    opened = read_npz(tmp_path / "x.npz")["a"]
    with (tmp_path / "x.npz").open("r+b") as file:
        file.truncate(1000)
    for where in (None, fsdp_sharding(make_mesh(), opened.shape)):
        with pytest.raises(DamagedError, match="cannot be read"):
            place(opened, np.dtype(np.float32), where)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_numpy_does_not_write_is_not_read(tmp_path: Path, compression: int) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3, np.float32))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", compression) as archive:
        archive.writestr("a.npy", buffer.getvalue())
    with pytest.raises(DamagedError, match="compressed in a way"):
        read_npz(tmp_path / "x.npz")


def test_two_arrays_of_one_name_are_damaged(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{"params/a": np.zeros(2, np.float32), "a": np.ones(2, np.float32)})
    with pytest.raises(DamagedError, match="two arrays of one name"):
        read_npz(tmp_path / "x.npz")
