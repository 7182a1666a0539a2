"""Parameters by name: their dtypes, their devices, and how they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from paligemma.checkpoints.lazy import LazyArray, read, verify
from paligemma.choices import ComputeDtype
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.lora_factors import LoraConfig, initial_factor, is_adapter
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
        return jnp.asarray(read(array, ..., dtype))
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
        sharding = fsdp_sharding(mesh, tuple(array.shape)) if mesh is not None else None
        placed = place(array, np.dtype(dtype_of(name, array.dtype)), sharding)
        # Copies run in the background: all at once, they would keep the whole file mapped beside its copy.
        variable.set_value(placed.block_until_ready())
    return nnx.merge(graph, state)
