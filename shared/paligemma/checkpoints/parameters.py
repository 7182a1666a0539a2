"""Parameters by name: their dtypes, their devices, and how they are loaded."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from paligemma.checkpoints.lazy import LazyArray, read, verify
from paligemma.checkpoints.quantize import quantize_array
from paligemma.choices import ComputeDtype, QuantizedDtype
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.gemma import Block
from paligemma.models.layers import apart
from paligemma.models.lora_factors import LoraConfig, initial_factor, is_adapter
from paligemma.models.matrix_attention import MATRICES, MatrixAttention, as_matrix
from paligemma.models.paligemma import PaliGemma, abstract_model
from paligemma.models.quantized import Quantized
from paligemma.models.weight_formats import QuantizeConfig, WeightFormat, weight_format
from paligemma.precision import Precision
from paligemma.runtime.sharding import fsdp_sharding

TOWER = "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"  # the largest parameter stands for the whole tower
UNQUANTIZED_TOWER = "img/pos_embedding"  # and this one, if that is quantized

HeldIn = Callable[[str, LazyArray], np.dtype | str | WeightFormat]
"""Says in what a parameter is held, from its name and what the file has."""


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


def place_quantized(array: LazyArray, form: WeightFormat, mesh: Mesh | None) -> Quantized:
    """A parameter as codes and scales on its devices, both split as `fsdp_sharding` splits an array of their shape.

    Raises:
        DamagedError: see `quantize_array`.
    """
    placed = []
    for values in quantize_array(array, form):
        if mesh is None:
            placed.append(jax.device_put(values))
        else:
            sharding = fsdp_sharding(mesh, values.shape)
            placed.append(jax.make_array_from_callback(values.shape, sharding, values.__getitem__))
    codes, scales = (one.block_until_ready() for one in placed)
    return Quantized(codes, scales, form)


def build_module(
    config: PaliGemmaConfig,
    arrays: Mapping[str, LazyArray],
    held_in: HeldIn,
    compute: ComputeDtype = "auto",
    mesh: Mesh | None = None,
    lora: LoraConfig | None = None,
    seed: int = 0,
) -> PaliGemma:
    """The network, with its parameters loaded one by one. Adapters are initialized from the seed.

    Args:
        config: the architecture.
        arrays: every parameter by name.
        held_in: in what to hold each parameter.
        compute: the dtype of activations.
        mesh: the devices to shard the parameters over; None for the default device.
        lora: adapters to add; None for none.
        seed: seed of the adapters' initial values.
    """
    precision = Precision.of(compute, tower_dtype(arrays, held_in))
    graph, state = nnx.split(abstract_model(config, precision, lora))
    for name, variable in parameters_by_name(state).items():
        new = is_adapter(name) and name not in arrays
        array = initial_factor(name, variable.shape, seed) if new else arrays[name]
        variable.set_value(_placed(array, held_in(name, array), mesh))
    return nnx.merge(graph, state)


def tower_dtype(arrays: Mapping[str, LazyArray], held_in: HeldIn) -> np.dtype | str:
    """The dtype of the vision tower's parameters; of those that are no quantized weights, if there are any."""
    dtype = held_in(TOWER, arrays[TOWER])
    if isinstance(dtype, WeightFormat):
        dtype = held_in(UNQUANTIZED_TOWER, arrays[UNQUANTIZED_TOWER])
    assert not isinstance(dtype, WeightFormat)
    return dtype


