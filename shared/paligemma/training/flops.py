"""Floating-point operations of a training step, without recomputation, and the peak speed of its devices."""

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
"""Data sheet speed of dense 16-bit matrix products, 10^12 operations a second, by prefix of the device kind."""


def step_flops(
    config: PaliGemmaConfig,
    trained: Mapping[str, tuple[int, ...]],
    rows: int,
    text_width: int,
    losses: float,
    with_tower: bool = True,
    images: int = 1,
) -> float:
    """Operations in the matrix products of one step: two per multiply-add.

    The backward pass repeats a product for the gradient of its input, if something before it is trained, and again for a
    trained weight. Attention's two products have two inputs each. Attention counts in full, masked or not. So does the last
    layer, although only `losses` positions of it are read.

    Args:
        config: the architecture.
        trained: names and shapes of the trained parameters.
        rows: examples in the batch.
        text_width: input tokens of an example, with padding.
        losses: average number of positions per example whose logits are computed.
        with_tower: whether the step runs the vision tower; False with cached embeddings.
        images: images of an example.
    """
    img, llm = config.img, config.llm
    patches, tokens = img.num_patches, images * img.num_patches + text_width

    def trained_in(pattern: str) -> float:
        return sum(float(np.prod(shape)) for name, shape in trained.items() if re.fullmatch(pattern, name))

    heads = llm.num_heads * llm.head_dim
    inputs = llm.width * (heads + 2 * llm.num_kv_heads * llm.head_dim)
    layer = inputs + heads * llm.width + 3 * llm.width * llm.mlp_dim
    scores, adapters = 2 * tokens * heads, trained_in(r".*/lora_.*")
    below = trained_in("img/.*|llm/embedder/.*") > 0
    decoder = tokens * (llm.depth * (layer + scores) + adapters)
    decoder += tokens * (llm.depth * (layer + 2 * scores) + adapters - (0 if below else inputs))
    decoder += tokens * trained_in("llm/layers/.*(?<!/scale)")
    logits = losses * (2 * llm.vocab_size * llm.width + trained_in("llm/embedder/.*"))

    tower, head = 0.0, img.width * llm.width
    if with_tower:
        block, scores = 4 * img.width**2 + 2 * img.width * img.mlp_dim, 2 * patches * img.width
        tower += patches * (3 * img.patch_size**2 * img.width + img.depth * (block + scores) + head)
        if trained_in("img/(?!head/).*"):
            lowest = 0 if trained_in("img/(embedding/.*|pos_embedding)") else 3 * img.width**2
            tower += patches * (img.depth * (block + 2 * scores) - lowest + head)
        tower += patches * trained_in("img/.*/kernel")
    return 2.0 * rows * (decoder + logits + images * tower)


def flops_counter(config: PaliGemmaConfig, trainable: nnx.State) -> Callable[[FedBatch], float]:
    """A function that counts a batch's operations, over all processes."""
    shapes = {"/".join(map(str, path)): tuple(variable.shape) for path, variable in nnx.to_flat_state(trainable)}

    def count(fed: FedBatch) -> float:
        batch = fed.batch
        with_tower = batch.images.ndim > 3
        images = batch.images.shape[1] // config.img.num_patches
        if with_tower:
            images = batch.images.shape[1] if batch.images.ndim == 5 else 1
        widths = batch.tokens.shape[1], batch.targets.shape[1]
        return step_flops(config, shapes, len(batch.tokens), *widths, with_tower, images)

    return count


def peak_flops() -> float:
    """Peak operations a second of all devices together: from data sheets, or measured now for an unlisted device."""
    kind = jax.devices()[0].device_kind
    for name in sorted(PEAK_TFLOPS, key=len, reverse=True):
        if kind.startswith(name):
            return PEAK_TFLOPS[name] * 1e12 * jax.device_count()
    return _measured()


def _measured(enough: float = 0.001, attempts: int = 3) -> float:
    """Measured speed of float32 matrix products on the default device. Simulated devices share it.

    The best attempt counts, at the first size that takes `enough` seconds: a larger one is no faster, and every run would wait
    for it.
    """
    multiply = jax.jit(jnp.matmul)
    for size in (512, 1024, 2048, 4096):
        x = jnp.ones((size, size), jnp.float32)
        multiply(x, x).block_until_ready()
        best = float("inf")
        for _ in range(attempts):
            started = time.perf_counter()
            multiply(x, x).block_until_ready()
            best = min(best, time.perf_counter() - started)
        if best >= enough:
            break
    return 2.0 * size**3 / best
