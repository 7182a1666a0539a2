"""fetch_checkpoint on plain paths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from components.fetch_checkpoint.__main__ import run
from paligemma.artifacts.record import file_sha256, read_record, tree_sha256
from paligemma.checkpoints import tokenizer_file
from paligemma.checkpoints.export import export
from paligemma.checkpoints.huggingface.write import write_huggingface
from paligemma.checkpoints.npz import write_npz
from paligemma.checkpoints.open_checkpoint import open_checkpoint, resolve_embedded
from paligemma.errors import DamagedError, InputError

TINY = resolve_embedded("embedded:tiny")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA256 = file_sha256(TINY / "checkpoint.npz")


def test_the_embedded_checkpoint_arrives_byte_for_byte(tmp_path: Path) -> None:
    run(output=tmp_path / "x", sha256=SHA256.upper())
    for name in ("checkpoint.npz", "tokenizer.model"):
        assert (tmp_path / "x" / name).read_bytes() == (TINY / name).read_bytes()
    assert open_checkpoint(tmp_path / "x").config == open_checkpoint(TINY).config


def test_its_record_names_what_it_is_made_of(tmp_path: Path) -> None:
    run(output=tmp_path / "x")
    record = read_record(tmp_path / "x", "checkpoint")
    assert {file.path for file in record.artifact.files} == {
        "checkpoint.npz",
        "config.json",
        "parameters.json",
        "tokenizer.model",
    }
    assert record.artifact.tree_sha256 == tree_sha256(record.artifact.files)
    assert {file.path: file.sha256 for file in record.artifact.files}["checkpoint.npz"] == SHA256
    assert {(entry.role, entry.sha256) for entry in record.inputs} == {
        ("weights", SHA256),
        ("tokenizer", file_sha256(TINY / "tokenizer.model")),
    }
    assert record.producer.component == "fetch_checkpoint"
    assert record.producer.packages["jax"]


def test_a_bare_file_gets_its_architecture_from_its_shapes(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    shutil.copy(TINY / "checkpoint.npz", tmp_path / "source" / "weights.npz")
    with pytest.raises(InputError, match="no tokenizer"):
        run(output=tmp_path / "x", source=str(tmp_path / "source"))
    run(output=tmp_path / "x", source=str(tmp_path / "source"), tokenizer=str(TINY / "tokenizer.model"))
    assert json.loads((tmp_path / "x" / "config.json").read_text()) == json.loads((TINY / "config.json").read_text())


def test_another_sha256_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="not the expected one"):
        run(output=tmp_path / "x", sha256="0" * 64)
    assert [path.name for path in tmp_path.iterdir()] == ["lineage"]  # of the attempt that failed


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    arrays = {name: array[...] for name, array in open_checkpoint(TINY).arrays.items()}
    arrays["llm/embedder/input_embedding"] = arrays["llm/embedder/input_embedding"][:100]
    write_npz(tmp_path / "x.npz", arrays)
    with pytest.raises(InputError, match="only 100 rows"):
        run(output=tmp_path / "x", source=str(tmp_path / "x.npz"), tokenizer=str(TINY / "tokenizer.model"))


def test_paligemmas_own_tokenizer_is_fetched_where_none_is_beside_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(address: str, sha256: str) -> Path:
        asked.append((address, sha256))
        return TINY / "tokenizer.model"

    shutil.copy(TINY / "checkpoint.npz", tmp_path / "x.npz")
    monkeypatch.setattr("paligemma.checkpoints.sources.web.fetch", fetch)
    with pytest.raises(InputError, match=r"There is no tokenizer\.model"):  # its vocabulary is another
        run(output=tmp_path / "x", source=str(tmp_path / "x.npz"))
    assert asked == []
    monkeypatch.setattr(tokenizer_file, "PUBLISHED_ROWS", open_checkpoint(TINY).config.llm.vocab_size)
    run(output=tmp_path / "x", source=str(tmp_path / "x.npz"))
    address = "https://storage.googleapis.com/big_vision/paligemma_tokenizer.model"
    assert asked == [(address, "8986bb4f423f07f8c7f70d0dbe3526fb2316056c17bae71b1ea975e77a168fc6")]
    (by,) = [one for one in read_record(tmp_path / "x").inputs if one.role == "tokenizer"]
    assert (by.uri, by.sha256) == asked[0]


def test_running_again_replaces_the_artifact(tmp_path: Path) -> None:
    for _ in range(2):
        run(output=tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lineage", "x"]


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `hf download` leaves of the embedded checkpoint, as transformers has it."""
    export("embedded:tiny", tmp_path / "exported", "huggingface")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--google--tiny"
    folder = repository / "snapshots" / COMMIT
    for made in (folder, repository / "blobs", repository / "refs"):
        made.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for path in (tmp_path / "exported").iterdir():
        if path.name != "lineage.json":
            blob = repository / "blobs" / file_sha256(path)
            shutil.copy(path, blob)
            (folder / path.name).symlink_to(f"../../blobs/{blob.name}")
    shutil.rmtree(tmp_path / "exported")
    return folder