def build_decoding_module(
    config: PaliGemmaConfig,
    arrays: Mapping[str, LazyArray],
    held_in: HeldIn,
    mesh: Mesh | None = None,
    platform: str | None = None,
) -> PaliGemma:
    """The network in the form that decodes fastest on a platform, made while it is loaded, so that there is no second copy.

    A token reads every weight once, and that is what it takes time for. Where a weight is not stored as its product reads it,
    XLA writes it anew for every token. So on TPUs and GPUs weights are converted to the dtype that products have there. On
    GPUs, where a loop copies what it picks from a stack, layers are arrays of their own too (`models.layers.apart`), with
    attention's weights as matrices (`models.matrix_attention`). On CPUs see `decoding/cpu_layout.py`.

    Args:
        config, arrays, held_in, mesh: see `build_module`.
        platform: `cpu`, `gpu` or `tpu`; None for the devices' own.
    """
    devices = jax.devices() if mesh is None else mesh.devices.flat
    form = platform or str(devices[0].platform)
    precision = Precision.of("auto", tower_dtype(arrays, held_in))

    def decodes_in(name: str) -> np.dtype | WeightFormat:
        stored, asked = arrays[name].dtype, held_in(name, arrays[name])
        if isinstance(asked, WeightFormat):
            return asked
        asked = np.dtype(asked)
        return decoding_dtype(name, asked, precision, form) if asked == stored else asked

    model = abstract_decoding_model(config, precision, form)
    layers: dict[str, list[nnx.Variable]] = defaultdict(list)
    for name, variable in parameters_by_name(model).items():
        if own := _ONE_LAYERS.fullmatch(name):
            layers[f"llm/layers/{own[1]}"].append(variable)
        else:
            variable.set_value(_placed(arrays[name], decodes_in(name), mesh))
    for name, variables in layers.items():
        matrix = _MATRIX.fullmatch(name)
        parts = [f"llm/layers/attn/{one}/w" for one in MATRICES[matrix[1]]] if matrix else [name]
        parts = [part for part in parts if part in arrays]
        by_layer = zip(*(_by_layer(arrays[part], decodes_in(part)) for part in parts), strict=True)
        for variable, weights in zip(variables, by_layer, strict=True):
            value, dtype = (as_matrix(matrix[1], weights) if matrix else weights[0]), decodes_in(parts[0])
            if matrix and isinstance(dtype, WeightFormat):
                dtype = dtype._replace(inputs=(-2,))  # see `decoding_format`
            in_parts = isinstance(variable.get_value(), tuple)
            pieces = [_placed(part, dtype, mesh) for part in (value if in_parts else [value])]
            variable.set_value(tuple(pieces) if in_parts else pieces[0])
    return model


def _by_layer(array: LazyArray, held_in: np.dtype | WeightFormat) -> Iterator[np.ndarray]:
    """A stack's layers: all at once, in their dtype; or, to be quantized, one by one in float32. Compares with the checksum."""
    if not isinstance(held_in, WeightFormat):
        yield from read(array, ..., held_in)
        return
    for number in range(array.shape[0]):
        yield read(array, number, np.dtype(np.float32))
    verify(array)


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


def decoding_format(name: str, shape: tuple[int, ...], kind: QuantizedDtype, config: QuantizeConfig) -> WeightFormat | None:
    """`weight_format` of a parameter, or of a part of one, of `build_decoding_module`."""
    own = _ONE_LAYERS.fullmatch(name)
    stacked = f"llm/layers/{own[1]}" if own else name
    if matrix := _MATRIX.fullmatch(stacked):
        weight = next(iter(MATRICES[matrix[1]]))
        form = weight_format(f"llm/layers/attn/{weight}/w", (1, 1, *shape), kind, config)
        return form._replace(inputs=(-2,)) if form else None
    return weight_format(stacked, shape, kind, config)


def decoding_dtype(name: str, stored: np.dtype, precision: Precision, platform: str) -> np.dtype:
    """The dtype that a platform holds a parameter in for decoding, from its name and its dtype in the file."""
    is_weight = name.startswith("llm/") and not name.endswith("/scale")
    return precision.products if platform != "cpu" and is_weight and precision.products.itemsize < 4 else stored


def _placed(array: LazyArray, held_in: np.dtype | str | WeightFormat, mesh: Mesh | None) -> jax.Array | Quantized:
    if isinstance(held_in, WeightFormat):
        return place_quantized(array, held_in, mesh)
    sharding = fsdp_sharding(mesh, tuple(array.shape)) if mesh is not None else None
    # Copies run in the background: all at once, they would keep the whole file mapped beside its copy.
    return place(array, np.dtype(held_in), sharding).block_until_ready()
