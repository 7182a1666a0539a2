"""Next-token loss on suffix tokens only."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def suffix_loss(logits: Float[Array, "b s v"], targets: Int[Array, "b s"], mask_loss: Int[Array, "b s"]) -> Float[Array, " b"]:
    """Mean negative log-likelihood of each example's suffix tokens, in nats.

    Args:
        logits: at each position that has a loss, of the token that follows it.
        targets: that token.
        mask_loss: 1 where the target is a suffix token or its eos; an example without any has loss 0.
    """
    nll = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
    weights = mask_loss.astype(jnp.float32)
    return jnp.sum(nll * weights, axis=-1) / jnp.maximum(jnp.sum(weights, axis=-1), 1.0)
