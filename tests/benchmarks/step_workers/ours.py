"""Our training step, as `step.py` times it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax
from worker import LEARNING_RATE, TRAINED, Case, serve

from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.parameters import build_module
from paligemma.data.batch import train_batch
from paligemma.models.layers import LayerPlan
from paligemma.runtime.host_memory import trim_after_compiling
from paligemma.training.step import StepSettings, init_state, make_train_step
from paligemma.training.trainable import compile_pattern, split_trainable


def build(case: Case, variant: str) -> Callable[[int], float]:
    trim_after_compiling()  # as finetune does
    checkpoint = open_checkpoint(case.folder / "checkpoint.npz")
    module = build_module(checkpoint.config, checkpoint.arrays, lambda *_: "float32", "float32")
    graph, trainable, frozen = split_trainable(module, compile_pattern((f"{TRAINED}.*",)))
    optimizer = optax.sgd(LEARNING_RATE)
    plan = LayerPlan("full" if variant == "lean" else "dots", trained=f"{TRAINED}.*")
    train, state = make_train_step(graph, optimizer, StepSettings(plan)), init_state(trainable, optimizer)
    fields = ("images", "tokens", "mask_ar", "mask_loss")
    batches = [jax.device_put(train_batch(*(batch[name] for name in fields))) for batch in case.batches]
    if variant == "cached":
        batches = [batch._replace(images=module.img(batch.images)) for batch in batches]

    def step(number: int) -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(train(state, frozen, batches[number]))
        return float(metrics.loss)

    return step


if __name__ == "__main__":
    serve(build, ["jax", "jaxlib", "flax"])
