"""Checkpoints that are stored quantized: the same codes as quantizing on loading, and clear words for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import paligemma
from components.fetch_checkpoint.__main__ import run as fetch_checkpoint
from paligemma.checkpoints.export import export
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.quantize import quantize_array
from paligemma.checkpoints.quantized_files import DESCRIPTION_FILE, QuantizedArray
from paligemma.checkpoints.safetensors_files import SINGLE_FILE
from paligemma.errors import DamagedError, InputError
from paligemma.models.weight_formats import QuantizeConfig, WeightFormat, weight_format

BASE = open_checkpoint("embedded:tiny")
LINEAR = "llm/layers/mlp/linear"


@pytest.fixture(scope="module", params=["int8", "nf4"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param) / "checkpoint"
    export("embedded:tiny", folder, "big_vision", request.param)
    return request.param, folder


def altered(folder: Path, to: Path, edit) -> Path:
    """A copy of a checkpoint whose tensors are edited."""
    to.mkdir()
    for name in ("config.json", DESCRIPTION_FILE):
        (to / name).write_bytes((folder / name).read_bytes())
    tensors = safetensors.numpy.load_file(folder / SINGLE_FILE)
    edit(tensors)
    safetensors.numpy.save_file(tensors, to / SINGLE_FILE)
    return to


def test_codes_and_scales_are_those_that_loading_makes(stored) -> None:
    kind, folder = stored
    found = open_checkpoint(folder)
    assert found.config == BASE.config
    for name, array in BASE.arrays.items():
        form = weight_format(name, array.shape, kind, QuantizeConfig())
        if form is None:
            np.testing.assert_array_equal(found.arrays[name][...], array[...].astype(np.float16))
            continue
        for one, other in zip(quantize_array(found.arrays[name], form), quantize_array(array, form), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_part_of_a_parameter_is_that_part_of_the_whole(stored) -> None:
    array = open_checkpoint(stored[1]).arrays[LINEAR]
    whole = array[...]
    assert whole.shape == array.shape
    for index in (2, slice(1, 3), (1, 5), (slice(None), slice(3, 40), slice(7, 9)), (..., 3)):
        np.testing.assert_array_equal(array[index], whole[index])


def test_it_is_loaded_as_the_base_is_when_it_is_quantized_on_loading(stored) -> None:
    kind, folder = stored
    tokens, images = np.full((1, 6), 5), np.zeros((1, 32, 32, 3), np.float32)
    ours, expected = (model.logits(images, tokens, 0 * tokens) for model in (
        paligemma.load(folder), paligemma.load("embedded:tiny", dtype=kind)
    ))  # fmt: skip
    np.testing.assert_allclose(ours, expected, atol=0.02)  # what is not quantized is float16 there, and float32 here


def test_it_takes_a_fraction_of_the_bytes(stored) -> None:
    kind, folder = stored
    plain = sum(4 * np.prod(array.shape) for array in BASE.arrays.values())
    assert (folder / SINGLE_FILE).stat().st_size < plain * (0.28 if kind == "int8" else 0.25)


def test_another_format_is_refused_because_errors_would_add_up(stored) -> None:
    kind, folder = stored
    array = open_checkpoint(folder).arrays[LINEAR]
    assert isinstance(array, QuantizedArray)
    other = WeightFormat("int8" if kind == "nf4" else "nf4", (-2,), 0 if kind == "nf4" else 64)
    with pytest.raises(InputError, match=f"weights are {kind}.*, not {other.kind}"):
        quantize_array(array, other)


@pytest.mark.parametrize(
    "edit",
    [
        lambda tensors: tensors.pop(f"{LINEAR}.scales"),
        lambda tensors: tensors.update({f"{LINEAR}.codes": tensors[f"{LINEAR}.codes"][:, :4]}),
        lambda tensors: tensors.update({f"{LINEAR}.scales": tensors[f"{LINEAR}.scales"].astype(np.float16)}),
        lambda tensors: tensors.update({f"{LINEAR}.codes": tensors[f"{LINEAR}.codes"].astype(np.int32)}),
    ],
)
def test_what_is_not_as_described_is_named(stored, edit, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=f"(?s){LINEAR}.*export the checkpoint again"):
        open_checkpoint(altered(stored[1], tmp_path / "x", edit))


def test_a_parameter_that_is_missing_or_too_much_is_named(stored, tmp_path: Path) -> None:
    for number, edit in enumerate((lambda t: t.pop("img/pos_embedding"), lambda t: t.update(more=np.zeros(3, np.float32)))):
        with pytest.raises(DamagedError, match="does not fit the architecture"):
            open_checkpoint(altered(stored[1], tmp_path / str(number), edit))


@pytest.mark.parametrize("values", [[], {"kind": "int4"}, {"kind": "int8", "quantize": {"groups": []}}, {"schema_version": 2}])
def test_a_description_that_cannot_be_read_is_refused(values: object, stored, tmp_path: Path) -> None:
    folder = altered(stored[1], tmp_path / "x", lambda tensors: None)
    (folder / DESCRIPTION_FILE).write_text(json.dumps(values))
    with pytest.raises(DamagedError, match=r"description of quantized weights"):
        open_checkpoint(folder)


def test_transformers_does_not_read_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="transformers does not read int8 weights"):
        export("embedded:tiny", tmp_path / "x", "huggingface", "int8")


def test_fetch_checkpoint_takes_it_as_any_other(stored, tmp_path: Path) -> None:
    """So that a pipeline can begin with it."""
    fetch_checkpoint(source=str(stored[1]), output=str(tmp_path / "fetched"))
    fetched, given = (open_checkpoint(folder) for folder in (tmp_path / "fetched", stored[1]))
    assert fetched.weights_sha256 == given.weights_sha256
    ours, theirs = (quantize_array(one.arrays[LINEAR], given.arrays[LINEAR].form) for one in (fetched, given))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
