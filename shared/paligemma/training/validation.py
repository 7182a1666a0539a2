"""The loss on validation rows: every suffix token counts equally, whatever the recipe's loss."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import Mesh

from paligemma.data.loader import validation_batches
from paligemma.data.records import Records
from paligemma.models.paligemma import PaliGemma
from paligemma.training.feed import feed
from paligemma.training.recipe import Recipe
from paligemma.training.step import StepSettings, make_loss_function


def make_validator(
    graph: nnx.GraphDef[PaliGemma], frozen: nnx.State, records: Records, recipe: Recipe, mesh: Mesh
) -> Callable[[nnx.State], float]:
    """A function that maps trainable parameters to the mean loss of all suffix tokens of the records, in nats."""
    loss_of = make_loss_function(graph, StepSettings.of(recipe), mesh)

    def validate(trainable: nnx.State) -> float:
        batches = validation_batches(records, recipe.batch_size, jax.process_index(), jax.process_count())
        parts = [loss_of(trainable, frozen, fed.batch) for fed in feed(batches, mesh)]
        sums, counts = zip(*jax.device_get(parts), strict=True)
        return float(sum(sums) / sum(counts))

    return validate
