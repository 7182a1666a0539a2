"""Caches image embeddings: a frozen tower gives the same embedding for an image in every epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int

from paligemma.artifacts.record import canonical_sha256
from paligemma.checkpoints.open_checkpoint import Checkpoint
from paligemma.checkpoints.parameters import parameters_by_name
from paligemma.data.batch import TrainBatch
from paligemma.data.records import Records, image_numbers
from paligemma.errors import InputError
from paligemma.models.paligemma import PaliGemma
from paligemma.runtime.sharding import batch_sharding, fsdp_sharding, make_mesh
from paligemma.storage.atomic import write_file
from paligemma.storage.cache import cache_folder, exclusive
from paligemma.storage.disk_space import check_space
from paligemma.training.distributed import on_host
from paligemma.training.recipe import Recipe
from paligemma.training.step import to_float

Embed = Callable[[np.ndarray], jax.Array]


def make_vision_cache(
    graph: nnx.GraphDef[PaliGemma],
    trainable: nnx.State,
    frozen: nnx.State,
    base: Checkpoint,
    records: Records,
    recipe: Recipe,
    mesh: Mesh,
) -> VisionCache | None:
    """The cache that a recipe requests, or None.

    With several processes, each caches the images of its own rows on its own devices, so none waits for another.

    Raises:
        InputError: the recipe trains the tower.
    """
    if recipe.vision_cache == "none":
        return None
    if any(name.startswith("img/") for name in parameters_by_name(trainable)):
        raise InputError("The vision tower is trained, so its embeddings change.", fix="set vision_cache=none")
    tower, weights = nnx.split(nnx.merge(graph, trainable, frozen).img)
    if jax.process_count() > 1:
        mesh = make_mesh(jax.local_devices())
        weights = jax.tree.map(lambda leaf: jax.device_put(on_host(leaf), fsdp_sharding(mesh, leaf.shape)), weights)
    compute = jax.jit(lambda weights, images: nnx.merge(tower, weights)(to_float(images)))
    size = base.config.img.image_size
    one = jax.eval_shape(compute, weights, jax.ShapeDtypeStruct((1, size, size, 3), np.uint8))

    def embed(images: np.ndarray) -> jax.Array:
        return compute(weights, jax.device_put(images, rows))

    file = None
    if recipe.vision_cache == "disk":
        tree = records.record.artifact.tree_sha256
        held_in = [recipe.frozen_dtype, *([recipe.quantize.model_dump(mode="json")] if recipe.is_quantized else [])]
        key = canonical_sha256([base.weights_sha256, tree, *held_in, str(one.dtype)])
        file = cache_folder() / "vision" / f"{key}.embeddings"
    rows = batch_sharding(mesh)
    return VisionCache(records, embed, one.shape[1:], one.dtype, file)


class VisionCache:
    """Replaces a batch's images by their embeddings, and computes missing ones. There is one entry per image, not per row.

    An entry is `patches x width` numbers in the tower's dtype: 1 MiB for PaliGemma-3B at 224 pixels in float16.
    """

    def __init__(
        self, records: Records, embed: Embed, shape: tuple[int, int], dtype: np.dtype, file: Path | None = None
    ) -> None:
        """
        Args:
            records: the training data.
            embed: compiled function from images `[n, height, width, 3]` to embeddings, which makes one program of each n.
            shape: number of patches and width of an embedding.
            dtype: dtype of the embeddings.
            file: file that keeps them for later runs; None: in memory. Its name encodes what determines them.
        """
        self._number_of = image_numbers(records)
        self._embed = embed
        count = int(self._number_of.max()) + 1
        if file is None:
            self._entries: np.ndarray = np.empty((count, *shape), dtype)
            self._known = np.zeros(count, bool)
            return
        known_file = file.with_suffix(".known")
        with exclusive(file):
            if not known_file.exists():
                check_space(file.parent, count * int(np.prod(shape)) * dtype.itemsize)
                np.memmap(file, dtype, "w+", shape=(count, *shape)).flush()
                write_file(known_file, bytes(count))
        self._entries = np.memmap(file, dtype, "r+", shape=(count, *shape))
        # An entry is marked as known after it is written, so entries of a killed run are computed again.
        self._known = np.memmap(known_file, bool, "r+", shape=(count,))

    def __call__(self, rows: Int[np.ndarray, " b"], batch: TrainBatch) -> TrainBatch:
        """The batch with embeddings `[b, s, width]` in place of images, where s is the patches of all images of a row."""
        numbers = self._number_of[rows].ravel()
        if self._known[numbers].all():
            embeddings = self._entries[numbers]
        else:
            # The whole batch at once: its shape is compiled already.
            embeddings = np.asarray(self._embed(batch.images.reshape(-1, *batch.images.shape[-3:])))
            self._entries[numbers] = embeddings
            self._known[numbers] = True
        return batch._replace(images=embeddings.reshape(len(rows), -1, embeddings.shape[-1]))
