"""transformers on torch, as `decode.py` times it: `generate`, greedily, with its key/value cache."""

from __future__ import annotations

import os
import time

import numpy as np
import torch
from worker import NEW_TOKENS, read_case, serve, step_worker

case, images, tokens = read_case()
step = step_worker("transformers_torch")
torch.set_num_threads(len(os.sched_getaffinity(0)))
model = step.make_model(case).float().eval()
for name, value in step.parameters(case.weights, case.config):
    model.get_parameter(name).data.copy_(torch.from_numpy(np.array(value)))
model.generation_config.eos_token_id = None
model.generation_config.pad_token_id = 0
image_token = case.config["llm"]["vocab_size"]


def run(rows: int, length: int) -> np.ndarray:
    ids = np.concatenate([np.full((rows, case.patches), image_token), tokens[:rows]], axis=1)
    inputs = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.ones(ids.shape, dtype=torch.long),
        "token_type_ids": torch.zeros(ids.shape, dtype=torch.long),
        "pixel_values": torch.from_numpy(images[:rows]).permute(0, 3, 1, 2).contiguous(),
    }
    with torch.inference_mode():
        return model.generate(**inputs, max_new_tokens=length, do_sample=False).numpy()[:, ids.shape[1] :]


def measure(rows: int) -> list[float]:
    times = []
    for length in (1, 1 + NEW_TOKENS):
        started = time.perf_counter()
        run(rows, length)
        times.append(time.perf_counter() - started)
    return [times[0], *times]


serve(lambda rows: run(rows, 1 + NEW_TOKENS), measure, ["transformers", "torch"])
