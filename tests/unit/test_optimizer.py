"""Optimizers and schedules against their published formulas, written out in numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from conftest import REPOSITORY
from paligemma.errors import InputError
from paligemma.training.learning_rate import learning_rate_schedule, relative_schedule
from paligemma.training.optimizer import make_optimizer
from paligemma.training.recipe import Recipe

STEPS = 5
CONSTANT = {"schedule": "constant", "warmup_steps": 0}

Tree = dict[str, np.ndarray]


def state(arrays: Mapping[str, np.ndarray]) -> nnx.State:
    return nnx.from_flat_state([(tuple(name.split("/")), nnx.Param(array)) for name, array in arrays.items()])


def arrays_of(parameters: nnx.State) -> Tree:
    return {"/".join(path): np.array(variable[...]) for path, variable in nnx.to_flat_state(parameters)}


def updates_of(recipe: Recipe, parameters: Tree, gradients: list[Tree], steps: int | None = None) -> list[Tree]:
    """What the optimizer adds to the parameters at every step; they follow it."""
    optimizer = make_optimizer(recipe, steps or len(gradients))
    current = state(parameters)
    memory, made = optimizer.init(current), []
    for gradient in gradients:
        updates, memory = optimizer.update(state(gradient), memory, current)
        current = jax.tree.map(lambda parameter, update: parameter + update, current, updates)
        made.append(arrays_of(updates))
    return made


def random_gradients(shape: tuple[int, ...], steps: int = STEPS) -> list[Tree]:
    """Gradients of unlike sizes, from step to step and from row to row."""
    rng = np.random.default_rng(0)
    rows = np.exp(rng.normal(size=(shape[0], *(1 for _ in shape[1:]))))
    return [{"w": (rng.normal(size=shape) * rows * (1 + t)).astype(np.float32)} for t in range(steps)]


def sgd(gradients, **_):
    yield from gradients


def momentum(gradients, momentum=0.9, **_):
    """Polyak's heavy ball, without damping."""
    velocity = 0.0
    for g in gradients:
        velocity = momentum * velocity + g
        yield velocity


def adam(gradients, momentum=0.9, second_moment=0.999):
    """Algorithm 1 of arXiv 1412.6980."""
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m = momentum * m + (1 - momentum) * g
        v = second_moment * v + (1 - second_moment) * g**2
        yield (m / (1 - momentum**t)) / (np.sqrt(v / (1 - second_moment**t)) + 1e-8)


def lion(gradients, momentum=0.9, second_moment=0.99):
    """Algorithm 2 of arXiv 2302.06675."""
    m = 0.0
    for g in gradients:
        yield np.sign(momentum * m + (1 - momentum) * g)
        m = second_moment * m + (1 - second_moment) * g


def adafactor(gradients, momentum=0.9, second_moment=0.999):
    """Algorithm 4 of arXiv 1804.04235 with the changes of arXiv 2106.04560, section 3.4: capped decay, momentum in bfloat16."""
    rows = columns = whole = 0.0
    average = np.zeros_like(gradients[0], ml_dtypes.bfloat16)
    for t, g in enumerate(gradients, 1):
        decay = min(second_moment, 1 - t**-0.8)
        square = g**2 + 1e-30
        rows = decay * rows + (1 - decay) * square.sum(1, keepdims=True)
        columns = decay * columns + (1 - decay) * square.sum(0, keepdims=True)
        whole = decay * whole + (1 - decay) * square
        factored = min(g.shape) >= 32
        scaled = g / np.sqrt(rows * columns / rows.sum() if factored else whole)
        new = momentum * average.astype(np.float64) + (1 - momentum) * scaled
        average = new.astype(ml_dtypes.bfloat16)
        yield new


BFLOAT16 = 2**-8
"""Largest relative error of a rounding to bfloat16, doubled: Adafactor's momentum is rounded when kept and when decayed."""


