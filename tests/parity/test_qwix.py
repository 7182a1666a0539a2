"""Codes and scales of quantized weights, against qwix, which quantizes the weights of MaxText and tunix."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from qwix._src.core import qarray  # qwix 0.1 gives out no name of its own for this

from paligemma.models.weight_formats import NF4_LEVELS, WeightFormat, dequantize, quantize

SHAPE = (3, 128, 20)
WEIGHTS = {
    "normal": np.random.default_rng(0).standard_normal(SHAPE),
    "heavy outliers": np.random.default_rng(1).standard_t(1.5, SHAPE),
    "with zeros": np.where(np.random.default_rng(2).uniform(size=SHAPE) < 0.9, 0, 0.02),
    "float16": np.random.default_rng(3).standard_normal(SHAPE).astype(np.float16) * 0.02,
}


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_int8_is_qwixs(weight: np.ndarray) -> None:
    weight = weight.astype(np.float32)
    codes, scales = quantize(weight, WeightFormat("int8", (-2,)))
    theirs = qarray.quantize(jnp.asarray(weight), qarray.HowToQuantize(qtype=jnp.int8, channelwise_axes=(0, 2)))
    # XLA divides by a constant as it multiplies by its inverse, which can be the last bit. That decides where a weight is half
    # way between two codes, as the largest of each output does.
    np.testing.assert_allclose(scales, theirs.scale, rtol=2 * np.finfo(np.float32).eps)
    apart = np.abs(codes.astype(int) - np.asarray(theirs.qvalue, int))
    assert apart.max() <= 1
    np.testing.assert_allclose(np.abs(weight / scales)[apart > 0] % 1, 0.5, atol=1e-4)
    assert (apart == 0).mean() > 0.99


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_nf4_is_qwixs(weight: np.ndarray) -> None:
    weight, form = weight.astype(np.float32), WeightFormat("nf4", (-2,), 32)
    codes, scales = quantize(weight, form)
    how = qarray.HowToQuantize(qtype="nf4", channelwise_axes=(0, 2), tiled_axes={1: 32})
    theirs = qarray.quantize(jnp.asarray(weight), how)
    np.testing.assert_array_equal(scales, theirs.scale)
    back, expected = dequantize(codes, scales, form), np.asarray(qarray.dequantize(theirs))
    # Of two levels that are equally near but for the last bit, either is right.
    step = np.diff(NF4_LEVELS).max() * np.abs(weight).max()
    assert (np.abs(back - expected) <= step).all()
    assert (back == expected).mean() > 0.9999
