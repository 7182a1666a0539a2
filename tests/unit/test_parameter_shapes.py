"""The published layout, which is written down, against the network, which has it by being built."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.checkpoints.architecture import is_floating
from paligemma.checkpoints.parameters import parameters_by_name
from paligemma.models.config import VARIANTS, DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.models.paligemma import abstract_model
from paligemma.models.parameter_shapes import parameter_shapes

SIZE = st.integers(1, 5)


@st.composite
def configs(draw: st.DrawFn) -> PaliGemmaConfig:
    heads, kv_heads = draw(st.sampled_from([(1, 1), (4, 1), (4, 2), (4, 4)]))
    patch, vision_heads = draw(SIZE), draw(SIZE)
    vision = VisionConfig(
        image_size=patch * draw(SIZE),
        patch_size=patch,
        width=2 * vision_heads,
        depth=draw(SIZE),
        mlp_dim=draw(SIZE),
        num_heads=vision_heads,
    )
    decoder = DecoderConfig(
        width=draw(SIZE),
        depth=draw(SIZE),
        mlp_dim=draw(SIZE),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=2 * draw(SIZE),
        vocab_size=draw(SIZE),
        post_norms=draw(st.booleans()),
    )
    return PaliGemmaConfig(img=vision, llm=decoder)


def of_the_network(config: PaliGemmaConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(variable.shape) for name, variable in parameters_by_name(nnx.state(abstract_model(config))).items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_published_variants(name: str) -> None:
    assert list(parameter_shapes(VARIANTS[name]).items()) == sorted(of_the_network(VARIANTS[name]).items())


@settings(max_examples=15)
@given(configs())
def test_any_architecture(config: PaliGemmaConfig) -> None:
    assert parameter_shapes(config) == of_the_network(config)


def test_what_holds_floating_point_numbers() -> None:
    floating = ["float16", "float32", "float64", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
    others = ["int8", "uint16", "bool", "complex64", "S3", "O", ml_dtypes.int4]
    assert [is_floating(np.dtype(dtype)) for dtype in (*floating, *others)] == [True] * len(floating) + [False] * len(others)


@pytest.mark.parametrize("step", ["fetch_checkpoint", "prepare_data", "publish", "summarize"])
def test_steps_without_a_network_start_without_jax(step: str) -> None:
    """It takes a second, and each process of a preparation would load it."""
    code = f"import components.{step}.main, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
