"""finetune on plain paths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from components.finetune.__main__ import run
from components.finetune.main import is_identical
from components.prepare_data.__main__ import run as prepare
from conftest import SmallData
from paligemma.artifacts.record import read_record
from paligemma.checkpoints.npz import write_npz
from paligemma.checkpoints.open_checkpoint import open_checkpoint, resolve_embedded
from paligemma.checkpoints.parameters import build_module, parameters_by_name
from paligemma.checkpoints.tuned import read_tuned
from paligemma.data.images import load_image
from paligemma.data.pictures.levels import GreyRange
from paligemma.errors import DamagedError, InputError
from paligemma.model import load
from paligemma.training.fit import DivergedError
from paligemma.training.trainable import compile_pattern, split_trainable

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


def test_a_frozen_parameter_that_changed_by_one_bit_is_noticed() -> None:
    base = open_checkpoint("embedded:tiny")
    model = build_module(base.config, base.arrays, lambda *_: "float16")
    _, _, frozen = split_trainable(model, compile_pattern("attention"))
    assert is_identical(frozen, base)
    scale = parameters_by_name(frozen)["llm/final_norm/scale"]
    bits = np.array(scale[...]).view(np.uint16)
    bits[-1] ^= 1
    scale[...] = bits.view(np.float16)
    assert not is_identical(frozen, base)


def test_what_is_loaded_is_the_base_but_for_what_was_trained(tuned: Path) -> None:
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
    assert "llm/layers/attn/q_einsum/w" in page.replace("<wbr>", "")  # where a narrow window may break the line


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
    assert not (tmp_path / "x").exists()
    (noted,) = (tmp_path / "x.state").glob("diverged-*.json")
    rows = json.loads(noted.read_text())
    assert len(rows["rows"]) == len(rows["row_ids"]) == 8


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
    for name, message in (("trained.safetensors", "cannot be read"), ("tuned.json", "tuned.json cannot be read")):
        folder = tmp_path / name
        folder.mkdir()
        for path in filter(Path.is_file, tuned.iterdir()):
            data = path.read_bytes()
            (folder / path.name).write_bytes(data[: len(data) // 2] if path.name == name else data)
        with pytest.raises(DamagedError, match=message):
            load(folder)


def test_the_trained_file_is_plain_safetensors(tuned: Path) -> None:
    assert len(safetensors.numpy.load_file(tuned / "trained.safetensors")) == 3


def test_steps_that_are_not_finite_are_left_out_when_the_recipe_says_so(records: Path, tmp_path: Path) -> None:
    settings = ["steps=6", "learning_rate=1e30", "schedule=constant", "warmup_fraction=0", "non_finite=skip"]
    run(checkpoint="embedded:tiny", records=records, output=tmp_path / "x", set_=settings)
    summary = json.loads((tmp_path / "x/summary.json").read_text())
    assert summary["skipped_steps"]
    assert 1 not in summary["skipped_steps"]  # the first step's loss was the checkpoint's own


def test_adapters_are_trained_and_merged_when_loaded(records: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, "trainable=lora", "lora.rank=2", "lora.targets=[q_einsum, linear]", "optimizer=adamw"]
    run(checkpoint="embedded:tiny", records=records, output=tmp_path / "lora", set_=settings)
    arrays, base = read_tuned(tmp_path / "lora").arrays, open_checkpoint("embedded:tiny").arrays
    parts = ("attn/lora_q_einsum/a", "attn/lora_q_einsum/b", "mlp/lora_linear/a", "mlp/lora_linear/b")
    assert sorted(arrays) == [f"llm/layers/{part}" for part in parts]
    summary = json.loads((tmp_path / "lora/summary.json").read_text())
    assert summary["frozen_parameters_identical"]
    assert summary["trained_parameters"] == sum(array.size for array in arrays.values())
    assert summary["frozen_parameters"] == sum(int(np.prod(array.shape)) for array in base.values())
    loaded = parameters_by_name(load(tmp_path / "lora").module)
    changed = {name for name, variable in loaded.items() if (np.asarray(variable[...]) != base[name][...]).any()}
    assert changed == {"llm/layers/attn/q_einsum/w", "llm/layers/mlp/linear"}
    expected = base["llm/layers/mlp/linear"][...].astype(np.float32) + 8.0 * np.einsum(
        "lfr,lrd->lfd", arrays["llm/layers/mlp/lora_linear/a"], arrays["llm/layers/mlp/lora_linear/b"]
    )
    np.testing.assert_allclose(loaded["llm/layers/mlp/linear"][...], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_adapters_over_quantized_weights_are_merged_into_the_base_as_it_was(kind: str, records: Path, tmp_path: Path) -> None:
    settings = ["steps=3", "trainable=lora", "lora.rank=2", "optimizer=adamw", "learning_rate=0.01", f"frozen_dtype={kind}"]
    run(checkpoint="embedded:tiny", records=records, output=tmp_path / "x", set_=settings)
    assert json.loads((tmp_path / "x/summary.json").read_text())["frozen_parameters_identical"]
    loaded, base = load(tmp_path / "x").module, open_checkpoint("embedded:tiny").arrays
    np.testing.assert_array_equal(loaded.llm.layers.mlp.linear[...], base["llm/layers/mlp/linear"][...])
    assert (loaded.llm.layers.attn.q_einsum.w[...] != base["llm/layers/attn/q_einsum/w"][...]).any()
    plain = [*settings[:-1], "frozen_dtype=float32"]
    run(checkpoint="embedded:tiny", records=records, output=tmp_path / "plain", set_=plain)
    ours, floats = losses_of(tmp_path / "x"), losses_of(tmp_path / "plain")
    np.testing.assert_allclose(ours, floats, rtol=0.03 if kind == "int8" else 0.15)
    assert ours != floats


def test_what_is_quantized_can_be_chosen(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.finetune import main

    built = []
    monkeypatch.setattr(main, "is_identical", lambda frozen, base: built.append(frozen) or True)
    settings = ["steps=1", "frozen_dtype=int8", "quantize.groups=[embedding, mlp]", "quantize.others=bfloat16"]
    run(checkpoint="embedded:tiny", records=records, output=tmp_path / "x", set_=settings)
    held = {name: str(variable.get_value().dtype) for name, variable in parameters_by_name(built[0]).items()}
    quantized = {name for name, dtype in held.items() if dtype == "int8"}
    assert quantized == {"llm/embedder/input_embedding", "llm/layers/mlp/gating_einsum", "llm/layers/mlp/linear"}
    assert {dtype for name, dtype in held.items() if name not in quantized} == {"bfloat16"}


def test_quantize_without_a_quantized_dtype_is_refused(records: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quantize is for frozen_dtype int8 or nf4, which is float16"):
        run(checkpoint="embedded:tiny", records=records, output=tmp_path / "x", set_=["quantize.block=32"])


def test_the_best_of_the_validations_is_given_out_and_training_stops_when_it_gets_no_better(
    records: Path, tmp_path: Path
) -> None:
    settings = ["steps=40", "learning_rate=10", "schedule=constant", "warmup_fraction=0", "validate_every=1", "patience=1"]
    folders = {}
    for select in ("last", "best"):
        folders[select] = tmp_path / select
        run("embedded:tiny", str(records), str(folders[select]), str(records), set_=[*settings, f"select={select}"])
    summary = json.loads((folders["best"] / "summary.json").read_text())
    assert summary["stopped_early"]
    assert summary["steps"] < 40
    steps = [step for step, _ in summary["validations"]]
    best, loss = summary["best_validation"]
    assert steps[-1] - best == 1
    assert loss == min(loss for _, loss in summary["validations"])
    assert f"{loss:.4f}" in (folders["best"] / "training.html").read_text()
    short = [*settings[1:4], f"steps={best}"]
    run("embedded:tiny", str(records), str(tmp_path / "short"), set_=short)
    trained = {name: (folder / "trained.safetensors").read_bytes() for name, folder in folders.items()}
    assert trained["best"] == (tmp_path / "short/trained.safetensors").read_bytes()
    assert trained["last"] != trained["best"]


def test_validation_without_records_is_refused(records: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no validation records"):
        run(checkpoint="embedded:tiny", records=records, output=tmp_path / "x", set_=["validate_every=1"])


# At the reference's learning rate: ten times of it turn a last bit of a feature into 1e-4 of a loss within twelve steps, on any
# processor, because steps are then as large as what they correct (measured: 2e-7 of the loss at 0.03, 1e-4 at 0.3).
CACHED = ["steps=7", "learning_rate=0.03", "frozen_dtype=float32"]


def losses_of(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def losses_without_cache(records: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    output = tmp_path_factory.mktemp("uncached") / "tuned"
    run("embedded:tiny", str(records), str(output), set_=CACHED)
    return losses_of(output)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_cached_vision_features_change_nothing_and_are_computed_once(
    where: str, records: Path, losses_without_cache: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paligemma.training import vision_cache

    monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path / "cache"))
    computed = []
    original = vision_cache.VisionCache.__init__

    def counting(self, records, embed, *rest) -> None:
        original(self, records, lambda images: computed.append(len(images)) or embed(images), *rest)

    monkeypatch.setattr(vision_cache.VisionCache, "__init__", counting)
    losses, images = {}, {}
    for name in ("first", "again"):
        computed.clear()
        run("embedded:tiny", str(records), str(tmp_path / name), set_=[*CACHED, f"vision_cache={where}"])
        losses[name], images[name] = losses_of(tmp_path / name), sum(computed)
    # The tower is another compiled program than the step that it is part of, and rounds sums in another order.
    np.testing.assert_allclose(losses["first"], losses_without_cache, rtol=100 * np.finfo(np.float32).eps)
    assert losses["again"] == losses["first"]
    assert 0 < images["first"] <= 24  # 7 images in 21 rows: all are known after one epoch
    assert images["again"] == (0 if where == "disk" else images["first"])


def test_features_of_a_tower_that_is_trained_are_not_cached(records: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vision tower is trained"):
        run("embedded:tiny", str(records), str(tmp_path / "x"), set_=["trainable=vision", "vision_cache=memory"])


def test_metrics_are_in_tensorboards_files_too(tuned: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tuned / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    written = [(event.step, float(event.tensor_proto.float_val[0])) for event in events.Tensors("loss")]
    assert written == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    assert {"seconds_step", "tflops", "share_of_peak", "examples_per_second"} <= lines[-1].keys()


def test_a_tuned_model_reads_grey_pictures_as_its_training_data_were_read(tuned: Path, tmp_path: Path, monkeypatch) -> None:
    assert load(tuned).grey_range is None
    shutil.copytree(tuned, tmp_path / "x", ignore=shutil.ignore_patterns("lineage.json"))
    description = json.loads((tuned / "tuned.json").read_text())
    (tmp_path / "x/tuned.json").write_text(json.dumps({**description, "grey_range": "0,4095"}))
    Image.fromarray(np.linspace(0, 4095, 1024, dtype=np.uint16).reshape(32, 32)).save(tmp_path / "grey.png")
    model = load(tmp_path / "x")
    assert model.grey_range == GreyRange(0, 4095)
    seen = []
    monkeypatch.setattr(
        "paligemma.model.preprocess", lambda pixels, size: seen.append(pixels.max()) or np.zeros((size, size, 3))
    )
    model.generate([tmp_path / "grey.png"], "ocr", 1)
    assert seen == [255]
    assert load_image(tmp_path / "grey.png").max() == 16
