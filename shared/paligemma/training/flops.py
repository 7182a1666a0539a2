"""Floating-point operations that a training step needs, whatever it recomputes, and how many a second its devices can do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from paligemma.models.config import PaliGemmaConfig
from paligemma.training.feed import FedBatch

PEAK_TFLOPS = {
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5p": 459.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "Tesla T4": 65.0,
    "Tesla V100": 125.0,
    "NVIDIA L4": 121.0,
    "NVIDIA A10G": 70.0,
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.0,
}
"""Dense 16-bit matrix products, 10^12 operations a second, by the beginning of a device's kind; from data sheets."""


def step_flops(
    config: PaliGemmaConfig,
    trained: Mapping[str, tuple[int, ...]],
    rows: int,
    text_width: int,
    losses: int,
    with_tower: bool = True,
) -> float:
    """Operations of one step: two for each weight of a matrix product and token, forward and backward.

    Backward, every layer that passes a gradient on does its products once more, and every trained weight once more. Attention
    scores are counted in full, masked or not; norms and activations are not counted.

    Args:
        config: the architecture.
        trained: names and shapes of the trained parameters.
        rows: examples in the batch.
        text_width: input tokens of an example, with padding.
        losses: positions of an example whose logits are computed.
        with_tower: whether the step runs the vision tower; False with cached embeddings.
    """
    img, llm = config.img, config.llm
    patches, tokens = img.num_patches, img.num_patches + text_width
    tower = img.depth * (4 * img.width**2 + 2 * img.width * img.mlp_dim) + img.patch_size**2 * 3 * img.width
    tower_forward = 2.0 * patches * (tower + img.width * llm.width) + 4.0 * img.depth * patches**2 * img.width
    heads = llm.head_dim * (2 * llm.num_heads + 2 * llm.num_kv_heads)
    layers = llm.depth * llm.width * (heads + 3 * llm.mlp_dim)
    decoder_forward = 2.0 * tokens * layers + 4.0 * llm.depth * tokens**2 * llm.num_heads * llm.head_dim
    logits = 2.0 * losses * llm.vocab_size * llm.width

    def weights_of(part: str) -> float:
        return sum(float(np.prod(shape)) for name, shape in trained.items() if re.match(part, name))

    vision_trained = weights_of("img/") > 0
    total = decoder_forward + logits + (tower_forward if with_tower else 0.0)
    total += decoder_forward + logits + (tower_forward if vision_trained else 0.0)
    total += (
        2.0 * tokens * weights_of("llm/layers/")
        + 2.0 * patches * weights_of("img/")
        + 2.0 * losses * weights_of("llm/embedder")
    )
    return rows * total


def flops_counter(config: PaliGemmaConfig, trainable: nnx.State) -> Callable[[FedBatch], float]:
    """A function that counts a batch's operations, over all processes."""
    shapes = {"/".join(map(str, path)): tuple(variable.shape) for path, variable in nnx.to_flat_state(trainable)}

    def count(fed: FedBatch) -> float:
        batch = fed.batch
        with_tower = batch.images.ndim == 4
        return step_flops(config, shapes, len(batch.tokens), batch.tokens.shape[1], batch.targets.shape[1], with_tower)

    return count


def peak_flops() -> float:
    """Operations a second of all devices together: from the data sheet, or, for one that is not listed, as measured now."""
    kind = jax.devices()[0].device_kind
    for name in sorted(PEAK_TFLOPS, key=len, reverse=True):
        if kind.startswith(name):
            return PEAK_TFLOPS[name] * 1e12 * jax.device_count()
    return _measured()


def _measured(size: int = 2048, attempts: int = 3) -> float:
    """Of float32 matrix products on the default device, the best of a few. Simulated devices share it."""
    x = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    seconds = []
    for _ in range(attempts):
        started = time.perf_counter()
        multiply(x, x).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2.0 * size**3 / min(seconds)
