"""fetch_checkpoint on plain paths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from components.fetch_checkpoint.main import run
from paligemma.checkpoints.npz import write_npz
from paligemma.checkpoints.open import open_checkpoint, resolve_embedded
from paligemma.errors import DamagedError, InputError
from paligemma.lineage.record import file_sha256, read_record, tree_sha256

TINY = resolve_embedded("embedded:tiny")
SHA256 = file_sha256(TINY / "checkpoint.npz")


def test_the_embedded_checkpoint_arrives_byte_for_byte(tmp_path: Path) -> None:
    run(output=tmp_path / "x", sha256=SHA256.upper())
    for name in ("checkpoint.npz", "tokenizer.model"):
        assert (tmp_path / "x" / name).read_bytes() == (TINY / name).read_bytes()
    assert open_checkpoint(tmp_path / "x").config == open_checkpoint(TINY).config


def test_its_record_names_what_it_is_made_of(tmp_path: Path) -> None:
    run(output=tmp_path / "x")
    record = read_record(tmp_path / "x", "checkpoint")
    assert {file.path for file in record.artifact.files} == {"checkpoint.npz", "config.json", "tokenizer.model"}
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
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    arrays = {name: array[...] for name, array in open_checkpoint(TINY).arrays.items()}
    arrays["llm/embedder/input_embedding"] = arrays["llm/embedder/input_embedding"][:100]
    write_npz(tmp_path / "x.npz", arrays)
    with pytest.raises(InputError, match="only 100 rows"):
        run(output=tmp_path / "x", source=str(tmp_path / "x.npz"), tokenizer=str(TINY / "tokenizer.model"))


def test_running_again_replaces_the_artifact(tmp_path: Path) -> None:
    for _ in range(2):
        run(output=tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
