"""Hugging Face folders in and out, without `transformers` (for that, see tests/parity)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

import paligemma
from paligemma.artifacts.record import read_record
from paligemma.artifacts.store import produce
from paligemma.checkpoints import safetensors_files
from paligemma.checkpoints.export import export
from paligemma.checkpoints.huggingface.config import huggingface_config, parse_huggingface_config
from paligemma.checkpoints.huggingface.mapping import EMBEDDING, from_tensors, tensor_shapes
from paligemma.checkpoints.huggingface.write import write_huggingface
from paligemma.checkpoints.lazy import BLOCK, Stacked, blocks, copy, empty
from paligemma.checkpoints.merge import merged_arrays
from paligemma.checkpoints.npz import read_npz, write_npz
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.parameters import place
from paligemma.checkpoints.safetensors_files import INDEX_FILE, SINGLE_FILE, Tensor, read_safetensors
from paligemma.checkpoints.tuned import Base, TunedDescription, read_tuned, write_tuned
from paligemma.errors import DamagedError, InputError
from paligemma.models.config import VARIANTS, DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.models.lora_factors import LoraConfig
from paligemma.models.parameter_shapes import parameter_shapes
from paligemma.runtime.sharding import fsdp_sharding, make_mesh

SMALL = PaliGemmaConfig(
    img=VisionConfig(image_size=16, patch_size=8, width=8, depth=2, mlp_dim=12, num_heads=2),
    llm=DecoderConfig(width=16, depth=3, mlp_dim=24, num_heads=8, num_kv_heads=2, head_dim=4, vocab_size=100),
)
FUSED = SMALL.model_copy(update={"llm": SMALL.llm.model_copy(update={"num_kv_heads": 8, "post_norms": True})})


def random_arrays(config: PaliGemmaConfig, dtype=np.float16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in parameter_shapes(config).items()}


def write_folder(folder: Path, config: PaliGemmaConfig, arrays: dict[str, np.ndarray], **options) -> Path:
    folder.mkdir()
    write_huggingface(folder, config, arrays, lambda name, values: values, None, **options)
    return folder


def rename(folder: Path, names) -> None:
    """Writes a folder's tensors anew, under other names; None drops one."""
    tensors = read_safetensors(folder / SINGLE_FILE)
    kept = [(names(name), np.array(tensor[...])) for name, tensor in tensors.items()]
    safetensors_files.write_safetensors(
        folder, [safetensors_files.Outgoing(name, values.shape, values.dtype, [values]) for name, values in kept if name]
    )


