"""Parameters by name: their dtypes, their devices, and how they are loaded."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import cast

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from paligemma.checkpoints.lazy import LazyArray, read, verify
from paligemma.choices import ComputeDtype
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.gemma import Block
from paligemma.models.layers import apart
from paligemma.models.lora_factors import LoraConfig, initial_factor, is_adapter
from paligemma.models.matrix_attention import MATRICES, MatrixAttention, as_matrix
from paligemma.models.paligemma import PaliGemma, abstract_model
from paligemma.precision import Precision
from paligemma.runtime.sharding import fsdp_sharding

TOWER = "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"  # the largest parameter stands for the whole tower


def parameters_by_name(model: nnx.Module | nnx.State) -> dict[str, nnx.Variable]:
    """All parameter variables, named as in big_vision's checkpoints."""
    state = model if isinstance(model, nnx.State) else nnx.state(model, nnx.Param)
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def place(array: LazyArray, dtype: np.dtype, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """Puts one array on its devices. Each device reads only its own slice of the file.

    Compares values with the file's checksum if it has one, unless another process reads some of them.

    Raises:
        DamagedError: the values differ from their checksum.
    """
    if sharding is None:
        values = read(array, ..., dtype)
        # `jnp.asarray` would compile a program for every shape, to copy it. On a CPU `device_put` takes the memory over. What
        # was read from a file belongs to nobody else, but an array that was given belongs to its owner.
        taken_over = isinstance(array, np.ndarray) and jax.default_backend() == "cpu"
        return jax.device_put(np.array(values) if taken_over else values)
    placed = jax.make_array_from_callback(tuple(array.shape), sharding, lambda index: read(array, index, dtype), dtype=dtype)
    if sharding.is_fully_addressable and not sharding.is_fully_replicated:
        verify(array)  # the devices have read it in slices, so it is in the page cache now
    return placed


def build_module(
    config: PaliGemmaConfig,
    arrays: Mapping[str, LazyArray],
    dtype_of: Callable[[str, np.dtype], np.dtype | str],
    compute: ComputeDtype = "auto",
    mesh: Mesh | None = None,
    lora: LoraConfig | None = None,
    seed: int = 0,
) -> PaliGemma:
    """The network, with its parameters loaded one by one. Adapters are initialized from the seed.

    Args:
        config: the architecture.
        arrays: every parameter by name.
        dtype_of: the dtype to hold a parameter in, from its name and its dtype in the file.
        compute: the dtype of activations.
        mesh: the devices to shard the parameters over; None for the default device.
        lora: adapters to add; None for none.
        seed: seed of the adapters' initial values.
    """
    precision = Precision.of(compute, dtype_of(TOWER, arrays[TOWER].dtype))
    graph, state = nnx.split(abstract_model(config, precision, lora))
    for name, variable in parameters_by_name(state).items():
        new = is_adapter(name) and name not in arrays
        array = initial_factor(name, variable.shape, seed) if new else arrays[name]
        variable.set_value(_placed(array, np.dtype(dtype_of(name, array.dtype)), mesh))
    return nnx.merge(graph, state)


def build_decoding_module(
    config: PaliGemmaConfig,
    arrays: Mapping[str, LazyArray],
    dtype_of: Callable[[str, np.dtype], np.dtype | str],
    mesh: Mesh | None = None,
    platform: str | None = None,
) -> PaliGemma:
    """The network in the form that decodes fastest on a platform, made while it is loaded, so that there is no second copy.

    A token reads every weight once, and that is what it takes time for. Where a weight is not stored as its product reads it,
    XLA writes it anew for every token. So on TPUs and GPUs weights are converted to the dtype that products have there. On
    GPUs, where a loop copies what it picks from a stack, layers are arrays of their own too (`models.layers.apart`), with
    attention's weights as matrices (`models.matrix_attention`). On CPUs see `decoding/cpu_layout.py`.

    Args:
        config, arrays, dtype_of, mesh: see `build_module`.
        platform: `cpu`, `gpu` or `tpu`; None for the devices' own.
    """
    devices = jax.devices() if mesh is None else mesh.devices.flat
    form = platform or str(devices[0].platform)
    precision = Precision.of("auto", dtype_of(TOWER, arrays[TOWER].dtype))

    def held_in(name: str) -> np.dtype:
        stored = arrays[name].dtype
        asked = np.dtype(dtype_of(name, stored))
        return decoding_dtype(name, asked, precision, form) if asked == stored else asked

    model = abstract_decoding_model(config, precision, form)
    layers: dict[str, list[nnx.Variable]] = defaultdict(list)
    for name, variable in parameters_by_name(model).items():
        if own := _ONE_LAYERS.fullmatch(name):
            layers[f"llm/layers/{own[1]}"].append(variable)
        else:
            variable.set_value(_placed(arrays[name], held_in(name), mesh))
    for name, variables in layers.items():
        if matrix := _MATRIX.fullmatch(name):
            parts = [part for one in MATRICES[matrix[1]] if (part := f"llm/layers/attn/{one}/w") in arrays]
            layers_parts = zip(*(read(arrays[part], ..., held_in(part)) for part in parts), strict=True)
            values = (as_matrix(matrix[1], weights) for weights in layers_parts)
        else:
            values = read(arrays[name], ..., held_in(name))
        for variable, value in zip(variables, values, strict=True):
            in_parts = isinstance(variable.get_value(), tuple)
            pieces = [_placed(part, part.dtype, mesh) for part in (value if in_parts else [value])]
            variable.set_value(tuple(pieces) if in_parts else pieces[0])
    return model


_ONE_LAYERS = re.compile(r"llm/layers/\d+/(.*)")
"""Names of parameters of layers that are apart."""

_MATRIX = re.compile(rf"llm/layers/attn/({'|'.join(MATRICES)})")
"""What the names of `MatrixAttention`'s parameters would be in a stack."""


def abstract_decoding_model(config: PaliGemmaConfig, precision: Precision, platform: str) -> PaliGemma:
    """The network in the form of `build_decoding_module`, with shapes instead of parameters."""
    model = abstract_model(config, precision)
    if platform == "gpu":
        blocks = apart(model.llm.layers)
        for block in blocks:
            block.attn = MatrixAttention(block.attn)
        model.llm.layers = cast(Block, nnx.List(blocks))  # what runs layers asks whether they are a list
    return model


def decoding_dtype(name: str, stored: np.dtype, precision: Precision, platform: str) -> np.dtype:
    """The dtype that a platform holds a parameter in for decoding, from its name and its dtype in the file."""
    is_weight = name.startswith("llm/") and not name.endswith("/scale")
    return precision.products if platform != "cpu" and is_weight and precision.products.itemsize < 4 else stored


def _placed(array: LazyArray, dtype: np.dtype, mesh: Mesh | None) -> jax.Array:
    sharding = fsdp_sharding(mesh, tuple(array.shape)) if mesh is not None else None
    # Copies run in the background: all at once, they would keep the whole file mapped beside its copy.
    return place(array, dtype, sharding).block_until_ready()
