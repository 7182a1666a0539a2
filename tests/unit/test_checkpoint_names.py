"""Checkpoints as other programs save them: names and wrappers, and that nothing is left out that differs from what is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from paligemma.checkpoints import safetensors_files
from paligemma.checkpoints.architecture import infer_config
from paligemma.checkpoints.huggingface.write import write_huggingface
from paligemma.checkpoints.lazy import FirstRows, verify
from paligemma.checkpoints.npz import read_npz, write_npz
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.errors import DamagedError, InputError
from paligemma.models.config import VARIANTS, DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.models.parameter_shapes import parameter_shapes

ONE = PaliGemmaConfig(
    img=VisionConfig(image_size=16, patch_size=8, width=8, depth=2, mlp_dim=12, num_heads=2),
    llm=DecoderConfig(width=16, depth=2, mlp_dim=24, num_heads=4, num_kv_heads=1, head_dim=6, vocab_size=100),
)
TWO = ONE.model_copy(update={"llm": ONE.llm.model_copy(update={"num_kv_heads": 2, "post_norms": True})})
EMBED = "language_model.model.embed_tokens.weight"
ARRAYS = {
    config: {
        name: np.random.default_rng(number).normal(size=shape).astype(np.float32)
        for number, (name, shape) in enumerate(parameter_shapes(config).items())
    }
    for config in (ONE, TWO)
}

Tensors = dict[str, np.ndarray]


def published(folder: Path, config: PaliGemmaConfig = ONE) -> Tensors:
    """Writes a folder as Hugging Face has it; returns its tensors."""
    folder.mkdir()
    write_huggingface(folder, config, ARRAYS[config], lambda name, values: values, None)
    found = safetensors_files.read_safetensors(folder / safetensors_files.SINGLE_FILE)
    return {name: np.array(tensor[...]) for name, tensor in found.items()}


def rewrite(folder: Path, tensors: Tensors, **options) -> None:
    outgoing = [safetensors_files.Outgoing(name, values.shape, values.dtype, [values]) for name, values in tensors.items()]
    safetensors_files.write_safetensors(folder, outgoing, **options)


def assert_opens_as(folder: Path, config: PaliGemmaConfig) -> None:
    read = open_checkpoint(folder).arrays
    assert read.keys() == ARRAYS[config].keys()
    for name, values in ARRAYS[config].items():
        np.testing.assert_array_equal(read[name][...], values)


def inner(name: str) -> str:
    """The name in the memory of transformers 4.52 and later."""
    return "model." + name.replace("language_model.model.", "language_model.")


RENAMINGS = {
    "published": lambda name: name,
    "4.52": inner,
    "5": lambda name: inner(name).replace("vision_tower.vision_model.", "vision_tower."),
    "5 without model": lambda name: inner(name).removeprefix("model."),
    "data parallel": lambda name: f"module.{inner(name)}",
    "compiled": lambda name: f"_orig_mod.{inner(name)}",
    "compiled within": lambda name: inner(name).replace("language_model.", "language_model._orig_mod."),
    "sharded": lambda name: "_fsdp_wrapped_module." + inner(name).replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
    "peft, merged": lambda name: f"base_model.model.{inner(name)}",
    "within another": lambda name: f"policy.paligemma.{inner(name)}",
}


@pytest.mark.parametrize("config", [ONE, TWO], ids=["1", "2"])
@pytest.mark.parametrize("renaming", RENAMINGS.values(), ids=RENAMINGS)
def test_names_of_releases_and_wrappers_are_understood(tmp_path: Path, config, renaming: Callable[[str], str]) -> None:
    tensors = published(tmp_path / "x", config)
    rewrite(tmp_path / "x", {renaming(name): values for name, values in tensors.items()})
    assert_opens_as(tmp_path / "x", config)


@pytest.mark.parametrize("name", ["lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_outputs_matrix_stands_for_the_embedding_or_equals_it(tmp_path: Path, name: str, dtype) -> None:
    tensors = published(tmp_path / "x")
    embedding = tensors[EMBED]
    alone = {key: values for key, values in tensors.items() if key != EMBED}
    rewrite(tmp_path / "x", {**alone, name: embedding})
    assert_opens_as(tmp_path / "x", ONE)
    for rows in (128, 100, 110):  # padded, or not
        rewrite(tmp_path / "x", {**tensors, name: embedding[:rows].astype(dtype)})
        assert_opens_as(tmp_path / "x", ONE)
    other = embedding.copy()
    other[99, 3] = np.nextafter(other[99, 3], 1)
    rewrite(tmp_path / "x", {**tensors, name: other})
    with pytest.raises(DamagedError, match=f"{name} is tied to the embedding"):
        open_checkpoint(tmp_path / "x")
    other[99, 3], other[100:] = embedding[99, 3], 0  # rows of no token may differ
    rewrite(tmp_path / "x", {**tensors, name: other})
    assert_opens_as(tmp_path / "x", ONE)
    for shape in ((99, 16), (128, 8), (128,)):
        rewrite(tmp_path / "x", {**tensors, name: np.zeros(shape, np.float32)})
        with pytest.raises(DamagedError, match="is tied to the embedding"):
            open_checkpoint(tmp_path / "x")


def test_without_either_the_embedding_is_missing(tmp_path: Path) -> None:
    tensors = published(tmp_path / "x")
    rewrite(tmp_path / "x", {key: values for key, values in tensors.items() if key != EMBED})
    with pytest.raises(DamagedError, match=rf"missing: {EMBED}"):
        open_checkpoint(tmp_path / "x")


def test_a_parameter_that_is_there_under_two_names_is_one_or_damaged(tmp_path: Path) -> None:
    tensors = published(tmp_path / "x")
    name = "language_model.model.norm.weight"
    rewrite(tmp_path / "x", {**tensors, "model.language_model.norm.weight": tensors[name]})
    assert_opens_as(tmp_path / "x", ONE)
    rewrite(tmp_path / "x", {**tensors, "model.language_model.norm.weight": tensors[name] + 1})
    with pytest.raises(DamagedError, match=r"norm\.weight are the same parameter"):
        open_checkpoint(tmp_path / "x")


FREQUENCIES = 10_000.0 ** -(np.arange(0, 6, 2) / 6)


@pytest.mark.parametrize(
    ("name", "values", "wrong"),
    [
        ("vision_tower.vision_model.embeddings.position_ids", np.arange(4)[None], np.array([[0, 1, 3, 2]])),
        ("model.vision_tower.embeddings.position_ids", np.arange(4)[None], np.arange(1, 5)[None]),
        ("language_model.model.rotary_emb.inv_freq", FREQUENCIES.astype(np.float32), np.ones(3, np.float32)),
        (
            "model.language_model.layers.0.self_attn.rotary_emb.inv_freq",
            FREQUENCIES.astype(ml_dtypes.bfloat16),
            FREQUENCIES[:2],
        ),
    ],
)
def test_buffers_have_the_values_that_the_network_computes_with(tmp_path: Path, name: str, values, wrong) -> None:
    tensors = published(tmp_path / "x")
    rewrite(tmp_path / "x", {**tensors, name: values})
    assert_opens_as(tmp_path / "x", ONE)
    rewrite(tmp_path / "x", {**tensors, name: wrong})
    with pytest.raises(DamagedError, match="other values than the network computes with"):
        open_checkpoint(tmp_path / "x")


def test_what_is_not_used_is_named_and_what_is_unknown_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = published(tmp_path / "x")
    rewrite(tmp_path / "x", {**tensors, "vision_tower.vision_model.head.probe": np.zeros((1, 1, 8), np.float32)})
    assert_opens_as(tmp_path / "x", ONE)
    assert "1 tensors are not used, SigLIP's pooling head" in caplog.text
    for extra in ("action_expert.weight", "language_model.model.layers.2.mlp.up_proj.weight", "optimizer.state.0"):
        rewrite(tmp_path / "x", {**tensors, extra: np.zeros(3, np.float32)})
        with pytest.raises(DamagedError, match=f"unexpected: {extra}"):
            open_checkpoint(tmp_path / "x")


QUANTIZED = [
    "mlp.up_proj.weight.absmax",
    "mlp.up_proj.weight.quant_state.bitsandbytes__nf4",
    "mlp.up_proj.SCB",
    "mlp.up_proj.qweight",
    "mlp.up_proj.weight_scale",
]


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_weights_are_called_that(tmp_path: Path, name: str) -> None:
    tensors = published(tmp_path / "x")
    rewrite(tmp_path / "x", {**tensors, f"language_model.model.layers.0.{name}": np.zeros(3, np.uint8)})
    with pytest.raises(InputError, match=r"The weights are quantized(.|\n)*dequantize\(\)\.save_pretrained"):
        open_checkpoint(tmp_path / "x")


def test_quantization_in_the_configuration_is_named_with_its_method(tmp_path: Path) -> None:
    published(tmp_path / "x")
    values = json.loads((tmp_path / "x" / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "x" / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"quantized, by bitsandbytes(.|\n)*dequantize"):
        open_checkpoint(tmp_path / "x")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F4", "U32"])
def test_a_dtype_of_quantized_weights_is_no_damage(tmp_path: Path, dtype: str) -> None:
    header = json.dumps({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(InputError, match=rf"a is of dtype {dtype}, which is not read(.|\n)*quantized"):
        safetensors_files.read_safetensors(tmp_path / "x.safetensors")


def test_adapters_that_are_not_merged_are_called_that(tmp_path: Path) -> None:
    tensors = published(tmp_path / "x")
    name = "language_model.model.layers.0.self_attn.q_proj"
    tensors[f"{name}.base_layer.weight"] = tensors.pop(f"{name}.weight")
    tensors[f"{name}.lora_A.default.weight"] = np.zeros((2, 16), np.float32)
    rewrite(tmp_path / "x", {f"base_model.model.{key}": values for key, values in tensors.items()})
    with pytest.raises(InputError, match=r"adapters that are not merged(.|\n)*merge_and_unload"):
        open_checkpoint(tmp_path / "x")


def test_shards_that_are_missing_or_left_over_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(tmp_path / "x", published(tmp_path / "x"), shard_bytes=9000)
    (tmp_path / "x" / safetensors_files.SINGLE_FILE).unlink()
    shards = sorted((tmp_path / "x").glob("*.safetensors"))
    assert len(shards) > 2
    (tmp_path / "x" / "model-00009-of-00009.safetensors").write_bytes(b"of an older model")
    assert_opens_as(tmp_path / "x", ONE)
    assert "which are not used: model-00009-of-00009.safetensors" in caplog.text
    shards[1].unlink()
    with pytest.raises(DamagedError, match=rf"1 of the {len(shards)} files that the index names are missing: {shards[1].name}"):
        open_checkpoint(tmp_path / "x")


def test_of_two_kinds_of_weights_none_is_taken_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(tmp_path / "x", published(tmp_path / "x"), shard_bytes=9000)
    with pytest.raises(InputError, match=rf"2 weight files: {safetensors_files.INDEX_FILE}, {safetensors_files.SINGLE_FILE}"):
        open_checkpoint(tmp_path / "x")
    write_npz(tmp_path / "x" / "model.npz", ARRAYS[ONE])
    (tmp_path / "x" / "config.json").write_text(ONE.model_dump_json())
    assert_opens_as(tmp_path / "x", ONE)
    assert "model.npz is used" in caplog.text
    assert safetensors_files.SINGLE_FILE in caplog.text


@pytest.mark.parametrize("prefix", ["", "params/"])
def test_what_a_trainer_saved_beside_the_parameters_is_left_out_with_a_warning(tmp_path: Path, caplog, prefix: str) -> None:
    state = {
        "opt/0/mu/params/llm/final_norm/scale": np.zeros(16),
        "opt/0/count": np.array(7),
        "chrono/x": np.array(["a"], object),
    }
    np.savez(tmp_path / "x.npz", **{prefix + name: values for name, values in ARRAYS[ONE].items()}, **state)
    assert open_checkpoint(tmp_path / "x.npz", ONE).arrays.keys() == ARRAYS[ONE].keys()
    assert "2 arrays are not used: the optimizer's state (opt/)" in caplog.text
    assert "1 arrays are not used: the clock" in caplog.text
    np.savez(tmp_path / "x.npz", **ARRAYS[ONE], **{"ema/llm/final_norm/scale": np.zeros(16)})
    with pytest.raises(DamagedError, match="unexpected: ema/llm/final_norm/scale"):
        open_checkpoint(tmp_path / "x.npz", ONE)


def test_padded_rows_of_an_archives_embedding_are_not_used(tmp_path: Path) -> None:
    name = "llm/embedder/input_embedding"
    padded = np.concatenate([ARRAYS[ONE][name], np.ones((28, 16), np.float32)])
    write_npz(tmp_path / "x.npz", ARRAYS[ONE] | {name: padded})
    read = open_checkpoint(tmp_path / "x.npz", ONE).arrays[name]
    assert read.shape == (100, 16)
    np.testing.assert_array_equal(read[...], ARRAYS[ONE][name])
    np.testing.assert_array_equal(read[40:, 3], ARRAYS[ONE][name][40:, 3])
    verify(read)
    write_npz(tmp_path / "x.npz", ARRAYS[ONE] | {name: np.ones((165, 16), np.float32)})
    with pytest.raises(DamagedError, match="mis-shaped"):
        open_checkpoint(tmp_path / "x.npz", ONE)


def test_a_padded_vocabulary_is_that_of_the_published_variant() -> None:
    config = VARIANTS["paligemma2-3b-pt-224"]
    shapes = {name: np.broadcast_to(np.float32(0), shape) for name, shape in parameter_shapes(config).items()}
    name = "llm/embedder/input_embedding"
    assert infer_config(shapes | {name: np.broadcast_to(np.float32(0), (257_216, 2304))}) == config
    assert infer_config(shapes | {name: np.broadcast_to(np.float32(0), (257_153, 2304))}).llm.vocab_size == 257_153


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", "<f4"])
def test_arrays_of_either_byte_order_are_read(tmp_path: Path, save, dtype: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    save(tmp_path / "x.npz", c=values, f=np.asfortranarray(values), scalar=np.array(1.5, dtype), empty=np.empty((0, 2), dtype))
    read = read_npz(tmp_path / "x.npz")
    native = np.dtype(dtype).newbyteorder("=")
    for name in ("c", "f"):
        assert read[name].dtype == native
        for index in (..., 1, (slice(0, 1), 2), (..., slice(1, 3))):
            np.testing.assert_array_equal(read[name][index], values[index])
            assert read[name][index].dtype == native
        for wanted in (native, np.dtype(np.float32)):
            to = np.empty((2, 3, 4), wanted)
            read[name].read_into(to)  # which compares the checksum
            np.testing.assert_array_equal(to, values)
        verify(read[name])
    assert read["scalar"][...] == 1.5
    assert read["empty"][...].shape == (0, 2)
    first = FirstRows(read["c"], 1)
    to = np.empty((1, 3, 4), np.float32)
    first.read_into(to)
    np.testing.assert_array_equal(to, values[:1])


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_control_characters_in_an_arrays_name_do_not_reach_the_terminal(tmp_path: Path, form: str) -> None:
    name, values = "a\x1b[2J\x07b", np.zeros(3, np.float32)
    if form == "npz":
        write_npz(tmp_path / "x.npz", ARRAYS[ONE] | {name: values})
        path, config = tmp_path / "x.npz", ONE
    else:
        rewrite(tmp_path / "x", {**published(tmp_path / "x"), name: values})
        path, config = tmp_path / "x", None
    with pytest.raises(DamagedError, match="unexpected: a") as caught:
        open_checkpoint(path, config)
    assert not {"\x1b", "\x07"} & set(str(caught.value))