@pytest.mark.parametrize("config", [SMALL, FUSED], ids=["small", "fused"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_a_round_trip_keeps_every_bit(tmp_path: Path, config: PaliGemmaConfig, dtype) -> None:
    arrays = random_arrays(config, dtype)
    folder = write_folder(tmp_path / "x", config, arrays, shard_bytes=2000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config == config
    assert checkpoint.arrays.keys() == arrays.keys()
    for name, values in arrays.items():
        assert checkpoint.arrays[name].dtype == dtype
        np.testing.assert_array_equal(checkpoint.arrays[name][...], values)


def test_slices_are_those_of_the_whole_and_devices_get_theirs(tmp_path: Path) -> None:
    arrays = random_arrays(SMALL)
    read = open_checkpoint(write_folder(tmp_path / "x", SMALL, arrays)).arrays
    mesh = make_mesh()
    for name, values in arrays.items():
        for axis in range(values.ndim):
            index = (slice(None),) * axis + (slice(values.shape[axis] // 2, None),)
            np.testing.assert_array_equal(read[name][index], values[index])
        np.testing.assert_array_equal(read[name][-1], values[-1])
        placed = place(read[name], np.dtype(np.float32), fsdp_sharding(mesh, values.shape))
        np.testing.assert_array_equal(jax.device_get(placed), values.astype(np.float32))


def test_a_slice_reads_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = open_checkpoint(write_folder(tmp_path / "x", SMALL, random_arrays(SMALL))).arrays
    opened = []
    values = Tensor.values
    monkeypatch.setattr(Tensor, "values", lambda self: opened.append(self) or values(self))
    piece = read["llm/layers/attn/kv_einsum/w"][1:2, 0, :, 2:4]
    assert piece.shape == (1, 2, 2, 4)
    assert len(opened) == 1  # one layer's keys, of which a memory map reads the rest on demand


def test_the_names_of_every_release_are_understood(tmp_path: Path) -> None:
    arrays = random_arrays(SMALL)
    folder = write_folder(tmp_path / "x", SMALL, arrays)

    def newer(name: str) -> str:
        name = name.replace("language_model.model.", "language_model.")
        return "model." + name.replace("vision_tower.vision_model.", "vision_tower.")

    published = set(read_safetensors(folder / SINGLE_FILE))
    rename(folder, newer)
    renamed = set(read_safetensors(folder / SINGLE_FILE))
    assert not published & renamed
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in renamed
    for name, values in arrays.items():
        np.testing.assert_array_equal(open_checkpoint(folder).arrays[name][...], values)


def test_the_padding_of_the_vocabulary_never_wins(tmp_path: Path) -> None:
    arrays = random_arrays(SMALL, np.float32)
    tensors = read_safetensors(write_folder(tmp_path / "x", SMALL, arrays) / SINGLE_FILE)
    embedding = tensors[EMBEDDING][...]
    assert embedding.shape == (128, 16)
    mean = arrays["llm/embedder/input_embedding"].mean(axis=0)
    np.testing.assert_allclose(embedding[100:], np.broadcast_to(mean, (28, 16)), atol=1e-6)
    logits = np.random.default_rng(0).normal(size=(50, 16)) @ embedding.T
    assert (logits.argmax(axis=1) < 100).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_every_published_variant_has_its_size_in_their_names(name: str) -> None:
    """Nothing is allocated. The vocabulary is padded to 257,216, as published."""
    config = VARIANTS[name]
    ours, theirs = parameter_shapes(config), tensor_shapes(config)
    assert sum(np.prod(s) for s in theirs.values()) == sum(np.prod(s) for s in ours.values())
    values = huggingface_config(config, np.dtype(np.float32), 257_152)
    assert values["text_config"]["vocab_size"] == 257_216
    assert values["image_token_index"] == values["vocab_size"] == 257_152
    assert parse_huggingface_config(values, "x") == config


def test_what_the_published_configurations_leave_out_is_transformers_default() -> None:
    """As google/paligemma-3b-pt-224 and google/paligemma2-3b-pt-448 have it."""
    vision = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    }
    first = {
        "model_type": "paligemma", "image_token_index": 257152, "vision_config": vision,
        "text_config": {
            "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8,
            "num_hidden_layers": 18, "num_key_value_heads": 1, "vocab_size": 257216,
        },
    }  # fmt: skip
    assert parse_huggingface_config(first, "x") == VARIANTS["paligemma-3b-pt-224"]
    second = {
        "model_type": "paligemma", "image_token_index": 257152, "vision_config": vision | {"image_size": 448},
        "text_config": {"model_type": "gemma2", "vocab_size": 257216, "final_logit_softcapping": None},
    }  # fmt: skip
    assert parse_huggingface_config(second, "x") == VARIANTS["paligemma2-3b-pt-448"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model_type",), "gemma3", "not of a PaliGemma"),
        (("text_config", "model_type"), "llama", "not of a PaliGemma"),
        (("text_config", "rms_norm_eps"), 1e-5, "rms_norm_eps is 1e-05, not 1e-06"),
        (("text_config", "attention_bias"), True, "attention_bias"),
        (("text_config", "rope_parameters"), {"rope_theta": 1e6, "rope_type": "default"}, "rope_theta is 1000000.0"),
        (("text_config", "head_dim"), 7, "needs an even one"),
        (("tie_word_embeddings",), False, "tie_word_embeddings"),
        (("vision_config", "hidden_act"), "gelu", "hidden_act"),
        (("text_config", "vocab_size"), "many", "configuration is wrong"),
        (("text_config", "rope_parameters"), [1], "configuration is wrong"),
        (("text_config", "hidden_size"), 2.5, "llm.width"),
        (("vision_config", "patch_size"), 0, "img.patch_size"),
    ],
)
def test_what_our_network_does_not_compute_is_refused(path: tuple, value: object, message: str) -> None:
    values = huggingface_config(SMALL, np.dtype(np.float32), None)
    where = values
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = value
    with pytest.raises(InputError, match=re.escape(message)):
        parse_huggingface_config(values, "x")


def test_missing_and_misshaped_tensors_are_named_with_the_nearest_variant(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", SMALL, random_arrays(SMALL))
    rename(folder, lambda name: None if name == "language_model.model.norm.weight" else name)
    with pytest.raises(DamagedError) as caught:
        open_checkpoint(folder)
    assert "missing: language_model.model.norm.weight." in str(caught.value)
    assert "nearest published variant is paligemma-3b-pt-" in str(caught.value)
    shapes = {name: Tensor(Path(), 0, shape, np.dtype(np.float16)) for name, shape in tensor_shapes(SMALL).items()}
    wider = SMALL.model_copy(update={"llm": SMALL.llm.model_copy(update={"mlp_dim": 32})})
    with pytest.raises(DamagedError, match=r"layers.0.mlp.gate_proj.weight is \(24, 16\), not \(32, 16\)"):
        from_tensors(wider, shapes, "x")


def test_a_folder_without_a_configuration_asks_for_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", SMALL, random_arrays(SMALL))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        open_checkpoint(folder)
    assert open_checkpoint(folder, SMALL).config == SMALL


def test_another_image_size_resamples_the_positions(tmp_path: Path) -> None:
    arrays = random_arrays(SMALL, np.float32)
    folder = write_folder(tmp_path / "x", SMALL, arrays)
    values = json.loads((folder / "config.json").read_text())
    values["vision_config"]["image_size"] = 24
    (folder / "config.json").write_text(json.dumps(values))
    found = open_checkpoint(folder).arrays["img/pos_embedding"][0].reshape(3, 3, 8)
    grid = arrays["img/pos_embedding"][0].reshape(2, 2, 8)
    np.testing.assert_array_equal(found[::2, ::2], grid)
    np.testing.assert_allclose(found[1, 1], grid.mean(axis=(0, 1)), atol=1e-6)


def test_export_of_a_hugging_face_folder_and_back_gives_equal_files(tmp_path: Path) -> None:
    export("embedded:tiny", tmp_path / "a", "big_vision")
    export(tmp_path / "a", tmp_path / "b", "huggingface")
    export(tmp_path / "b", tmp_path / "c", "big_vision")
    for name in ("checkpoint.npz", "config.json", "tokenizer.model"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    pixels, prompt = np.zeros((8, 8, 3), np.uint8), "answer en what is shown?"
    answers = {paligemma.load(tmp_path / name).generate([pixels], [prompt], 8)[0] for name in "abc"}
    assert answers == set(paligemma.load("embedded:tiny").generate([pixels], [prompt], 8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_has_the_dtype_that_is_asked_for(tmp_path: Path, dtype: str) -> None:
    export("embedded:tiny", tmp_path / "x", "huggingface", dtype)
    export("embedded:tiny", tmp_path / "y", "big_vision", dtype)
    base = open_checkpoint("embedded:tiny").arrays
    for folder in ("x", "y"):
        for name, array in open_checkpoint(tmp_path / folder).arrays.items():
            assert array.dtype.name == dtype
            np.testing.assert_array_equal(array[...], base[name][...].astype(array.dtype))
    assert json.loads((tmp_path / "x" / "config.json").read_text())["torch_dtype"] == dtype


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A tuned model with an adapter and a trained norm."""
    base, rng = open_checkpoint("embedded:tiny"), np.random.default_rng(0)
    trained = {
        "llm/layers/attn/lora_kv_einsum/a": rng.normal(size=(4, 2, 128, 2)).astype(np.float32),
        "llm/layers/attn/lora_kv_einsum/b": rng.normal(size=(4, 2, 2, 1, 32)).astype(np.float32),
        "llm/final_norm/scale": np.full(128, 0.2, np.float32),
    }
    lora = LoraConfig(rank=2, alpha=6.0, targets=("kv_einsum",))
    origin = Base(uri=base.location, weights_file=base.weights.name, weights_sha256=base.weights_sha256)
    with produce(tmp_path / "tuned", "tuned model", "test", {}, []) as draft:
        write_tuned(draft.folder, trained, TunedDescription(base=origin, config=base.config, recipe={}, lora=lora, steps=1))
    return tmp_path / "tuned"


@pytest.mark.parametrize("format", ["big_vision", "huggingface"])
def test_a_tuned_model_is_merged_with_its_base(tmp_path: Path, tuned: Path, format: str) -> None:
    export(tuned, tmp_path / "out", format)
    base, arrays = open_checkpoint("embedded:tiny").arrays, read_tuned(tuned).arrays
    merged = open_checkpoint(tmp_path / "out").arrays
    name, lora = "llm/layers/attn/kv_einsum/w", "llm/layers/attn/lora_kv_einsum"
    added = 3.0 * np.einsum("lcdr,lcrnh->lcndh", arrays[f"{lora}/a"], arrays[f"{lora}/b"])
    np.testing.assert_allclose(merged[name][...], base[name][...] + added, atol=1e-5)
    np.testing.assert_array_equal(merged["llm/final_norm/scale"][...], arrays["llm/final_norm/scale"])
    others = base.keys() - {name, "llm/final_norm/scale"}
    assert merged.keys() == base.keys()
    assert {merged[other].dtype for other in others} == {np.dtype(np.float16)}
    assert all((merged[other][...] == base[other][...]).all() for other in others)
    record = read_record(tmp_path / "out", "checkpoint")
    assert [entry.role for entry in record.inputs] == ["checkpoint", "tuned model"]


def test_an_adapter_is_merged_where_it_is_indexed(tuned: Path) -> None:
    merged = merged_arrays(open_checkpoint("embedded:tiny").arrays, read_tuned(tuned))["llm/layers/attn/kv_einsum/w"]
    whole = merged[...]
    for index in (1, (2, 1, ..., slice(3, 5)), (slice(1, 3), 0), (..., slice(None, 4))):
        np.testing.assert_allclose(merged[index], whole[index], atol=1e-5)


def test_a_value_beyond_float16_is_not_made_infinite(tmp_path: Path) -> None:
    arrays = random_arrays(SMALL, np.float32)
    arrays["llm/final_norm/scale"][3] = 1e6
    write_npz(tmp_path / "x.npz", arrays)
    with pytest.raises(InputError, match="llm/final_norm/scale has values that float16 cannot hold"):
        export(tmp_path / "x.npz", tmp_path / "out", "big_vision", "float16")
    assert not (tmp_path / "out").exists()


def test_blocks_cover_an_array_in_order() -> None:
    values = np.arange(3 * 5 * 7).reshape(3, 5, 7)
    for most in (1, 8, 50, 56, 100, 10_000):
        pieces = [values[block] for block in blocks(values.shape, 8, most)]
        assert np.concatenate([piece.ravel() for piece in pieces]).tolist() == values.ravel().tolist()
        assert all(piece.nbytes <= max(most, 8) for piece in pieces)
    assert BLOCK < 100_000_000


def test_stacked_arrays_take_what_numpy_takes() -> None:
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    stacked = Stacked([Stacked(list(part)) for part in values])
    for index in (..., 1, (0, 2), (slice(1, 2), ..., 3), (slice(None), slice(0, 2)), (-1, -1, -1)):
        np.testing.assert_array_equal(stacked[index], values[index])
    with pytest.raises(IndexError):
        stacked[2]
    with pytest.raises(IndexError):
        stacked[::2]


def test_copies_in_another_order_are_those_of_numpy() -> None:
    values = np.arange(3 * 40 * 50).reshape(3, 40, 50)
    for order in ((0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 0, 2), (1, 2, 0)):
        wanted = values.transpose(order)
        copied = empty(wanted.shape, wanted.dtype)
        copy(wanted, copied)
        np.testing.assert_array_equal(copied, wanted)
        assert copied.ctypes.data % 64 == 0


def test_a_plain_folder_of_npz_is_preferred(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", SMALL, random_arrays(SMALL))
    assert open_checkpoint(folder).weights.name == SINGLE_FILE
    write_npz(folder / "model.npz", random_arrays(SMALL))
    assert open_checkpoint(folder).weights.name == "model.npz"
    assert read_npz(folder / "model.npz").keys() == parameter_shapes(SMALL).keys()
    assert not (folder / INDEX_FILE).exists()