@pytest.mark.parametrize(
    ("optimizer", "formula", "settings", "shape", "tolerance"),
    [
        ("sgd", sgd, {}, (40, 48), 0),
        ("momentum", momentum, {}, (40, 48), 0),
        ("momentum", momentum, {"momentum": 0.5}, (40, 48), 0),
        ("adamw", adam, {}, (40, 48), 0),
        ("adamw", adam, {"momentum": 0.8, "second_moment": 0.95}, (40, 48), 0),
        ("lion", lion, {}, (40, 48), 0),
        ("lion", lion, {"momentum": 0.95, "second_moment": 0.5}, (40, 48), 0),
        ("adafactor", adafactor, {"momentum": 0.0}, (40, 48), 0),
        ("adafactor", adafactor, {"momentum": 0.0, "second_moment": 0.5}, (48, 40), 0),
        ("adafactor", adafactor, {"momentum": 0.0}, (31, 48), 0),
        ("adafactor", adafactor, {}, (40, 48), 2 * BFLOAT16),
    ],
)
def test_an_optimizer_is_its_published_formula(
    optimizer: str, formula: Callable, settings: dict, shape: tuple[int, int], tolerance: float
) -> None:
    gradients = random_gradients(shape)
    recipe = Recipe(optimizer=optimizer, learning_rate=0.01, **CONSTANT, **settings)
    ours = updates_of(recipe, {"w": np.ones(shape, np.float32)}, gradients)
    expected = list(formula([gradient["w"].astype(np.float64) for gradient in gradients], **settings))
    largest = max(np.abs(direction).max() for direction in expected)
    for made, direction in zip(ours, expected, strict=True):
        np.testing.assert_allclose(made["w"], -0.01 * direction, rtol=2e-5, atol=0.01 * largest * (tolerance + 1e-6))


def test_only_adafactor_of_large_matrices_keeps_no_second_moment_of_their_size() -> None:
    def kept(optimizer: str, shape: tuple[int, ...]) -> int:
        made = make_optimizer(Recipe(optimizer=optimizer), STEPS).init(state({"w": np.ones(shape, np.float32)}))
        return sum(leaf.nbytes for leaf in jax.tree.leaves(made) if leaf.size > 1)

    size = 64 * 96
    assert {name: kept(name, (64, 96)) for name in ("sgd", "momentum", "adamw", "lion", "adafactor")} == {
        "sgd": 0,
        "momentum": 4 * size,
        "adamw": 8 * size,
        "lion": 4 * size,
        "adafactor": 2 * size + 4 * (64 + 96),
    }
    assert kept("adafactor", (16, 96)) == 6 * 16 * 96


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lion"])
def test_the_rate_of_a_step_scales_its_update(optimizer: str) -> None:
    recipe = Recipe(optimizer=optimizer, learning_rate=0.02, schedule="linear", warmup_steps=2)
    gradients, parameters = random_gradients((4, 6)), {"w": np.ones((4, 6), np.float32)}
    plain = updates_of(Recipe(optimizer=optimizer, learning_rate=1.0, **CONSTANT), parameters, gradients)
    rates = 0.02 * np.array([1 / 2, 1, 3 / 4, 2 / 4, 1 / 4])
    for made, rate, unscaled in zip(updates_of(recipe, parameters, gradients), rates, plain, strict=True):
        np.testing.assert_allclose(made["w"], rate * unscaled["w"], rtol=1e-5)


@pytest.mark.parametrize("learning_rate", [1e-5, 1.0])
def test_decay_follows_the_schedule_and_not_the_learning_rate(learning_rate: float) -> None:
    parameters = {
        "img/head/kernel": np.full((2, 3), 4.0, np.float32),
        "llm/layers/mlp/linear": np.full((3, 2), 5.0, np.float32),
    }
    still = [{name: np.zeros_like(array) for name, array in parameters.items()}] * STEPS
    recipe = Recipe(
        learning_rate=learning_rate, weight_decay=0.1, weight_decay_on=".*/kernel", schedule="linear", warmup_steps=2
    )
    weight = 4.0
    for made, share in zip(updates_of(recipe, parameters, still), [1 / 2, 1, 3 / 4, 2 / 4, 1 / 4], strict=True):
        np.testing.assert_allclose(made["img/head/kernel"], -share * 0.1 * weight, rtol=1e-5)
        assert not made["llm/layers/mlp/linear"].any()
        weight -= share * 0.1 * weight


def test_decay_comes_after_clipping_and_scaling() -> None:
    gradient = np.array([[30.0, 40.0]], np.float32)
    for optimizer, direction in (("sgd", [[0.6, 0.8]]), ("adamw", [[1.0, 1.0]])):
        recipe = Recipe(
            optimizer=optimizer, learning_rate=0.5, weight_decay=0.1, weight_decay_on="w", gradient_clip=1.0, **CONSTANT
        )
        made = updates_of(recipe, {"w": np.array([[2.0, -2.0]], np.float32)}, [{"w": gradient}])[0]["w"]
        np.testing.assert_allclose(made, -0.5 * np.array(direction) - 0.1 * np.array([[2.0, -2.0]]), rtol=1e-4)


