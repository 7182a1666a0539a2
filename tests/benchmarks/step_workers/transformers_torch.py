"""transformers' training step on torch, as `step.py` times it. The variant `compiled` goes through `torch.compile`.

Logits are asked for only where there is a loss (`logits_to_keep`): by default transformers computes them at every position,
the image's included. Attention is `sdpa`: `eager` took 3 % longer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import torch
from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig
from worker import LEARNING_RATE, Case, serve, targets


def make_model(case: Case) -> PaliGemmaForConditionalGeneration:
    image, text = case.config["img"], case.config["llm"]
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=image["width"],
            intermediate_size=image["mlp_dim"],
            num_hidden_layers=image["depth"],
            num_attention_heads=image["num_heads"],
            image_size=image["image_size"],
            patch_size=image["patch_size"],
            vision_use_head=False,
        ),
        text_config=GemmaConfig(
            hidden_size=text["width"],
            intermediate_size=text["mlp_dim"],
            num_hidden_layers=text["depth"],
            num_attention_heads=text["num_heads"],
            num_key_value_heads=text["num_kv_heads"],
            head_dim=text["head_dim"],
            vocab_size=text["vocab_size"],
            hidden_activation="gelu_pytorch_tanh",
        ),
        projection_dim=text["width"],
        image_token_index=text["vocab_size"],  # beyond the vocabulary, so that every row of it is a text token's
        attn_implementation="sdpa",
    )
    return PaliGemmaForConditionalGeneration(config)


def parameters(weights, config) -> Iterator[tuple[str, np.ndarray]]:
    """Names of transformers and values; its linear layers hold [output, input]."""
    tower, text = "model.vision_tower", "model.language_model"
    yield f"{tower}.embeddings.patch_embedding.weight", weights["img/embedding/kernel"].transpose(3, 2, 0, 1)
    yield f"{tower}.embeddings.patch_embedding.bias", weights["img/embedding/bias"]
    yield f"{tower}.embeddings.position_embedding.weight", weights["img/pos_embedding"][0]
    yield f"{tower}.post_layernorm.weight", weights["img/Transformer/encoder_norm/scale"]
    yield f"{tower}.post_layernorm.bias", weights["img/Transformer/encoder_norm/bias"]
    yield "model.multi_modal_projector.linear.weight", weights["img/head/kernel"].T
    yield "model.multi_modal_projector.linear.bias", weights["img/head/bias"]
    width = config["img"]["width"]
    for theirs, ours in (
        ("mlp.fc1", "MlpBlock_0/Dense_0"),
        ("mlp.fc2", "MlpBlock_0/Dense_1"),
        ("self_attn.q_proj", "MultiHeadDotProductAttention_0/query"),
        ("self_attn.k_proj", "MultiHeadDotProductAttention_0/key"),
        ("self_attn.v_proj", "MultiHeadDotProductAttention_0/value"),
        ("self_attn.out_proj", "MultiHeadDotProductAttention_0/out"),
    ):
        inputs = config["img"]["mlp_dim"] if theirs == "mlp.fc2" else width
        kernels = weights[f"img/Transformer/encoderblock/{ours}/kernel"]
        biases = weights[f"img/Transformer/encoderblock/{ours}/bias"]
        for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            yield f"{tower}.encoder.layers.{number}.{theirs}.weight", kernel.reshape(inputs, -1).T
            yield f"{tower}.encoder.layers.{number}.{theirs}.bias", bias.reshape(-1)
    for theirs, ours in (("layer_norm1", "LayerNorm_0"), ("layer_norm2", "LayerNorm_1")):
        for part, name in (("weight", "scale"), ("bias", "bias")):
            for number, value in enumerate(weights[f"img/Transformer/encoderblock/{ours}/{name}"]):
                yield f"{tower}.encoder.layers.{number}.{theirs}.{part}", value
    yield f"{text}.embed_tokens.weight", weights["llm/embedder/input_embedding"]
    yield f"{text}.norm.weight", weights["llm/final_norm/scale"]
    width = config["llm"]["width"]
    for number in range(config["llm"]["depth"]):
        layer = f"{text}.layers.{number}"
        # [head, width, head_dim] to [head * head_dim, width]
        query = weights["llm/layers/attn/q_einsum/w"][number].transpose(0, 2, 1).reshape(-1, width)
        key, value = (kv.transpose(0, 2, 1).reshape(-1, width) for kv in weights["llm/layers/attn/kv_einsum/w"][number])
        gate, up = weights["llm/layers/mlp/gating_einsum"][number]
        yield f"{layer}.self_attn.q_proj.weight", query
        yield f"{layer}.self_attn.k_proj.weight", key
        yield f"{layer}.self_attn.v_proj.weight", value
        yield f"{layer}.self_attn.o_proj.weight", weights["llm/layers/attn/attn_vec_einsum/w"][number].reshape(-1, width).T
        yield f"{layer}.mlp.gate_proj.weight", gate.T
        yield f"{layer}.mlp.up_proj.weight", up.T
        yield f"{layer}.mlp.down_proj.weight", weights["llm/layers/mlp/linear"][number].T
        yield f"{layer}.input_layernorm.weight", weights["llm/layers/pre_attention_norm/scale"][number]
        yield f"{layer}.post_attention_layernorm.weight", weights["llm/layers/pre_ffw_norm/scale"][number]


def build(case: Case, variant: str) -> Callable[[int], float]:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = make_model(case).float().train()
    trained, loaded = [], set()
    for name, value in parameters(case.weights, case.config):
        parameter = model.get_parameter(name)
        parameter.data.copy_(torch.from_numpy(np.array(value)))
        loaded.add(id(parameter))
        parameter.requires_grad_("language_model" in name and "self_attn" in name)
        if parameter.requires_grad:
            trained.append(parameter)
    assert loaded == {id(parameter) for parameter in model.parameters()}

    def inputs_of(batch: dict[str, np.ndarray]) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        image = (len(batch["tokens"]), case.patches)
        positions, wanted, weights = (torch.from_numpy(array) for array in targets(batch))
        with_image = {
            "input_ids": (batch["tokens"], case.config["llm"]["vocab_size"]),
            "attention_mask": (batch["mask_input"], 1),
            # 1 makes a token causal; padding, which nothing sees, must not count as prefix.
            "token_type_ids": (batch["mask_ar"] | (1 - batch["mask_input"]), 0),
        }
        inputs = {
            name: torch.from_numpy(np.concatenate([np.full(image, front), text[:, :-1]], axis=1))
            for name, (text, front) in with_image.items()
        }
        inputs["pixel_values"] = torch.from_numpy(batch["images"]).permute(0, 3, 1, 2).contiguous()
        inputs["logits_to_keep"] = positions + case.patches
        return inputs, wanted.flatten().long(), weights.flatten()

    batches = [inputs_of(batch) for batch in case.batches]
    optimizer = torch.optim.SGD(trained, LEARNING_RATE)
    forward = torch.compile(model) if variant == "compiled" else model

    def step(number: int) -> float:
        inputs, wanted, weights = batches[number]
        logits = forward(**inputs, use_cache=False).logits
        loss = (torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted, reduction="none") * weights).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


if __name__ == "__main__":
    serve(build, ["transformers", "torch"])