def test_a_hugging_face_snapshot_is_carried_whole_and_recorded_by_its_commit(tmp_path: Path, snapshot: Path) -> None:
    run(output=tmp_path / "x", source="hf://google/tiny")
    names = {path.name for path in snapshot.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "preprocessor_config.json"} < names
    assert {path.name for path in (tmp_path / "x").iterdir()} == names | {"lineage.json", "parameters.json"}
    for name in names:
        assert (tmp_path / "x" / name).read_bytes() == (snapshot / name).read_bytes()
        assert not (tmp_path / "x" / name).is_symlink()
    record = read_record(tmp_path / "x", "checkpoint")
    assert record.inputs[0].uri == f"hf://google/tiny@{COMMIT}"
    assert record.inputs[0].sha256 == file_sha256(snapshot / "model.safetensors")
    assert open_checkpoint(tmp_path / "x").config == open_checkpoint(TINY).config


def test_a_flipped_byte_is_found_by_the_hash_in_the_cache_and_in_the_record(tmp_path: Path, snapshot: Path) -> None:
    run(output=tmp_path / "x", source="hf://google/tiny")
    for path, source in (
        ((snapshot / "model.safetensors").resolve(), "hf://google/tiny"),
        (tmp_path / "x" / "model.safetensors", str(tmp_path / "x")),
    ):
        data = bytearray(path.read_bytes())
        data[-1000] ^= 1
        path.write_bytes(data)
        with pytest.raises(DamagedError, match="changed since it was recorded"):
            run(output=tmp_path / "y", source=source)
        assert not (tmp_path / "y").exists()


def test_shards_go_by_their_common_hash(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(TINY)
    (tmp_path / "hf").mkdir()
    arrays = checkpoint.arrays
    write_huggingface(tmp_path / "hf", checkpoint.config, arrays, lambda _, values: values, checkpoint.tokenizer, 500_000)
    sha256 = open_checkpoint(tmp_path / "hf").weights_sha256
    run(output=tmp_path / "x", source=str(tmp_path / "hf"), sha256=sha256)
    assert open_checkpoint(tmp_path / "x").weights_sha256 == sha256
    assert len(list((tmp_path / "x").glob("*.safetensors"))) > 3
    shard = next((tmp_path / "hf").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedError, match="not the expected one"):
        run(output=tmp_path / "y", source=str(tmp_path / "hf"), sha256=sha256)


@pytest.mark.parametrize("format", ["npz", "huggingface"])
def test_another_image_size_is_for_those_who_load_it(tmp_path: Path, snapshot: Path, format: str) -> None:
    source, name = ("hf://google/tiny", "model.safetensors") if format == "huggingface" else (str(TINY), "checkpoint.npz")
    run(output=tmp_path / "x", source=source, image_size=64)
    original = snapshot / name if format == "huggingface" else TINY / name
    assert (tmp_path / "x" / name).read_bytes() == original.read_bytes()
    checkpoint = open_checkpoint(tmp_path / "x")
    assert checkpoint.config.img.image_size == 64
    assert checkpoint.arrays["img/pos_embedding"].shape == (1, 64, 96)
    corners = [0, 7, 56, 63], [0, 3, 12, 15]
    positions = open_checkpoint(TINY).arrays["img/pos_embedding"][0]
    assert (checkpoint.arrays["img/pos_embedding"][0][corners[0]] == positions[corners[1]]).all()
    with pytest.raises(InputError, match="not a multiple of patch_size"):
        run(output=tmp_path / "y", source=source, image_size=65)
