"""The device mesh, and the sharding of parameters and batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from paligemma.errors import InputError

Batch = TypeVar("Batch")
Tree = TypeVar("Tree")
Device: TypeAlias = Any
"""A `jax.Device`, which no type checker knows: jaxlib has no types of its binary part."""

GATHERED = "gathered"
"""Name in `jax.checkpoint` policies for parameters from `gather`."""


def make_mesh(devices: Sequence[Device] | None = None, copies: int = 1) -> Mesh:
    """A mesh with the axes `data` and `fsdp`.

    Args:
        devices: by default all devices of all processes.
        copies: copies of the parameters along `data`; each copy is split along `fsdp`. One copy needs the least memory.

    Raises:
        InputError: the devices do not split into this many copies.
    """
    chosen = np.array(devices or jax.devices())
    if len(chosen) % copies:
        raise InputError(
            f"{len(chosen)} devices do not split into {copies} copies of the parameters.",
            expected=f"data_parallel to divide {len(chosen)}",
        )
    return Mesh(chosen.reshape(copies, -1), ("data", "fsdp"))


def fsdp_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Splits the largest axis that the mesh's `fsdp` axis divides; replicates if there is none."""
    size = mesh.shape["fsdp"]
    divisible = [axis for axis, length in enumerate(shape) if length % size == 0 and length >= size]
    if size == 1 or not divisible:
        return NamedSharding(mesh, PartitionSpec())
    largest = max(divisible, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*(None,) * largest, "fsdp"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits by rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def shard_batch(mesh: Mesh, batch: Batch) -> Batch:
    """Splits every array of a batch by rows over all devices. Each process's rows go to its own devices."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda local: jax.make_array_from_process_local_data(sharding, local), batch)


def split_rows(mesh: Mesh | None, x: jax.Array) -> jax.Array:
    """Keeps every example of an activation on one device; without a mesh, does nothing."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def split_columns(mesh: Mesh | None, x: jax.Array, columns: bool) -> jax.Array:
    """Gathers an activation's examples along `fsdp` on each device. Splits its last axis instead if `columns`."""
    if mesh is None:
        return x
    last = "fsdp" if columns and x.shape[-1] % mesh.shape["fsdp"] == 0 else None
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("data", *(None,) * (x.ndim - 2), last)))


def gather(mesh: Mesh | None, parameters: Tree) -> Tree:
    """Gathers parameters on every device, to work on its own examples; without a mesh, does nothing.

    Called inside the loop over layers, so that a device holds one layer's parameters at a time (ZeRO-3, arXiv 1910.02054).
    Otherwise XLA leaves the parameters split and sends activations, more for larger batches. Gradients are summed in their
    split layout.
    """
    if mesh is None or mesh.shape["fsdp"] == 1:
        return parameters
    return jax.tree.map(partial(_gathered, mesh), parameters)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(mesh: Mesh, x: jax.Array) -> jax.Array:
    # First pin the stored layout: else XLA may gather the stack of all layers, and then pick this one.
    x = jax.lax.with_sharding_constraint(x, fsdp_sharding(mesh, x.shape))
    x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))
    return checkpoint_name(x, GATHERED)


def _gathered_forward(mesh: Mesh, x: jax.Array) -> tuple[jax.Array, None]:
    return _gathered(mesh, x), None


def _gathered_backward(mesh: Mesh, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, fsdp_sharding(mesh, gradient.shape)),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def check_batch_size(mesh: Mesh, batch_size: int, parts: int = 1) -> None:
    """Raises InputError unless each part of a batch splits evenly over the devices."""
    devices = mesh.devices.size * parts
    if batch_size % devices:
        near = max(devices, round(batch_size / devices) * devices)
        raise InputError(
            f"A batch of {batch_size} does not split over {mesh.devices.size} devices"
            + (f" in {parts} parts." if parts > 1 else "."),
            expected=f"a multiple of {devices}",
            fix=f"set batch_size={near}",
        )
