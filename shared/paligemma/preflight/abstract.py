"""The training step, and decoding, with shapes instead of arrays, sharded over devices as where they run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from paligemma.checkpoints.parameters import (
    abstract_decoding_model,
    decoding_dtype,
    decoding_format,
    parameters_by_name,
    tower_dtype,
)
from paligemma.choices import ComputeDtype
from paligemma.data.batch import TrainBatch
from paligemma.decoding.decode import decode
from paligemma.decoding.settings import NO_EOS, DecodeSettings
from paligemma.models.attention import attention_form
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.lora_factors import LoraConfig
from paligemma.models.paligemma import abstract_model
from paligemma.models.parameter_shapes import parameter_shapes
from paligemma.models.quantized import Quantized
from paligemma.models.weight_formats import QuantizeConfig, WeightFormat
from paligemma.precision import Precision
from paligemma.runtime.sharding import Device, batch_sharding, check_batch_size, fsdp_sharding, make_mesh
from paligemma.training.optimizer import make_optimizer
from paligemma.training.recipe import Recipe
from paligemma.training.step import StepSettings, TrainState, TrainStep, make_train_step
from paligemma.training.trainable import compile_pattern, is_trainable, split_trainable


def abstract_step(
    config: PaliGemmaConfig, recipe: Recipe, devices: Sequence[Device], auto: ComputeDtype, text_tokens: int
) -> tuple[TrainStep, tuple[TrainState, nnx.State, TrainBatch]]:
    """The step, and its arguments as shapes with shardings.

    Args:
        config: the architecture.
        recipe: how to train.
        devices: devices to train on; they need not be present.
        auto: the dtype that `compute_dtype: auto` stands for on these devices.
        text_tokens: tokens of every row's text; all but the first count in the loss, which is the worst case.

    Raises:
        InputError: the batch does not split evenly over the devices, or nothing is trained.
    """
    mesh = make_mesh(list(devices), recipe.data_parallel)
    check_batch_size(mesh, recipe.batch_size, recipe.accumulate)
    pattern = compile_pattern(recipe.trainable)
    lora = recipe.lora if recipe.trainable == "lora" else None
    compute = auto if recipe.compute_dtype == "auto" else recipe.compute_dtype

    def held_in(name: str, array: Any) -> str | WeightFormat:
        return "float32" if is_trainable(pattern, name) else recipe.frozen_in(name, tuple(array.shape))

    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in parameter_shapes(config).items()}
    precision = Precision.of(compute, tower_dtype(cast(Any, shapes), held_in))
    graph, state = nnx.split(abstract_model(config, precision, lora))

    def placed(shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=fsdp_sharding(mesh, tuple(shape)))

    for name, variable in parameters_by_name(state).items():
        variable.set_value(abstract_value(tuple(variable.shape), held_in(name, variable), placed))
    graph, trainable, frozen = split_trainable(nnx.merge(graph, state), pattern)
    optimizer = make_optimizer(recipe, recipe.steps or 1000)
    optimizer_state = jax.tree.map(lambda leaf: placed(leaf.shape, leaf.dtype), jax.eval_shape(optimizer.init, trainable))
    train_state = TrainState(cast(Array, placed((), jnp.int32)), trainable, optimizer_state)

    rows = batch_sharding(mesh)
    size, width = config.img.image_size, text_tokens - 1

    def of_batch(dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((recipe.batch_size, *shape), dtype, sharding=rows)

    text = [of_batch(np.int32, width) for _ in range(5)]
    several = () if recipe.images_per_example == 1 else (recipe.images_per_example,)
    batch = TrainBatch(of_batch(np.uint8, *several, size, size, 3), *text)
    return make_train_step(graph, optimizer, StepSettings.of(recipe), mesh), (train_state, frozen, batch)


def abstract_value(
    shape: tuple[int, ...],
    held_in: np.dtype | str | WeightFormat,
    placed: Callable[[tuple[int, ...], Any], jax.ShapeDtypeStruct],
) -> jax.ShapeDtypeStruct | Quantized:
    """A parameter as a shape, or as the shapes of its codes and scales.

    Args:
        shape: the parameter's.
        held_in: its dtype, or how it is quantized.
        placed: makes a shape with its sharding, from a shape and a dtype.
    """
    if not isinstance(held_in, WeightFormat):
        return placed(shape, jnp.dtype(held_in))
    codes, scales = held_in.shapes(shape)
    parts = (placed(codes, held_in.codes_dtype), placed(scales, jnp.dtype("float32")))
    return Quantized(cast(Array, parts[0]), cast(Array, parts[1]), held_in)


def lower_decoding(
    config: PaliGemmaConfig,
    devices: Sequence[Device],
    compute: ComputeDtype,
    rows: int,
    text_tokens: int,
    dtype: str,
    images: int = 1,
) -> Any:
    """Greedy decoding of a batch of prompts, lowered as `Generator` runs it on a network of `build_decoding_module`.

    Args:
        config: the architecture.
        devices: devices to decode on; they need not be present. A single CPU has another program: see `cpu_layout`.
        compute: the dtype of products.
        rows: prompts; on several devices more of them, until they split evenly.
        text_tokens: tokens of every prompt's text.
        dtype: the dtype of the parameters in the checkpoint; `int8` and `nf4` quantize weights.
        images: images of a prompt.
    """
    mesh = make_mesh(list(devices))
    platform = "gpu" if devices[0].platform in ("gpu", "cuda") else str(devices[0].platform)
    kind = dtype if dtype == "int8" or dtype == "nf4" else None
    others = QuantizeConfig().others if kind else dtype
    precision = Precision.of(compute, others)
    graph, state = nnx.split(abstract_decoding_model(config, precision, platform))

    def placed(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=fsdp_sharding(mesh, shape))

    for name, variable in parameters_by_name(state).items():

        def held(part: jax.ShapeDtypeStruct, name: str = name) -> jax.ShapeDtypeStruct | Quantized:
            form = decoding_format(name, part.shape, kind, QuantizeConfig()) if kind else None
            return abstract_value(part.shape, form or decoding_dtype(name, jnp.dtype(others), precision, platform), placed)

        variable.set_value(jax.tree.map(held, variable.get_value()))
    rows += -rows % len(devices)
    by_rows = batch_sharding(mesh)

    def of_batch(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=by_rows)

    size = config.img.image_size
    prompts = [of_batch(np.float32, *(() if images == 1 else (images,)), size, size, 3)]
    prompts += [of_batch(kind, text_tokens) for kind in (np.int32, np.bool_, np.int32)]
    whole, no_references = (of_batch(np.bool_), of_batch(np.uint32)), (of_batch(np.int32, 0), of_batch(np.bool_, 0))
    lower = cast(Any, decode).lower  # as `jax.jit` made it
    form = attention_form(platform, len(devices))
    return lower(graph, state, *prompts, *whole, *no_references, jnp.int32(NO_EOS), settings=DecodeSettings(), form=form)


@functools.cache
def trained_shapes(
    config: PaliGemmaConfig, trainable: str | tuple[str, ...], lora: LoraConfig
) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of the parameters that a recipe trains."""
    pattern = compile_pattern(trainable)
    model = abstract_model(config, lora=lora if trainable == "lora" else None)
    variables = parameters_by_name(model)
    return MappingProxyType({name: tuple(leaf.shape) for name, leaf in variables.items() if is_trainable(pattern, name)})
