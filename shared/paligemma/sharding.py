"""The device mesh, and where parameters and batches lie on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from paligemma.errors import InputError

Batch = TypeVar("Batch")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices (by default every one there is) along `fsdp`; `data`, copies of the parameters, is 1: memory is short."""
    chosen = np.array(devices or jax.devices())
    return Mesh(chosen.reshape(1, len(chosen)), ("data", "fsdp"))


def fsdp_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Splits the largest axis that the mesh's `fsdp` axis divides; replicates when there is none."""
    size = mesh.shape["fsdp"]
    divisible = [axis for axis, length in enumerate(shape) if length % size == 0 and length >= size]
    if size == 1 or not divisible:
        return NamedSharding(mesh, PartitionSpec())
    largest = max(divisible, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*(None,) * largest, "fsdp"))


def shard_batch(mesh: Mesh, batch: Batch) -> Batch:
    """Splits every array of a batch by rows over all devices."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Confirms that a batch splits evenly over the devices."""
    devices = mesh.devices.size
    if batch_size % devices:
        near = max(devices, round(batch_size / devices) * devices)
        raise InputError(
            f"A batch of {batch_size} does not split over {devices} devices.",
            expected=f"a multiple of {devices}",
            fix=f"set batch_size={near}",
        )
