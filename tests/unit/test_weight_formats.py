"""The numbers of quantized weights, against a definition written out weight by weight."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from pydantic import ValidationError

from paligemma.checkpoints import quantize as loading
from paligemma.checkpoints.quantize import quantize_array
from paligemma.models.config import VARIANTS
from paligemma.models.parameter_shapes import parameter_shapes
from paligemma.models.weight_formats import (
    NF4_LEVELS,
    QuantizeConfig,
    WeightFormat,
    dequantize,
    quantize,
    weight_format,
)

FORMS = {
    "int8": WeightFormat("int8", (-2,)),
    "int8 over two axes": WeightFormat("int8", (-3, -2)),
    "int8 rows": WeightFormat("int8", (-1,)),
    "nf4": WeightFormat("nf4", (-2,), 4),
    "nf4 over two axes": WeightFormat("nf4", (-3, -2), 2),
}
SHAPE = (2, 3, 8, 5)


def by_hand(weight: np.ndarray, form: WeightFormat) -> np.ndarray:
    """The weights that come back, one by one in Python's float64, rounded to float32 where the format is."""
    found = np.empty(weight.shape, np.float32)
    for place in np.ndindex(weight.shape):
        mates: list = list(place)
        for axis in form.inputs:
            mates[axis] = slice(None)
        if form.block:
            mates = list(place)
            start = place[form.inputs[-1]] // form.block * form.block
            mates[form.inputs[-1]] = slice(start, start + form.block)
        largest = np.float32(np.abs(weight[tuple(mates)]).max())
        scale = largest / np.float32(127.5) if form.kind == "int8" else largest
        scale = np.float32(1) if scale < math.sqrt(np.finfo(np.float32).tiny) else scale
        in_steps = np.float32(weight[place] / scale)
        if form.kind == "int8":
            level = np.float32(min(127, round(float(in_steps))))  # Python rounds half to even
        else:
            level = np.float32(min(NF4_LEVELS, key=lambda one: abs(np.float32(one) - in_steps)))
        found[place] = level * scale
    return found


WEIGHTS = {
    "normal": np.random.default_rng(0).standard_normal(SHAPE),
    "heavy outliers": np.random.default_rng(1).standard_t(1.5, SHAPE),
    "zero": np.zeros(SHAPE),
    "one in zeros": np.eye(8, 5)[None, None] * np.ones(SHAPE),
    "tiny": np.full(SHAPE, 1e-30),
    "equal": np.full(SHAPE, -0.3),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_what_comes_back_is_the_nearest_level_of_every_weight(weight: np.ndarray, form: WeightFormat) -> None:
    weight = weight.astype(np.float32)
    codes, scales = quantize(weight, form)
    assert (codes.shape, scales.shape) == form.shapes(weight.shape)
    assert (codes.dtype, scales.dtype) == (form.codes_dtype, np.float32)
    np.testing.assert_array_equal(dequantize(codes, scales, form), by_hand(weight, form))


@given(some.arrays(np.float16, (2, 8, 3), elements=st.floats(-1000, 1000, width=16)), st.sampled_from(("int8", "nf4")))
def test_no_weight_is_further_off_than_half_a_step(weight: np.ndarray, kind) -> None:
    form = FORMS[kind]
    error = np.abs(dequantize(*quantize(weight, form), form) - weight.astype(np.float32))
    largest = np.abs(weight.astype(np.float32)).max(axis=-2, keepdims=True)
    widest = 0.5 / 127.5 if kind == "int8" else (NF4_LEVELS[1] - NF4_LEVELS[0]) / 2
    assert (error <= largest * widest * 1.0001 + 1e-30).all()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("piece", [1, 50, 1 << 23])
def test_a_weight_that_is_read_in_pieces_has_the_same_codes(
    form: WeightFormat, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = WEIGHTS["normal"].astype(np.float16)
    expected = quantize(weight, form)
    monkeypatch.setattr(loading, "_PIECE", piece)
    for found, one in zip(quantize_array(weight, form), expected, strict=True):
        np.testing.assert_array_equal(found, one)


def test_a_weight_is_never_in_memory_as_floats_but_for_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    class Stored:
        shape, dtype = (6, 2, 64, 32), np.dtype(np.float16)

        def __getitem__(self, index) -> np.ndarray:
            values = np.broadcast_to(np.float16(0.5), self.shape)[index]
            read.append(values.size)
            return values

    monkeypatch.setattr(loading, "_PIECE", 512)
    codes, _ = quantize_array(Stored(), FORMS["int8"])
    assert codes.shape == Stored.shape
    assert max(read) == 4 * 512
    assert sum(read) == codes.size


@pytest.mark.parametrize("variant", ["paligemma-3b-pt-224", "paligemma2-10b-pt-448", "paligemma2-28b-pt-224"])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_nearly_all_of_a_published_model_is_quantized(variant: str, kind) -> None:
    held, wide, total = 0, 0, 0
    for name, shape in parameter_shapes(VARIANTS[variant]).items():
        size = math.prod(shape)
        form = weight_format(name, shape, kind, QuantizeConfig())
        total += size
        if form is None:
            wide += size
            continue
        assert (form.kind, form.block) == (("nf4", 64) if kind == "nf4" and "/layers/" in name else ("int8", 0))
        codes, scales = form.shapes(shape)
        held += math.prod(codes) + 4 * math.prod(scales)
    assert wide < 0.004 * total
    assert held < (0.76 if kind == "nf4" else 1.01) * total


def test_groups_choose_what_is_quantized() -> None:
    shapes = parameter_shapes(VARIANTS["paligemma-3b-pt-224"])
    by_group = {
        group: {name for name, shape in shapes.items() if weight_format(name, shape, "int8", QuantizeConfig(groups=(group,)))}
        for group in ("mlp", "attention", "embedding", "vision")
    }
    assert by_group["mlp"] == {"llm/layers/mlp/gating_einsum", "llm/layers/mlp/linear"}
    assert by_group["attention"] == {f"llm/layers/attn/{name}_einsum/w" for name in ("q", "kv", "attn_vec")}
    assert by_group["embedding"] == {"llm/embedder/input_embedding"}
    assert len(by_group["vision"]) == 6
    assert all(name.endswith("kernel") for name in by_group["vision"])


@pytest.mark.parametrize(
    "values", [{"groups": []}, {"groups": ["mlp", "mlp"]}, {"groups": ["head"]}, {"block": 1}, {"bits": 3}]
)
def test_wrong_settings_are_refused(values: dict) -> None:
    with pytest.raises(ValidationError):
        QuantizeConfig.model_validate(values)


def test_a_block_is_as_long_as_the_inputs_allow() -> None:
    config = QuantizeConfig(block=64)
    assert weight_format("llm/layers/mlp/linear", (2, 96, 8), "nf4", config) == WeightFormat("nf4", (-2,), 32)
    assert weight_format("llm/layers/mlp/linear", (2, 7, 8), "nf4", config) == WeightFormat("int8", (-2,))
