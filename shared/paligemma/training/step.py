"""One training step: gradients of the trainable parameters only, summed over the parts of a batch, one optimizer update."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from paligemma.data.batch import TrainBatch
from paligemma.models.attention import attention_form
from paligemma.models.gemma import Dropout
from paligemma.models.layers import LayerPlan
from paligemma.models.paligemma import PaliGemma
from paligemma.models.parameter_shapes import EMBEDDING
from paligemma.runtime.sharding import fsdp_sharding, gather, split_columns
from paligemma.training.loss import LossPer, token_weights, weighted_loss
from paligemma.training.recipe import Recipe


class TrainState(NamedTuple):
    """What a step changes. `step` counts batches, including skipped ones: it is the position in the data."""

    step: Int[Array, ""]
    trainable: nnx.State
    optimizer: optax.OptState


class StepMetrics(NamedTuple):
    """What a step reports: the batch's loss before the update, and the norm of its gradient before clipping."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]


@dataclass(frozen=True)
class StepSettings:
    """Settings of a step besides the optimizer. See `Recipe` for their meaning."""

    plan: LayerPlan = field(default_factory=LayerPlan)
    accumulate: int = 1
    loss_per: LossPer = "example"
    label_smoothing: float = 0.0
    loss_chunk: int = 512
    dropout: float = 0.0
    seed: int = 0
    skip_non_finite: bool = False

    @staticmethod
    def of(recipe: Recipe) -> StepSettings:
        """The settings of a recipe."""
        return StepSettings(
            recipe.layer_plan,
            recipe.accumulate,
            recipe.loss_per,
            recipe.label_smoothing,
            recipe.loss_chunk,
            recipe.dropout,
            recipe.seed,
            recipe.non_finite == "skip",
        )


TrainStep = Callable[[TrainState, nnx.State, TrainBatch], tuple[TrainState, StepMetrics]]
LossFunction = Callable[[nnx.State, nnx.State, TrainBatch], tuple[Float[Array, ""], Float[Array, ""]]]


def embed_images(model: PaliGemma, images: Array, plan: LayerPlan | None = None) -> Float[Array, "b s d"]:
    """Image embeddings from pixels (uint8, or floats in [-1, 1]). Embeddings (rank 3) pass unchanged."""
    return images if images.ndim == 3 else model.embed_images(to_float(images), plan)


def to_float(images: Array) -> Float[Array, "b *n height width 3"]:
    """Maps uint8 pixels to [-1, 1]; other dtypes pass unchanged."""
    return images.astype(jnp.float32) / 127.5 - 1.0 if images.dtype == jnp.uint8 else images


def batch_loss(
    model: PaliGemma,
    batch: TrainBatch,
    settings: StepSettings = StepSettings(),
    weights: Float[Array, "b s"] | None = None,
    dropout: Dropout | None = None,
) -> Float[Array, ""]:
    """The loss of a batch or a part of a batch.

    Args:
        model: the network.
        batch: the examples.
        settings: how the loss is computed, and how the layers run.
        weights: each token's weight in the whole batch's loss; None if this is the whole batch.
        dropout: dropout in the decoder; None for none.
    """
    if weights is None:
        weights = token_weights(batch.mask_loss, settings.loss_per)
    mesh = settings.plan.mesh
    image = embed_images(model, batch.images, settings.plan)
    hidden = model.hidden(image, batch.tokens, batch.mask_ar, at=batch.loss_positions, plan=settings.plan, dropout=dropout)

    def to_logits(hidden: Float[Array, "b c d"]) -> Float[Array, "b c v"]:
        # The embedding stays split: sending the suffixes' hidden states is cheaper than sending 257,152 rows.
        return split_columns(mesh, model.llm.logits(split_columns(mesh, hidden, columns=False)), columns=True)

    return weighted_loss(
        to_logits,
        hidden,
        batch.targets,
        weights,
        settings.label_smoothing,
        settings.loss_chunk,
        only_hidden=re.fullmatch(settings.plan.trained, EMBEDDING) is None,
    )


def init_state(trainable: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh | None = None) -> TrainState:
    """The state before the first step; on a mesh, the optimizer's state is split like the parameters."""
    if mesh is None:
        return TrainState(jnp.int32(0), trainable, optimizer.init(trainable))

    def rest(trainable: nnx.State) -> tuple[Array, optax.OptState]:
        return jnp.int32(0), optimizer.init(trainable)

    places = jax.tree.map(lambda leaf: fsdp_sharding(mesh, leaf.shape), jax.eval_shape(rest, trainable))
    step, optimizer_state = jax.jit(rest, out_shardings=places)(trainable)
    return TrainState(step, trainable, optimizer_state)


