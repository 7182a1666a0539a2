"""One mesh over whatever devices exist: eight simulated ones compute what one does."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.parameters import build_module, parameters_by_name
from paligemma.data.batch import train_batch
from paligemma.errors import InputError
from paligemma.models.layers import LayerPlan
from paligemma.models.parameter_shapes import parameter_shapes
from paligemma.models.weight_formats import WeightFormat
from paligemma.preflight.abstract import abstract_step
from paligemma.preflight.account import account
from paligemma.preflight.hlo_text import read_program
from paligemma.runtime.sharding import check_batch_size, fsdp_sharding, make_mesh, shard_batch
from paligemma.training.recipe import parse_recipe
from paligemma.training.step import StepSettings, init_state, make_train_step
from paligemma.training.trainable import TRAINABLE_SETS, compile_pattern, is_trainable, split_trainable


def losses(
    devices: int, steps: int = 4, copies: int = 1, settings: StepSettings = StepSettings(), frozen: str = "float32"
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses and trained parameters of a few steps of the embedded checkpoint."""
    mesh = make_mesh(jax.devices()[:devices], copies)
    checkpoint = open_checkpoint("embedded:tiny")
    recipe, pattern = parse_recipe("", [f"frozen_dtype={frozen}"]), compile_pattern("attention")

    def held_in(name: str, array) -> str | WeightFormat:
        return "float32" if is_trainable(pattern, name) else recipe.frozen_in(name, array.shape)

    module = build_module(checkpoint.config, checkpoint.arrays, held_in, mesh=mesh)
    graph, trainable, frozen = split_trainable(module, compile_pattern("attention"))
    optimizer = optax.sgd(0.1, momentum=0.9)
    step, state = make_train_step(graph, optimizer, settings, mesh), init_state(trainable, optimizer, mesh)
    rng, result = np.random.default_rng(0), []
    for _ in range(steps):
        images = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
        tokens, suffix = rng.integers(4, 300, (16, 17), np.int32), np.tile(np.arange(17) > 8, (16, 1)).astype(np.int32)
        state, metrics = step(state, frozen, shard_batch(mesh, train_batch(images, tokens, suffix, suffix)))
        result.append(float(metrics.loss))
    assert step._cache_size() == 1
    return result, {name: np.asarray(v[...]) for name, v in parameters_by_name(state.trainable).items()}


@pytest.mark.parametrize(
    ("copies", "settings"),
    [
        (1, StepSettings()),
        (1, StepSettings(LayerPlan("full", trained=TRAINABLE_SETS["attention"]))),
        (1, StepSettings(LayerPlan("dots", unroll=True))),
        (2, StepSettings(LayerPlan("attention"), loss_chunk=32)),
        (2, StepSettings(accumulate=2)),
        (8, StepSettings()),
    ],
)
def test_eight_devices_compute_what_one_does(copies: int, settings: StepSettings) -> None:
    (one, after_one), (eight, after_eight) = losses(1), losses(8, copies=copies, settings=settings)
    np.testing.assert_allclose(eight, one, atol=1e-5)
    assert one[-1] < one[0]
    for name, values in after_one.items():
        np.testing.assert_allclose(after_eight[name], values, atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_devices_send_each_other_parameters_and_not_activations(remat: str) -> None:
    """Fully sharded parameters are gathered layer by layer, so messages do not grow with the batch, as activations do."""
    received = {}
    for rows in (16, 128):
        settings = ["steps=2", f"batch_size={rows}", f"remat={remat}", "loss_chunk=16"]
        step, shapes = abstract_step(
            open_checkpoint("embedded:tiny").config, parse_recipe("", settings), jax.devices()[:8], "float32", 33
        )
        program = read_program(step.lower(*shapes).compile().as_text())
        received[rows] = account(program).received
    layers = sum(
        2 * np.prod(shape)
        for name, shape in parameter_shapes(open_checkpoint("embedded:tiny").config).items()
        if "/layers/" in name or "encoderblock" in name
    )
    hidden_states = 112 * 32 * 128 * 4  # of the suffixes of the rows that were added: gathered twice, gradients summed once
    assert layers < received[16]
    assert received[128] - received[16] < 4.5 * hidden_states


@pytest.mark.parametrize("frozen", ["int8", "nf4"])
def test_eight_devices_with_quantized_weights_compute_what_one_does(frozen: str) -> None:
    settings = StepSettings(LayerPlan("full", trained=TRAINABLE_SETS["attention"]))
    (one, after_one), (eight, after_eight) = (losses(count, settings=settings, frozen=frozen) for count in (1, 8))
    np.testing.assert_allclose(eight, one, atol=1e-4)
    plain, _ = losses(1, settings=settings)
    assert not np.allclose(one, plain, atol=1e-6)
    np.testing.assert_allclose(one, plain, rtol=0.02 if frozen == "int8" else 0.1)
    for name, values in after_one.items():
        np.testing.assert_allclose(after_eight[name], values, atol=1e-3)


def test_parameters_are_split_so_that_each_device_holds_a_part() -> None:
    checkpoint = open_checkpoint("embedded:tiny")
    module = build_module(checkpoint.config, checkpoint.arrays, lambda *_: "float16", mesh=make_mesh())
    held = whole = 0
    for variable in parameters_by_name(module).values():
        array = variable.get_value()
        whole += array.nbytes
        held += array.addressable_shards[0].data.nbytes
    assert whole / 8 <= held < whole / 7


def test_the_largest_divisible_axis_is_split() -> None:
    mesh = make_mesh()
    assert fsdp_sharding(mesh, (18, 2048, 16384)).spec == PartitionSpec(None, None, "fsdp")
    assert fsdp_sharding(mesh, (16, 1001)).spec == PartitionSpec("fsdp")
    assert fsdp_sharding(mesh, (7, 3)).spec == PartitionSpec()
    assert fsdp_sharding(mesh, ()).spec == PartitionSpec()


def test_devices_that_do_not_split_into_copies_are_refused() -> None:
    with pytest.raises(InputError, match="8 devices do not split into 3 copies"):
        make_mesh(copies=3)


def test_a_batch_that_does_not_split_is_refused() -> None:
    with pytest.raises(InputError, match="does not split over 8 devices"):
        check_batch_size(make_mesh(), 12)
    with pytest.raises(InputError, match="8 devices in 4 parts"):
        check_batch_size(make_mesh(), 24, parts=4)
