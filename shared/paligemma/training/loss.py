"""Next-token loss on suffix tokens, with weights that sum to one over a batch, and logits in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LossPer = Literal["example", "token"]


def token_weights(mask_loss: Int[Array, "b s"], per: LossPer = "example") -> Float[Array, "b s"]:
    """Each token's weight in a batch's loss. Weights are relative to the whole batch, so parts can be summed in any order.

    Args:
        mask_loss: 1 on the tokens that count; an example without any counts as an example with loss 0.
        per: `example`: all examples count equally, whatever their length (big_vision); `token`: all tokens count equally.
    """
    weights = mask_loss.astype(jnp.float32)
    if per == "token":
        return weights / jnp.maximum(jnp.sum(weights), 1.0)
    return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1.0) / len(weights)


def cross_entropy(
    logits: Float[Array, "b s v"], targets: Int[Array, "b s"], label_smoothing: float = 0.0
) -> Float[Array, "b s"]:
    """Negative log-likelihood of each target, in nats, in float32.

    With label smoothing, the target has weight 1 - `label_smoothing`, and the other tokens share the remainder (big_vision,
    `trainers/proj/paligemma/train.py`).
    """
    logits = logits.astype(jnp.float32)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    likelihood = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - normalizer
    if not label_smoothing:
        return -likelihood
    vocabulary = logits.shape[-1]
    others = jnp.sum(logits, axis=-1) - vocabulary * normalizer - likelihood
    return -(1.0 - label_smoothing) * likelihood - label_smoothing / (vocabulary - 1) * others


def weighted_loss(
    to_logits: Callable[[Float[Array, "b c d"]], Float[Array, "b c v"]],
    hidden: Float[Array, "b s d"],
    targets: Int[Array, "b s"],
    weights: Float[Array, "b s"],
    label_smoothing: float = 0.0,
    chunk: int = 512,
    only_hidden: bool = False,
) -> Float[Array, ""]:
    """Sum of weighted token losses, with the logits of about `chunk` tokens in memory at a time.

    A token has 257,152 logits: 1 MiB in float32. Chunks are columns, so that rows stay on their devices. With more than one
    chunk, the backward pass recomputes a chunk's logits, unless `only_hidden`: then the forward pass forms the gradient beside
    the loss, a chunk at a time.

    Args:
        to_logits: maps hidden states to logits.
        hidden: hidden states.
        targets: token ids.
        weights: each token's weight.
        label_smoothing: see `cross_entropy`.
        chunk: number of tokens whose logits are in memory.
        only_hidden: nothing that `to_logits` uses is trained, so that only `hidden` has a gradient.
    """
    rows, width = targets.shape
    columns = max(1, chunk // rows)

    def loss_of(hidden, targets, weights):
        return jnp.sum(cross_entropy(to_logits(hidden), targets, label_smoothing) * weights)

    if columns >= width:
        return loss_of(hidden, targets, weights)
    count = -(-width // columns)

    def chunks(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, count * columns - width)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(rows, count, columns, *x.shape[2:]), 1, 0)

    parts = (chunks(hidden), chunks(targets), chunks(weights))
    if only_hidden:
        return _in_one_pass(loss_of, *parts)

    def add(total, part):
        return total + jax.checkpoint(loss_of, prevent_cse=False)(*part), None

    return jax.lax.scan(add, jnp.float32(0.0), parts)[0]


def _in_one_pass(
    loss_of: Callable[..., Float[Array, ""]],
    hidden: Float[Array, "n b c d"],
    targets: Int[Array, "n b c"],
    weights: Float[Array, "n b c"],
) -> Float[Array, ""]:
    """The sum of `loss_of` over chunks; differentiated, its gradient comes from the same pass."""

    def over_parts(of_part: Callable, hidden: Float[Array, "n b c d"]):
        def add(total, part):
            value, other = of_part(*part)
            return total + value, other

        return jax.lax.scan(add, jnp.float32(0.0), (hidden, targets, weights))

    @jax.custom_vjp
    def total(hidden: Float[Array, "n b c d"]) -> Float[Array, ""]:
        return over_parts(lambda *part: (loss_of(*part), None), hidden)[0]

    def forward(hidden: Float[Array, "n b c d"]) -> tuple[Float[Array, ""], Float[Array, "n b c d"]]:
        return over_parts(jax.value_and_grad(loss_of), hidden)

    def backward(gradient: Float[Array, "n b c d"], scale: Float[Array, ""]) -> tuple[Float[Array, "n b c d"]]:
        return ((gradient * scale).astype(gradient.dtype),)

    total.defvjp(forward, backward)
    return total(hidden)