def make_train_step(
    graph: nnx.GraphDef[PaliGemma],
    optimizer: optax.GradientTransformation,
    settings: StepSettings = StepSettings(),
    mesh: Mesh | None = None,
) -> TrainStep:
    """Compiles `step(state, frozen, batch) -> (state, metrics)`; the old state's buffers are reused for the new one.

    A batch is processed in `settings.accumulate` parts, whose gradients are summed. Losses are weighted relative to the whole
    batch, so the parts give the same gradient as one piece, up to the order of summation.
    """

    settings = _on(mesh, settings)

    def step(state: TrainState, frozen: nnx.State, batch: TrainBatch) -> tuple[TrainState, StepMetrics]:
        weights = token_weights(batch.mask_loss, settings.loss_per)
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)

        def part(number, batch: TrainBatch, weights: Array):
            dropout = Dropout(settings.dropout, jax.random.fold_in(key, number)) if settings.dropout else None

            def loss_of(trainable: nnx.State) -> Float[Array, ""]:
                return batch_loss(_assemble(mesh, graph, trainable, frozen), batch, settings, weights, dropout)

            return jax.value_and_grad(loss_of)(state.trainable)

        if settings.accumulate == 1:
            loss, gradients = part(0, batch, weights)
        else:
            loss, gradients = _summed(part, settings.accumulate, batch, weights)
        norm = optax.tree.norm(gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = cast(nnx.State, optax.apply_updates(state.trainable, updates))
        if settings.skip_non_finite:
            sound = jnp.isfinite(loss) & jnp.isfinite(norm)
            trainable, optimizer_state = jax.tree.map(
                partial(jnp.where, sound), (trainable, optimizer_state), (state.trainable, state.optimizer)
            )
        state = TrainState(state.step + 1, trainable, optimizer_state)
        if mesh is not None:  # keep the input's layout: another layout would recompile the next step
            sharding_of = partial(fsdp_sharding, mesh)
            state = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding_of(x.shape)), state)
        return state, StepMetrics(loss, norm)

    return jax.jit(step, donate_argnums=0)


def make_loss_function(graph: nnx.GraphDef[PaliGemma], settings: StepSettings, mesh: Mesh | None = None) -> LossFunction:
    """Compiles `loss(trainable, frozen, batch)`: the sum of the tokens' losses in nats, and the number of tokens.

    Without dropout and label smoothing.
    """
    plain = _on(mesh, StepSettings(LayerPlan(unroll=settings.plan.unroll), loss_chunk=settings.loss_chunk))

    def loss(trainable: nnx.State, frozen: nnx.State, batch: TrainBatch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        weights = batch.mask_loss.astype(jnp.float32)
        return batch_loss(_assemble(mesh, graph, trainable, frozen), batch, plain, weights), jnp.sum(weights)

    return jax.jit(loss)


def _on(mesh: Mesh | None, settings: StepSettings) -> StepSettings:
    """The settings for a mesh's devices: on one device, nothing is split or gathered."""
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    mesh = mesh if mesh is not None and mesh.size > 1 else None
    form = attention_form(platform, 1 if mesh is None else mesh.size)
    plan = replace(settings.plan, mesh=mesh, attention=form)
    return replace(settings, plan=plan)


def _assemble(mesh: Mesh | None, graph: nnx.GraphDef[PaliGemma], trainable: nnx.State, frozen: nnx.State) -> PaliGemma:
    """The network, with all parameters gathered except stacked layers and the embedding."""

    def rest(path: tuple, leaf: Array) -> Array:
        name = "/".join(str(getattr(key, "key", key)) for key in path)
        return leaf if re.match("llm/(layers|embedder)/|img/Transformer/encoderblock/", name) else gather(mesh, leaf)

    return nnx.merge(graph, *(jax.tree_util.tree_map_with_path(rest, state) for state in (trainable, frozen)))


def _summed(part: Callable, parts: int, batch: TrainBatch, weights: Array):
    """Sums of `part(number, batch, weights)` over the parts of a batch.

    Part i has rows i, i + parts, ...: equally many of every device's rows, so no row moves to another device.
    """

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    def add(total, inputs):
        return jax.tree.map(jnp.add, total, part(*inputs)), None

    inputs = (jnp.arange(parts), jax.tree.map(split, batch), split(weights))
    first = jax.tree.map(lambda x: x[0], inputs)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part, *first))
    return jax.lax.scan(add, zero, inputs)[0]
