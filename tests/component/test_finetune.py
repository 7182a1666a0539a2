"""finetune on plain paths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from components.finetune.main import run
from components.prepare_data.main import run as prepare
from conftest import SmallData
from paligemma.checkpoints.npz import write_npz
from paligemma.checkpoints.open import open_checkpoint, resolve_embedded
from paligemma.checkpoints.tuned import read_tuned
from paligemma.errors import DamagedError, InputError
from paligemma.lineage.record import read_record
from paligemma.model import load
from paligemma.training.fit import DivergedError

SETTINGS = ["steps=6", "learning_rate=0.3", "remat=none"]


@pytest.fixture(scope="module")
def tuned(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tuned") / "tuned"
    run(checkpoint="embedded:tiny", records=records, output=output, set_=SETTINGS)
    return output


def test_only_the_attention_layers_are_trained(tuned: Path) -> None:
    arrays, base = read_tuned(tuned).arrays, open_checkpoint("embedded:tiny").arrays
    assert sorted(arrays) == [f"llm/layers/attn/{name}/w" for name in ("attn_vec_einsum", "kv_einsum", "q_einsum")]
    for name, values in arrays.items():
        assert values.dtype == np.float32
        assert (values != base[name][...].astype(np.float32)).any()
    assert json.loads((tuned / "summary.json").read_text())["frozen_parameters_identical"] is True


def test_what_is_loaded_is_the_base_but_for_what_was_trained(tuned: Path) -> None:
    from paligemma.checkpoints.parameters import parameters_by_name

    arrays, base = read_tuned(tuned).arrays, open_checkpoint("embedded:tiny").arrays
    for name, variable in parameters_by_name(load(tuned).module).items():
        np.testing.assert_array_equal(variable[...], arrays.get(name, base[name][...]))


def test_the_loss_falls_and_is_recorded(tuned: Path) -> None:
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert 0.3 > lines[0]["learning_rate"] > lines[-1]["learning_rate"] > 0
    assert all(line["gradient_norm"] > 0 for line in lines)
    page = (tuned / "training.html").read_text()
    assert "<polyline" in page
    assert "llm/layers/attn/q_einsum/w" in page


def test_its_record_names_recipe_and_inputs(tuned: Path, records: Path) -> None:
    record = read_record(tuned, "tuned-model")
    assert record.producer.parameters["steps"] == 6
    assert {entry.role for entry in record.inputs} == {"checkpoint", "train records"}
    assert read_record(records).artifact.tree_sha256 in {entry.sha256 for entry in record.inputs}


def test_the_same_run_gives_the_same_parameters(tuned: Path, records: Path, tmp_path: Path) -> None:
    run(checkpoint="embedded:tiny", records=records, output=tmp_path / "again", set_=SETTINGS)
    assert (tmp_path / "again/trained.safetensors").read_bytes() == (tuned / "trained.safetensors").read_bytes()


def test_everything_can_be_trained(records: Path, tmp_path: Path) -> None:
    run(checkpoint="embedded:tiny", records=records, output=tmp_path / "all", set_=["steps=2", "trainable=all"])
    assert read_tuned(tmp_path / "all").arrays.keys() == open_checkpoint("embedded:tiny").arrays.keys()


def test_a_recipe_file_is_read(records: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("steps: 1\nbatch_size: 16\n")
    run(checkpoint="embedded:tiny", records=records, output=tmp_path / "x", recipe=str(tmp_path / "r.yaml"))
    assert read_tuned(tmp_path / "x").description.recipe["batch_size"] == 16


def test_a_loss_that_is_not_finite_stops_the_run(records: Path, tmp_path: Path) -> None:
    arrays = {name: array[...].copy() for name, array in open_checkpoint("embedded:tiny").arrays.items()}
    arrays["llm/final_norm/scale"][0] = np.nan
    write_npz(tmp_path / "broken.npz", arrays)
    with pytest.raises(DivergedError, match="not finite") as caught:
        run(checkpoint=str(tmp_path / "broken.npz"), records=records, output=tmp_path / "x", set_=["steps=3"])
    assert "step 1 of 3" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.npz"]


def test_a_batch_that_does_not_split_over_the_devices_is_refused(records: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="set batch_size=8"):
        run(checkpoint="embedded:tiny", records=records, output=tmp_path / "x", set_=["batch_size=9"])


def test_records_of_another_image_size_are_refused(records: Path, small_data: SmallData, tmp_path: Path) -> None:
    arrays = {name: array[...] for name, array in open_checkpoint("embedded:tiny").arrays.items()}
    arrays["img/pos_embedding"] = np.tile(arrays["img/pos_embedding"], (1, 4, 1))  # 64 pixels
    (tmp_path / "ck").mkdir()
    write_npz(tmp_path / "ck/x.npz", arrays)
    (tmp_path / "ck/tokenizer.model").write_bytes((resolve_embedded("embedded:tiny") / "tokenizer.model").read_bytes())
    with pytest.raises(InputError, match="images of 32 pixels, the checkpoint wants 64"):
        run(checkpoint=str(tmp_path / "ck"), records=records, output=tmp_path / "x")
    row = {"image": small_data.add_image("a.png"), "prefix": "p", "suffix": "s"}
    prepare(data=small_data.write([row]), checkpoint=str(tmp_path / "ck"), output=tmp_path / "r")
    run(checkpoint=str(tmp_path / "ck"), records=tmp_path / "r", output=tmp_path / "x", set_=["steps=1"])


def test_another_base_is_refused_when_loading(tuned: Path, tmp_path: Path) -> None:
    arrays = {name: array[...].copy() for name, array in open_checkpoint("embedded:tiny").arrays.items()}
    arrays["llm/final_norm/scale"][0] += 1
    write_npz(tmp_path / "other.npz", arrays)
    with pytest.raises(DamagedError, match="not the checkpoint that the model was tuned from"):
        load(tuned, base=tmp_path / "other.npz")


def test_damaged_tuned_models_are_named(tuned: Path, tmp_path: Path) -> None:
    for name, message in (("trained.safetensors", "cannot be read"), ("tuned.json", "is damaged")):
        folder = tmp_path / name
        folder.mkdir()
        for path in tuned.iterdir():
            data = path.read_bytes()
            (folder / path.name).write_bytes(data[: len(data) // 2] if path.name == name else data)
        with pytest.raises(DamagedError, match=message):
            load(folder)


def test_the_trained_file_is_plain_safetensors(tuned: Path) -> None:
    assert len(safetensors.numpy.load_file(tuned / "trained.safetensors")) == 3
