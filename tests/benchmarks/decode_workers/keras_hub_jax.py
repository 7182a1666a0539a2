"""keras-hub on its JAX backend, as `decode.py` times it: `generate`, greedily, which is one jitted loop over a key/value cache.

Its shapes hold the whole text, so the prefill of a run of 33 tokens is over 32 more positions than that of a run of one: what
comes after it is a run's time less that of one of the same shape, in which all but one token are given.
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "jax"

import time

import numpy as np
from keras_hub.models import PaliGemmaCausalLM
from worker import NEW_TOKENS, read_case, serve, step_worker

case, images, tokens = read_case()
step = step_worker("keras_hub_jax")
backbone = step.make_backbone(case)
for variable, value in step.variables(backbone, case.weights):
    variable.assign(value.reshape(variable.shape))
model = PaliGemmaCausalLM(preprocessor=None, backbone=backbone)
model.compile(sampler="greedy")


def run(rows: int, width: int, given: int) -> np.ndarray:
    ids = np.zeros((rows, width), np.int32)
    ids[:, : tokens.shape[1]] = tokens[:rows]
    mask = np.broadcast_to(np.arange(width) < given, ids.shape).astype(np.int32)
    found = model.generate(
        {"images": images[:rows], "token_ids": ids, "padding_mask": mask, "response_mask": 0 * mask}, stop_token_ids=None
    )
    return np.asarray(found["token_ids"])[:, tokens.shape[1] :]


def measure(rows: int) -> list[float]:
    prompt = tokens.shape[1]
    width = prompt + 1 + NEW_TOKENS
    times = []
    for shape in ((prompt + 1, prompt), (width, width - 1), (width, prompt)):
        started = time.perf_counter()
        run(rows, *shape)
        times.append(time.perf_counter() - started)
    return times


serve(lambda rows: run(rows, tokens.shape[1] + 1 + NEW_TOKENS, tokens.shape[1]), measure, ["keras-hub", "keras", "jax"])
