"""Opening checkpoints: inference of the architecture, and errors that say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import paligemma
from paligemma.checkpoints.architecture import check_parameters, infer_config
from paligemma.checkpoints.npz import write_npz
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.errors import DamagedError, InputError
from paligemma.models.config import VARIANTS, DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.models.parameter_shapes import parameter_shapes

SMALL = PaliGemmaConfig(
    img=VisionConfig(image_size=16, patch_size=8, width=8, depth=1, mlp_dim=16, num_heads=2),
    llm=DecoderConfig(width=8, depth=1, mlp_dim=16, num_heads=2, num_kv_heads=2, head_dim=4, vocab_size=16),
)


class Shape:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


def zeros(config: PaliGemmaConfig) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float16) for name, shape in parameter_shapes(config).items()}


@pytest.mark.parametrize("config", [SMALL, *VARIANTS.values()], ids=["small", *VARIANTS])
def test_the_architecture_is_inferred_from_shapes(config: PaliGemmaConfig) -> None:
    assert infer_config({name: Shape(shape) for name, shape in parameter_shapes(config).items()}) == config


def test_equal_heads_have_one_fused_parameter() -> None:
    assert parameter_shapes(SMALL)["llm/layers/attn/qkv_einsum/w"] == (1, 3, 2, 8, 4)


def test_missing_unexpected_and_misshaped_parameters_are_named(tmp_path: Path) -> None:
    arrays = zeros(SMALL)
    arrays["llm/final_norm/scal"] = arrays.pop("llm/final_norm/scale")
    arrays["img/head/bias"] = np.zeros(9, np.float16)
    with pytest.raises(DamagedError) as caught:
        check_parameters(SMALL, arrays, tmp_path)
    message = str(caught.value)
    assert "missing: llm/final_norm/scale" in message
    assert "unexpected: llm/final_norm/scal (for llm/final_norm/scale?)" in message
    assert "img/head/bias is (9,), not (8,)" in message


def test_the_nearest_variant_is_named() -> None:
    arrays = {name: Shape(shape) for name, shape in parameter_shapes(VARIANTS["paligemma2-3b-pt-224"]).items()}
    arrays.pop("llm/final_norm/scale")
    with pytest.raises(DamagedError, match="nearest published variant is paligemma2-3b-pt-224"):
        check_parameters(VARIANTS["paligemma2-3b-pt-224"], arrays, "x")


def test_shapes_of_another_resolution_keep_the_published_query_scaling() -> None:
    config = VARIANTS["paligemma2-28b-pt-224"]
    other = config.model_copy(update={"img": VisionConfig(image_size=672)})
    inferred = infer_config({name: Shape(shape) for name, shape in parameter_shapes(other).items()})
    assert inferred == other
    assert inferred.llm.query_scale == 144**-0.5


def test_a_part_of_a_checkpoint_lists_what_is_missing_from_the_nearest_variant() -> None:
    arrays = {name: Shape(shape) for name, shape in parameter_shapes(VARIANTS["paligemma-3b-pt-448"]).items()}
    del arrays["img/embedding/kernel"], arrays["llm/layers/mlp/linear"]
    with pytest.raises(DamagedError) as caught:
        infer_config(arrays, "x.npz")
    message = str(caught.value)
    assert "Compared with paligemma-3b-pt-448, missing: img/embedding/kernel, llm/layers/mlp/linear." in message
    assert "x.npz" in message


def test_another_image_size_resamples_the_positions(tmp_path: Path) -> None:
    arrays = zeros(SMALL)
    arrays["img/pos_embedding"][0] = np.arange(4)[:, None]
    write_npz(tmp_path / "x.npz", arrays)
    larger = SMALL.model_copy(update={"img": SMALL.img.model_copy(update={"image_size": 24})})
    checkpoint = open_checkpoint(tmp_path / "x.npz", larger)
    assert checkpoint.arrays["img/pos_embedding"].dtype == np.float16
    assert checkpoint.arrays["img/pos_embedding"][0, :, 0].tolist() == [0, 0.5, 1, 1, 1.5, 2, 2, 2.5, 3]
    assert paligemma.load(tmp_path / "x.npz", larger).config.img.num_patches == 9


def test_any_other_npz_is_not_a_checkpoint(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(DamagedError, match="not a PaliGemma checkpoint"):
        open_checkpoint(tmp_path / "x.npz")


def test_a_folder_with_several_files_asks_which(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_npz(tmp_path / name, zeros(SMALL))
    with pytest.raises(InputError, match="2 weight files"):
        open_checkpoint(tmp_path)


def test_config_beside_the_weights_is_read_and_an_argument_wins(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", zeros(SMALL))
    capped = SMALL.model_dump()
    capped["llm"]["attn_logits_softcap"] = 5.0
    (tmp_path / "config.json").write_text(json.dumps(capped))
    assert open_checkpoint(tmp_path).config.llm.attn_logits_softcap == 5.0
    assert open_checkpoint(tmp_path, SMALL).config == SMALL


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("paligemma-3b-pt-225", "did you mean 'paligemma-3b-pt-224'"),
        ({"llm": {"widht": 4}}, "llm.widht: unknown key, did you mean 'width'"),
        ({"img": {"image_size": 15}}, "not a multiple of patch_size"),
        ({"llm": {"num_heads": 3, "num_kv_heads": 2}}, "not a multiple of num_kv_heads"),
    ],
)
def test_wrong_configurations_are_explained(config, message: str) -> None:
    with pytest.raises(InputError, match=message):
        paligemma.load("embedded:tiny", config)


@pytest.mark.parametrize("name", ["embedded:tinny", "embedded:../tiny", "embedded:"])
def test_unknown_embedded_checkpoints(name: str) -> None:
    with pytest.raises(InputError, match="no embedded checkpoint"):
        open_checkpoint(name)


def test_the_embedded_checkpoint_is_small_and_float16() -> None:
    checkpoint = open_checkpoint("embedded:tiny")
    assert sum(path.stat().st_size for path in checkpoint.weights.parent.iterdir()) < 5_000_000
    assert {array.dtype for array in checkpoint.arrays.values()} == {np.dtype(np.float16)}
    assert infer_config(checkpoint.arrays) == checkpoint.config


def test_load_keeps_the_files_dtype_unless_told() -> None:
    from paligemma.checkpoints.parameters import parameters_by_name

    for dtype, held in ((None, "float16"), ("float32", "float32"), ("bfloat16", "bfloat16")):
        module = paligemma.load("embedded:tiny", dtype=dtype).module
        assert {str(variable.get_value().dtype) for variable in parameters_by_name(module).values()} == {held}


def test_loading_compiles_no_program_and_leaves_given_arrays_to_their_owner(caplog: pytest.LogCaptureFixture) -> None:
    from paligemma.checkpoints.parameters import place

    lazy = open_checkpoint("embedded:tiny").arrays["llm/embedder/input_embedding"]
    given = np.ones((64, 128), np.float32)
    with jax.log_compiles():
        read, placed = place(lazy, np.dtype(np.float16), None), place(given, given.dtype, None)
    assert not [record for record in caplog.records if "XLA compilation" in record.message]
    np.testing.assert_array_equal(read, lazy[...])
    given[:] = 2
    np.testing.assert_array_equal(placed, 1)
