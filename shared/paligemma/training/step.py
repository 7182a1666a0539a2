"""One training step: gradients of the trainable parameters only, one optimizer update."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from paligemma.data.batch import TrainBatch
from paligemma.models.layers import Remat
from paligemma.models.paligemma import PaliGemma
from paligemma.training.loss import suffix_loss


class TrainState(NamedTuple):
    """What a step changes."""

    step: Int[Array, ""]
    trainable: nnx.State
    optimizer: optax.OptState


class StepMetrics(NamedTuple):
    """What a step reports: the batch's loss before the update, and the norm of its gradient."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]


TrainStep = Callable[[TrainState, nnx.State, TrainBatch], tuple[TrainState, StepMetrics]]


def split_trainable(model: PaliGemma, pattern: str) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The network's structure, its trainable parameters and its frozen ones.

    Args:
        model: the network.
        pattern: regular expression that a trainable parameter's whole name matches, e.g. `llm/layers/attn/.*`.
    """

    return nnx.split(model, lambda path, _: is_trainable(pattern, "/".join(map(str, path))), ...)


def is_trainable(pattern: str, name: str) -> bool:
    """Whether a parameter of this name belongs to the set that the pattern describes."""
    return re.fullmatch(pattern, name) is not None


def batch_loss(model: PaliGemma, batch: TrainBatch, remat: Remat = "none") -> Float[Array, ""]:
    """Mean over examples of the mean over suffix tokens. Logits, 257,152 of them a token, only where there is a loss."""
    images = batch.images
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 127.5 - 1.0
    hidden = model.hidden(images, batch.tokens, batch.mask_ar, remat=remat)
    hidden = jnp.take_along_axis(hidden, batch.loss_positions[..., None], axis=1)
    return jnp.mean(suffix_loss(model.llm.logits(hidden), batch.targets, batch.mask_loss))


def init_state(trainable: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.int32(0), trainable, optimizer.init(trainable))


def make_train_step(
    graph: nnx.GraphDef[PaliGemma], optimizer: optax.GradientTransformation, remat: Remat = "none"
) -> TrainStep:
    """Compiles `step(state, frozen, batch) -> (state, metrics)`; the old state's buffers are reused for the new one."""

    def step(state: TrainState, frozen: nnx.State, batch: TrainBatch) -> tuple[TrainState, StepMetrics]:
        def loss_of(trainable: nnx.State) -> Float[Array, ""]:
            return batch_loss(nnx.merge(graph, trainable, frozen), batch, remat)

        loss, gradients = jax.value_and_grad(loss_of)(state.trainable)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = StepMetrics(loss, optax.tree.norm(gradients))
        return TrainState(state.step + 1, trainable, optimizer_state), metrics

    return jax.jit(step, donate_argnums=0)
