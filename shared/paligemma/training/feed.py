"""Feeds batches to the devices, ahead of the step that reads them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from paligemma.data.batch import TrainBatch
from paligemma.runtime.sharding import shard_batch

AHEAD = 2
"""Batches on the devices besides the current one."""


class FedBatch(NamedTuple):
    """A batch on the devices, and the numbers of this process's rows."""

    rows: Int[np.ndarray, " b"]
    batch: TrainBatch


def feed(
    batches: Generator[tuple[np.ndarray, TrainBatch]],
    mesh: Mesh,
    embed: Callable[[np.ndarray, TrainBatch], TrainBatch] | None = None,
) -> Generator[FedBatch]:
    """Yields the batches, sharded over the mesh. Closing this generator closes `batches`.

    Args:
        batches: row numbers and batches on this host: this process's share of every batch.
        mesh: the devices.
        embed: replaces a batch's images by their embeddings, e.g. a `VisionCache`; None keeps the images.
    """
    coming: deque[FedBatch] = deque()
    try:
        for rows, batch in batches:
            if embed is not None:
                batch = embed(rows, batch)
            coming.append(FedBatch(rows, shard_batch(mesh, batch)))
            if len(coming) > AHEAD:
                yield coming.popleft()
        yield from coming
    finally:
        batches.close()
