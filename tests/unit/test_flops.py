"""The operations that a step is said to need are those of the products in the compiled program."""

from __future__ import annotations

import re

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from paligemma.checkpoints.parameters import parameters_by_name
from paligemma.data.batch import train_batch
from paligemma.models.config import DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.models.layers import LayerPlan
from paligemma.models.lora_factors import LoraConfig
from paligemma.models.paligemma import PaliGemma
from paligemma.training.feed import FedBatch
from paligemma.training.flops import flops_counter, step_flops
from paligemma.training.step import StepSettings, init_state, make_train_step
from paligemma.training.trainable import compile_pattern, split_trainable

CONFIG = PaliGemmaConfig(
    img=VisionConfig(image_size=8, patch_size=4, width=128, depth=1, mlp_dim=256, num_heads=2),
    llm=DecoderConfig(width=64, depth=2, mlp_dim=96, num_heads=4, num_kv_heads=2, head_dim=32, vocab_size=512),
)
"""One layer of the tower, as it runs in a loop whose body a program has once. Products of attention are a third of all."""

ROWS, TEXT = 2, 96


def products(program: str) -> float:
    """Operations of all products in an optimized HLO program without loops."""
    number, contracted = r"%(\S+) = \w+\[([\d,]*)\]", r"lhs_contracting_dims={([\d,]*)}"
    shapes = {name: [int(size) for size in shape.split(",") if size] for name, shape in re.findall(number, program)}
    total = 0
    for name, left, axes in re.findall(rf"%(\S+) = \S+ dot\(.*?%([^\s,)]+).*{contracted}", program):
        total += 2 * np.prod(shapes[name]) * np.prod([shapes[left][int(axis)] for axis in axes.split(",")])
    return float(total)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("trainable", ["attention", "lora", "all", ("img/head/.*",), ("img/Transformer/.*",)], ids=str)
def test_the_count_is_that_of_the_compiled_program(trainable: str | tuple[str, ...], images: int) -> None:
    text = TEXT * images
    lora = LoraConfig(rank=4) if trainable == "lora" else None
    graph, trained, frozen = split_trainable(PaliGemma(CONFIG, rngs=nnx.Rngs(0), lora=lora), compile_pattern(trainable))
    tokens = np.ones((ROWS, text + 1), np.int32)
    suffix = np.broadcast_to(np.arange(text + 1) > 0, tokens.shape).astype(np.int32)
    several = () if images == 1 else (images,)
    batch = train_batch(np.zeros((ROWS, *several, 8, 8, 3), np.float32), tokens, suffix, suffix)
    assert batch.targets.shape == (ROWS, text)
    optimizer = optax.sgd(0.1)
    step = make_train_step(graph, optimizer, StepSettings(LayerPlan(unroll=True)))
    program = step.lower(init_state(trained, optimizer), frozen, jax.device_put(batch)).compile().as_text()
    shapes = {name: variable.shape for name, variable in parameters_by_name(trained).items()}
    # The program does the last layer only where there is a loss, in 96 of 100 places.
    needed = step_flops(CONFIG, shapes, ROWS, text, text, images=images)
    assert needed == pytest.approx(products(program), rel=0.02)
    fed = FedBatch(np.arange(ROWS), batch)
    count = flops_counter(CONFIG, trained)
    assert count(fed) == needed
    embedded = batch._replace(images=np.zeros((ROWS, images * CONFIG.img.num_patches, CONFIG.llm.width), np.float32))
    assert count(FedBatch(np.arange(ROWS), embedded)) == step_flops(
        CONFIG, shapes, ROWS, text, text, with_tower=False, images=images
    )
