"""Files and folders that are no checkpoint we read: each is called by its name, with the way to one that is."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paligemma.checkpoints.identify import identify_file
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.safetensors_files import INDEX_FILE, SINGLE_FILE
from paligemma.data.tokenizer import Tokenizer
from paligemma.errors import DamagedError, InputError, PaliGemmaError


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"contents")
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2, np.float32))
    return buffer.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
FILES = {
    "pointer": (POINTER, "a Git LFS pointer", "git lfs pull"),
    "page": (PAGE, "a web page", "signed in"),
    "page in capitals": (b"<HTML><body>x</body></HTML>", "a web page", "signed in"),
    "error": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "an XML document", "see the error"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(100), "a GGUF file", "made from"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "a Keras checkpoint", "published weights"),
    "keras": (zipped("metadata.json", "config.json", "model.weights.h5"), "a Keras checkpoint", "published weights"),
    "torch": (zipped("archive/data.pkl", "archive/data/0"), "a pickled PyTorch file", "save_pretrained"),
    "old torch": (pickle.dumps({"a": 1}, protocol=2), "a pickled PyTorch file", "save_pretrained"),
    "pickle": (pickle.dumps({"a": 1}, protocol=4), "a pickled PyTorch file", "save_pretrained"),
    "zip": (zipped("model.safetensors", "config.json"), "a zip file of other files", "unpack it"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "a packed file", "unpack it"),
    "array": (b"\x93NUMPY\x01\0" + bytes(20), "a single array", "numpy.savez"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(20), "a TensorFlow Lite model", "published weights"),
}


@pytest.mark.parametrize("name", ["checkpoint.npz", SINGLE_FILE])
@pytest.mark.parametrize(("contents", "what", "fix"), FILES.values(), ids=FILES)
def test_another_format_under_a_checkpoints_name_is_named(tmp_path: Path, name: str, contents, what: str, fix: str) -> None:
    (tmp_path / name).write_bytes(contents)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InputError) as caught:
            open_checkpoint(path)
        assert f"this is {what}" in str(caught.value)
        assert fix in str(caught.value).partition("to do:")[2]
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "contents", "ending"), [("checkpoint.npz", safetensors(), ".safetensors"), (SINGLE_FILE, npz(), ".npz")]
)
def test_one_of_our_formats_under_the_others_name_is_to_be_renamed(tmp_path: Path, name: str, contents, ending: str) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(InputError, match=rf"under another name(.|\n)*ends in \{ending}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("file", [INDEX_FILE, "config.json", "model-00001-of-00001.safetensors"])
@pytest.mark.parametrize(("contents", "what"), [(POINTER, "Git LFS pointer"), (PAGE, "a web page"), (b"", "an empty file")])
def test_each_file_of_a_folder_is_looked_at(tmp_path: Path, file: str, contents: bytes, what: str) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(safetensors())
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_bytes(contents)
    with pytest.raises(PaliGemmaError, match=f"this is .*{what}") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.exit_code == (2 if contents else 3)
    assert str(tmp_path / file) in str(caught.value)


@pytest.mark.parametrize(("contents", "what"), [(POINTER, "Git LFS pointer"), (PAGE, "a web page"), (b"", "an empty file")])
def test_a_tokenizer_is_looked_at_too(tmp_path: Path, contents: bytes, what: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(contents)
    with pytest.raises(PaliGemmaError, match=rf"The tokenizer cannot be read: this is .*{what}"):
        Tokenizer(tmp_path / "tokenizer.model")


FOLDERS = {
    "adapter": (["adapter_config.json", "adapter_model.safetensors", "README.md"], "a PEFT adapter", "merge_and_unload()"),
    "adapter, pickled": (["adapter_config.json", "adapter_model.bin"], "a PEFT adapter", "merge_and_unload()"),
    "pickled": (["config.json", "pytorch_model.bin"], "pytorch_model.bin, a pickled PyTorch file", "save_pretrained"),
    "pickled shards": (
        ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"],
        "a pickled PyTorch file",
        "save_pretrained",
    ),
    "lightning": (["last.ckpt"], "last.ckpt, a pickled PyTorch file", "save_pretrained"),
    "gguf": (["paligemma-q4_0.gguf"], "a GGUF file", "made from"),
    "keras": (["config.json", "metadata.json", "model.weights.h5"], "a Keras checkpoint", "published weights"),
    "orbax": (["_METADATA", "manifest.ocdbt", "d"], "an Orbax checkpoint", "output in place of its state"),
    "flax": (["config.json", "flax_model.msgpack"], "a folder with Flax weights", "safetensors"),
    "tensorflow": (["checkpoint", "model.index", "model.data-00000-of-00001"], "a TensorFlow model", "published weights"),
    "deepspeed": (["global_step10", "zero_to_fp32.py", "latest"], "a DeepSpeed checkpoint", "zero_to_fp32.py"),
    "distributed": (["__0_0.distcp", ".metadata"], "a PyTorch checkpoint cut up", "format_utils"),
    "shards": (["model-00001-of-00002.safetensors", "config.json"], "1 shards, such as", "fetch model.safetensors.index.json"),
    "cache": (["snapshots", "blobs", "refs"], "a model in Hugging Face's cache", "hf://google/paligemma-3b-pt-224"),
    "trainer": (["checkpoint-500", "checkpoint-1000", "runs"], "checkpoint-500, checkpoint-1000", "e.g. checkpoint-1000"),
    "nothing": ([], "an empty folder", "check the path"),
}


@pytest.mark.parametrize(("names", "what", "fix"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_without_weights_that_are_read_is_named(tmp_path: Path, names: list[str], what: str, fix: str) -> None:
    folder = tmp_path / "models--google--paligemma-3b-pt-224"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    with pytest.raises(InputError) as caught:
        open_checkpoint(folder)
    assert what in str(caught.value)
    assert fix in str(caught.value).partition("to do:")[2]
    assert "fetch_checkpoint" not in str(caught.value) or not names


@pytest.mark.parametrize(
    ("base", "named"),
    [("google/paligemma-3b-pt-224", "google/paligemma-3b-pt-224"), ("'); import os; ('", "BASE"), (7, "BASE")],
)
def test_an_adapters_base_is_named_where_it_is_a_name(tmp_path: Path, base: object, named: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(InputError, match=rf"P\.from_pretrained\('{named}'\), '{tmp_path}'\)\.merge_and_unload\(\)"):
        open_checkpoint(tmp_path)


def test_weights_under_another_name_are_to_be_named(tmp_path: Path) -> None:
    (tmp_path / "consolidated.safetensors").write_bytes(safetensors())
    with pytest.raises(InputError, match=r"name the file itself: consolidated\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["FIFO", "folder"])
@pytest.mark.parametrize("name", ["checkpoint.npz", SINGLE_FILE, "tokenizer.model"])
def test_what_is_no_file_is_called_that(tmp_path: Path, make: Callable[[Path], None], name: str) -> None:
    make(tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PaliGemmaError, match=r"is a (folder|FIFO)") as caught:
        Tokenizer(tmp_path / name) if name == "tokenizer.model" else open_checkpoint(tmp_path)
    assert caught.value.exit_code in (2, 3)


def test_a_fifo_as_a_shard_is_no_wait(tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    os.mkfifo(tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PaliGemmaError, match="it is a FIFO, not a file"):
        open_checkpoint(tmp_path)


def test_an_integer_of_401_digits_in_the_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / SINGLE_FILE).write_bytes(safetensors())
    (tmp_path / "config.json").write_text('{"model_type": "paligemma", "vocab_size": 1' + "0" * 400 + "}")
    with pytest.raises(DamagedError, match="an integer in it has more than 64 bits"):
        open_checkpoint(tmp_path)


def test_a_link_that_leads_nowhere_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "x.npz").symlink_to(tmp_path / "gone.npz")
    with pytest.raises(InputError, match="only a link to one"):
        open_checkpoint(tmp_path / "x.npz")


@pytest.mark.parametrize("contents", [npz(), safetensors()], ids=["npz", "safetensors"])
def test_what_is_read_is_nothing_else(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / ("x.npz" if contents.startswith(b"PK") else "x.safetensors")
    path.write_bytes(contents)
    assert identify_file(path) is None