def decayed(names: list[str], **settings) -> set[str]:
    """The parameters that change when no gradient does."""
    ones, zeros = ({name: np.full((1,), value, np.float32) for name in names} for value in (1.0, 0.0))
    made = updates_of(Recipe(weight_decay=0.1, **CONSTANT, **settings), ones, [zeros])[0]
    return {name for name, update in made.items() if update.any()}


def test_all_matrices_but_the_embeddings_decay_by_default() -> None:
    names = list(json.loads((REPOSITORY / "tests/parity/golden/paligemma_3b_224_tree.json").read_text()))
    left_out = {name for name in names if name.endswith(("/bias", "/scale", "embedding"))}
    assert len(names) == 32
    assert decayed(names) == set(names) - left_out
    adapters = ["llm/layers/attn/lora_q_einsum/a", "llm/layers/attn/lora_q_einsum/b"]
    assert decayed(adapters) == set(adapters)


def test_a_name_decays_when_the_whole_of_it_matches() -> None:
    names = ["img/head/kernel", "img/head/kernel_scale", "llm/layers/attn/q_einsum/w"]
    assert decayed(names, weight_decay_on=".*/kernel") == {"img/head/kernel"}
    assert decayed(names, weight_decay_on=r"llm/.*|.*_scale") == set(names[1:])


@pytest.mark.parametrize("pattern", ["kernel", "img/.*/w"])
def test_decay_of_nothing_is_refused(pattern: str) -> None:
    parameters = state({"img/head/kernel": np.ones((2, 2), np.float32)})
    with pytest.raises(InputError, match="matches no trained parameter"):
        make_optimizer(Recipe(weight_decay=0.1, weight_decay_on=pattern), STEPS).init(parameters)
    make_optimizer(Recipe(weight_decay=0.0, weight_decay_on=pattern), STEPS).init(parameters)


@pytest.mark.parametrize(("longest", "factor"), [(6.5, 0.5), (13.0, 1.0), (26.0, 1.0), (None, 1.0)])
def test_gradients_are_clipped_by_their_norm_over_all_parameters(longest: float | None, factor: float) -> None:
    gradients = {"a": np.array([3.0, 4.0], np.float32), "b/c": np.array([[12.0]], np.float32)}  # norm 13
    recipe = Recipe(learning_rate=1.0, gradient_clip=longest, **CONSTANT)
    made = updates_of(recipe, {name: np.zeros_like(array) for name, array in gradients.items()}, [gradients])[0]
    for name, gradient in gradients.items():
        np.testing.assert_allclose(made[name], -factor * gradient, rtol=1e-6)


SHAPES = {
    "cosine": lambda progress, _: (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress, _: 1 - progress,
    "rsqrt": lambda _, since: 1 / math.sqrt(1 + since / 3),
    "constant": lambda _, __: 1.0,
}


@pytest.mark.parametrize("schedule", SHAPES)
@pytest.mark.parametrize(
    ("settings", "warmup"),
    [
        ({"warmup_steps": 0}, 0),
        ({"warmup_steps": 1}, 1),
        ({"warmup_steps": 7}, 7),
        ({"warmup_steps": 20}, 20),
        ({"warmup_steps": 2, "warmup_fraction": 0.5}, 2),
        ({"warmup_fraction": 0.0}, 0),
        ({"warmup_fraction": 0.25}, 5),  # of 20 + 1 points
        ({}, 2),
    ],
)
def test_every_step_of_a_schedule(schedule: str, settings: dict, warmup: int) -> None:
    steps = 20
    recipe = Recipe(schedule=schedule, timescale=3, learning_rate=0.3, **settings)
    expected = []
    for step in range(1, steps + 1):
        if step < warmup:
            expected.append(step / warmup)
        else:
            expected.append(SHAPES[schedule]((step - warmup) / (steps + 1 - warmup), step - warmup))
    counts = range(steps)
    np.testing.assert_allclose([relative_schedule(recipe, steps)(count) for count in counts], expected, rtol=2e-6, atol=1e-7)
    rates = [float(learning_rate_schedule(recipe, steps)(count)) for count in counts]
    np.testing.assert_allclose(rates, 0.3 * np.array(expected), rtol=2e-6, atol=1e-7)
    assert min(rates) > 0


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    for steps, warmup in ((20, 21), (1, 5)):
        with pytest.raises(InputError, match=f"The warm-up of {warmup} steps is longer than the {steps} steps"):
            make_optimizer(Recipe(warmup_steps=warmup), steps)
