"""keras-hub's training step on its JAX backend, as `step.py` times it: stateless calls of the backbone, jit-compiled whole.

Faster than `PaliGemmaCausalLM.fit`, whose head computes logits at every position, the image's included: here the head is
applied only where there is a loss.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
from keras_hub.models import PaliGemmaBackbone
from worker import LEARNING_RATE, Case, serve, targets


def make_backbone(case: Case) -> PaliGemmaBackbone:
    image, text = case.config["img"], case.config["llm"]
    return PaliGemmaBackbone(
        vocabulary_size=text["vocab_size"],
        image_size=image["image_size"],
        num_layers=text["depth"],
        num_query_heads=text["num_heads"],
        num_key_value_heads=text["num_kv_heads"],
        hidden_dim=text["width"],
        intermediate_dim=2 * text["mlp_dim"],  # keras-hub counts gate and up-projection together
        head_dim=text["head_dim"],
        vit_patch_size=image["patch_size"],
        vit_num_heads=image["num_heads"],
        vit_hidden_dim=image["width"],
        vit_num_layers=image["depth"],
        vit_intermediate_dim=image["mlp_dim"],
        dtype="float32",
    )


def variables(backbone: PaliGemmaBackbone, weights) -> Iterator[tuple[keras.Variable, np.ndarray]]:
    """Every variable of the backbone and its value."""
    tower, head = (backbone.vit_encoder.get_layer(name) for name in ("image_encoder", "image_classifier"))
    yield tower.vision_embeddings.patch_embedding.kernel, weights["img/embedding/kernel"]
    yield tower.vision_embeddings.patch_embedding.bias, weights["img/embedding/bias"]
    yield tower.vision_embeddings.position_embedding.embeddings, weights["img/pos_embedding"][0]
    yield tower.encoder_layer_norm.gamma, weights["img/Transformer/encoder_norm/scale"]
    yield tower.encoder_layer_norm.beta, weights["img/Transformer/encoder_norm/bias"]
    yield head.kernel, weights["img/head/kernel"]
    yield head.bias, weights["img/head/bias"]
    for number, block in enumerate(tower.resblocks):
        for name, dense in (
            ("MlpBlock_0/Dense_0", block.mlp_dense_1),
            ("MlpBlock_0/Dense_1", block.mlp_dense_2),
            ("MultiHeadDotProductAttention_0/query", block.attn.query_proj),
            ("MultiHeadDotProductAttention_0/key", block.attn.key_proj),
            ("MultiHeadDotProductAttention_0/value", block.attn.value_proj),
            ("MultiHeadDotProductAttention_0/out", block.attn.out_proj),
        ):
            for part, variable in (("kernel", dense.kernel), ("bias", dense.bias)):
                yield variable, weights[f"img/Transformer/encoderblock/{name}/{part}"][number]
        for name, norm in (("LayerNorm_0", block.layer_norm_1), ("LayerNorm_1", block.layer_norm_2)):
            for part, variable in (("scale", norm.gamma), ("bias", norm.beta)):
                yield variable, weights[f"img/Transformer/encoderblock/{name}/{part}"][number]
    yield backbone.token_embedding.embeddings, weights["llm/embedder/input_embedding"]
    yield backbone.layer_norm.scale, weights["llm/final_norm/scale"]
    for number, block in enumerate(backbone.transformer_layers):
        key, value = weights["llm/layers/attn/kv_einsum/w"][number]
        gate, up = weights["llm/layers/mlp/gating_einsum"][number]
        yield block.pre_attention_norm.scale, weights["llm/layers/pre_attention_norm/scale"][number]
        yield block.pre_ffw_norm.scale, weights["llm/layers/pre_ffw_norm/scale"][number]
        yield block.attention.query_dense.kernel, weights["llm/layers/attn/q_einsum/w"][number]
        yield block.attention.key_dense.kernel, key
        yield block.attention.value_dense.kernel, value
        yield block.attention.output_dense.kernel, weights["llm/layers/attn/attn_vec_einsum/w"][number]
        yield block.gating_ffw.kernel, gate
        yield block.gating_ffw_2.kernel, up
        yield block.ffw_linear.kernel, weights["llm/layers/mlp/linear"][number]


def build(case: Case, variant: str) -> Callable[[int], float]:
    backbone = make_backbone(case)
    for variable in backbone.variables:
        variable.trainable = False
    loaded = {}
    for variable, value in variables(backbone, case.weights):
        variable.assign(value.reshape(variable.shape))
        loaded[id(variable)] = variable
    assert loaded.keys() >= {id(variable) for variable in backbone.weights}
    for block in backbone.transformer_layers:
        for variable in block.attention.variables:
            variable.trainable = True

    def inputs_of(batch: dict[str, np.ndarray]) -> tuple[dict[str, jax.Array], tuple[jax.Array, ...]]:
        suffix = batch["mask_ar"] * batch["mask_input"]
        inputs = {
            "images": batch["images"],
            "token_ids": batch["tokens"][:, :-1],
            "padding_mask": batch["mask_input"][:, :-1],
            "response_mask": suffix[:, :-1],
        }
        return jax.device_put((inputs, targets(batch)))

    batches = [inputs_of(batch) for batch in case.batches]
    embeddings = backbone.token_embedding.embeddings
    optimizer = keras.optimizers.SGD(LEARNING_RATE)
    optimizer.build(backbone.trainable_variables)

    def loss_of(trainable, frozen, table, inputs, wanted):
        positions, targets, weights = wanted
        hidden, _ = backbone.stateless_call(trainable, frozen, inputs)
        logits = hidden[:, case.patches + positions] @ table.T
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        return jnp.sum(nll * weights)

    def train(trainable, state, frozen, table, inputs, wanted):
        loss, gradients = jax.value_and_grad(loss_of)(trainable, frozen, table, inputs, wanted)
        trainable, state = optimizer.stateless_apply(state, gradients, trainable)
        return trainable, state, loss

    train = jax.jit(train, donate_argnums=(0, 1))
    trainable = [variable.value for variable in backbone.trainable_variables]
    frozen = [variable.value for variable in backbone.non_trainable_variables]
    state = [variable.value for variable in optimizer.variables]

    def step(number: int) -> float:
        nonlocal trainable, state
        trainable, state, loss = jax.block_until_ready(train(trainable, state, frozen, embeddings.value, *batches[number]))
        return float(loss)

    return step


if __name__ == "__main__":
    serve(build, ["keras-hub", "keras", "jax", "jaxlib"])
