"""The device mesh, and where parameters and batches lie on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from paligemma.errors import InputError

Batch = TypeVar("Batch")


def make_mesh(devices: Sequence[jax.Device] | None = None, copies: int = 1) -> Mesh:
    """A mesh of `data` x `fsdp`.

    Args:
        devices: by default every one there is, of all processes.
        copies: of the parameters, along `data`; each is split over the devices along `fsdp`. One needs the least memory.

    Raises:
        InputError: the devices do not split into so many copies.
    """
    chosen = np.array(devices or jax.devices())
    if len(chosen) % copies:
        raise InputError(
            f"{len(chosen)} devices do not split into {copies} copies of the parameters.",
            expected=f"data_parallel to divide {len(chosen)}",
        )
    return Mesh(chosen.reshape(copies, -1), ("data", "fsdp"))


def fsdp_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Splits the largest axis that the mesh's `fsdp` axis divides; replicates when there is none."""
    size = mesh.shape["fsdp"]
    divisible = [axis for axis, length in enumerate(shape) if length % size == 0 and length >= size]
    if size == 1 or not divisible:
        return NamedSharding(mesh, PartitionSpec())
    largest = max(divisible, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*(None,) * largest, "fsdp"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """By rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def shard_batch(mesh: Mesh, batch: Batch) -> Batch:
    """Splits every array of a batch by rows over all devices; of each process, its own rows over its own devices."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda local: jax.make_array_from_process_local_data(sharding, local), batch)


def check_batch_size(mesh: Mesh, batch_size: int, parts: int = 1) -> None:
    """Confirms that each part of a batch splits evenly over the devices."""
    devices = mesh.devices.size * parts
    if batch_size % devices:
        near = max(devices, round(batch_size / devices) * devices)
        raise InputError(
            f"A batch of {batch_size} does not split over {mesh.devices.size} devices"
            + (f" in {parts} parts." if parts > 1 else "."),
            expected=f"a multiple of {devices}",
            fix=f"set batch_size={near}",
        )
