"""The network against outputs of an independent implementation."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import paligemma
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.parameters import build_module, parameters_by_name
from paligemma.checkpoints.resample import resample_positions
from paligemma.data.batch import TrainBatch, train_batch
from paligemma.data.images import preprocess
from paligemma.decoding.settings import DecodeSettings
from paligemma.models.config import VARIANTS
from paligemma.models.layers import LayerPlan
from paligemma.models.paligemma import abstract_model
from paligemma.models.parameter_shapes import parameter_shapes
from paligemma.precision import Precision
from paligemma.training.learning_rate import learning_rate_schedule
from paligemma.training.recipe import Recipe
from paligemma.training.step import StepSettings, batch_loss, init_state, make_train_step
from paligemma.training.trainable import compile_pattern, split_trainable

GOLDEN = Path(__file__).parent / "golden"
MODELS = ["pg1_mqa", "pg2_cap"]
ATTENTION = compile_pattern("attention")


def read(*parts: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN.joinpath(*parts)) as file:
        return dict(file)


def largest_difference(ours, theirs) -> float:
    assert np.shape(ours) == np.shape(theirs)
    return float(np.max(np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))))


def batch_of(inputs: dict[str, np.ndarray]) -> TrainBatch:
    return train_batch(*(inputs[f"train/{key}"] for key in ("image", "text", "mask_ar", "mask_loss")))


def train(module, inputs: dict[str, np.ndarray], settings: StepSettings = StepSettings()):
    """Three SGD steps on the attention layers; returns the losses, the trained parameters, and the model after them."""
    graph, trainable, frozen = split_trainable(module, ATTENTION)
    rates = jnp.asarray(inputs["lr"])
    optimizer = optax.sgd(lambda count: rates[count])
    step, state, losses = make_train_step(graph, optimizer, settings), init_state(trainable, optimizer), []
    for _ in range(3):
        state, metrics = step(state, frozen, batch_of(inputs))
        losses.append(float(metrics.loss))
    return losses, parameters_by_name(state.trainable), nnx.merge(graph, state.trainable, frozen)


@pytest.mark.parametrize("name", MODELS)
def test_image_embeddings(name: str) -> None:
    model, inputs = paligemma.load(GOLDEN / name), read(name, "inputs.npz")
    ours = model.module.img(jnp.asarray(inputs["train/image"]))
    assert largest_difference(ours, read(name, "expected.npz")["train/zimg"]) < 3e-5


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_the_front_door(name: str) -> None:
    model, inputs = paligemma.load(GOLDEN / name / "ckpt.npz", GOLDEN / name / "config.json"), read(name, "inputs.npz")
    logits = model.logits(inputs["train/image"], inputs["train/text"][:, :-1], inputs["train/mask_ar"][:, :-1])
    assert logits.dtype == jnp.float32
    assert largest_difference(logits, read(name, "expected.npz")["train/logits"]) < 5e-5


@pytest.mark.parametrize("name", MODELS)
def test_two_images_in_every_example(name: str) -> None:
    """Embeddings, logits and greedy tokens, with padding between prompt and answer. The order of the images matters."""
    inputs, two = read(name, "inputs.npz"), read(name, "two_images.npz")
    model = paligemma.load(GOLDEN / name)
    assert largest_difference(model.module.embed_images(jnp.asarray(two["image"])), two["zimg"]) < 3e-5
    train = (inputs["train/text"][:, :-1], inputs["train/mask_ar"][:, :-1])
    assert largest_difference(model.logits(two["image"], *train), two["logits"]) < 5e-5
    prompts = [inputs[f"eval/{key}"] for key in ("text", "mask_input", "mask_ar")]
    found = model.decode(two["image"], *prompts, int(inputs["max_decode_len"]))
    np.testing.assert_array_equal(found, two["tokens"])
    assert largest_difference(model.logits(two["image"][:, ::-1], *train), two["logits"]) > 0.01


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("remat", ["none", "dots", "attention", "full"])
@pytest.mark.parametrize("unroll", [False, True])
def test_three_sgd_steps(name: str, remat: str, unroll: bool) -> None:
    expected, inputs = read(name, "expected.npz"), read(name, "inputs.npz")
    losses, trained, after = train(paligemma.load(GOLDEN / name).module, inputs, StepSettings(LayerPlan(remat, unroll)))
    assert largest_difference(losses, expected["train/loss"]) < 1e-5
    assert {f"after/{key}" for key in trained} == {key for key in expected if key.startswith("after/")}
    for key, variable in trained.items():
        assert largest_difference(variable[...], expected[f"after/{key}"]) < 2e-6
    hidden = after.hidden(after.img(inputs["train/image"]), inputs["train/text"][:, :-1], inputs["train/mask_ar"][:, :-1])
    assert largest_difference(after.llm.logits(hidden), expected["train/logits_after"]) < 1e-4


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", ["decode", "decode_eos", "decode_eos_mask"])
def test_greedy_decode_token_for_token(name: str, case: str) -> None:
    inputs = read(name, "inputs.npz")
    ours = paligemma.load(GOLDEN / name).decode(
        inputs["eval/image"],
        inputs["eval/text"],
        inputs["eval/mask_input"],
        inputs["eval/mask_ar"],
        int(inputs["max_decode_len"]),
        int(inputs[f"{case}/eos"]) if f"{case}/eos" in inputs else None,
        inputs.get(f"{case}/_mask"),
    )
    np.testing.assert_array_equal(ours, read(name, "expected.npz")[f"{case}/tokens"])


@pytest.mark.parametrize("name", MODELS)
def test_beam_search_token_for_token(name: str) -> None:
    inputs, expected = read(name, "inputs.npz"), read(name, "expected.npz")
    arguments = [inputs[f"eval/{key}"] for key in ("image", "text", "mask_input", "mask_ar")]
    settings = DecodeSettings(int(inputs["max_decode_len"]), beams=3)
    found = paligemma.load(GOLDEN / name).search(*arguments, settings, int(inputs["decode_beam3/eos"]))
    np.testing.assert_array_equal(found.tokens, expected["decode_beam3/tokens"])


@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_of_greedy_tokens(name: str) -> None:
    """The reference's loop caps the logits of all tokens but the first, where a cap is configured; ours never does.

    So does its training loss: its files have the first token's logits, and `train/logits`, above the cap. Its published recipes
    set the cap to 0. Here, its later logits are ours with the cap applied.
    """
    inputs, expected = read(name, "inputs.npz"), read(name, "expected.npz")
    arguments = [inputs[f"eval/{key}"] for key in ("image", "text", "mask_input", "mask_ar")]
    model = paligemma.load(GOLDEN / name)
    found = model.search(*arguments, DecodeSettings(int(inputs["max_decode_len"])))
    logits = jnp.stack([logits_after(model, *(part[row] for part in arguments), found.tokens[row]) for row in range(2)])
    cap = model.config.llm.final_logits_softcap
    assert bool(cap) == (name == "pg2_cap")
    theirs = jnp.concatenate([logits[:, :1], cap * jnp.tanh(logits[:, 1:] / cap)], axis=1) if cap else logits
    assert largest_difference(theirs, expected["decode/logits"]) < 5e-5
    for logits_of, logprobs, bound in ((logits, found.logprobs, 1e-4), (theirs, expected["decode/logp"], 5e-5)):
        chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits_of)), found.tokens[..., None], axis=2)[..., 0]
        assert largest_difference(chosen, logprobs) < bound


def logits_after(model, image, text, mask_input, mask_ar, answer) -> jax.Array:
    """Logits `[t, v]` of each token of an answer, from one pass over a prompt without its padding and the answer."""
    real = mask_input.astype(bool)
    tokens, ar = np.concatenate([text[real], answer[:-1]]), np.concatenate([mask_ar[real], np.ones(len(answer) - 1, int)])
    return model.logits(image[None], tokens[None], ar[None])[0, real.sum() - 1 :]


def test_float16_frozen_float32_trained() -> None:
    """The reference's own float16 run.

    Its tower's features are the same to the last bit on a processor that computes float16 in float32, and within two roundings
    of the largest on one that has float16 arithmetic (AVX512-FP16). What follows starts from the same features.
    """
    expected, inputs = read("pg1_mqa", "expected_f16.npz"), read("pg1_mqa", "inputs.npz")
    checkpoint = open_checkpoint(GOLDEN / "pg1_mqa")
    module = build_module(
        checkpoint.config, checkpoint.arrays, lambda name, _: "float32" if "layers/attn" in name else "float16"
    )
    features = expected["train/zimg"].astype(np.float16)
    rounding = 2 * float(np.spacing(np.abs(features).max()))
    assert largest_difference(module.img(jnp.asarray(inputs["train/image"])), features) <= rounding
    hidden = module.hidden(jnp.asarray(features), inputs["train/text"][:, :-1], inputs["train/mask_ar"][:, :-1])
    assert largest_difference(module.llm.logits(hidden), expected["train/logits"]) < 5e-5
    losses, trained, _ = train(module, inputs | {"train/image": features})
    assert largest_difference(losses, expected["train/loss"]) < 1e-5
    for key, variable in trained.items():
        assert variable[...].dtype == jnp.float32
        assert largest_difference(variable[...], expected[f"after/{key}"]) < 2e-6


def test_float16_checkpoint_decodes_nearly_as_the_reference() -> None:
    """All parameters in float16, where the reference keeps attention in float32 and its cache in bfloat16."""
    expected, inputs = read("pg1_mqa", "expected_f16.npz"), read("pg1_mqa", "inputs.npz")
    model = paligemma.load(GOLDEN / "pg1_mqa", dtype="float16")
    logits = model.logits(inputs["train/image"], inputs["train/text"][:, :-1], inputs["train/mask_ar"][:, :-1])
    assert largest_difference(logits, expected["train/logits"]) < 0.0146
    arguments = (inputs[f"eval/{key}"] for key in ("image", "text", "mask_input", "mask_ar"))
    assert (model.decode(*arguments, 12) != expected["decode_bf16cache/tokens"]).sum() <= 2


@pytest.mark.parametrize("case", ["0", "1", "2", "3", "4", "5", "grey"])
def test_preprocessing(case: str) -> None:
    golden = read("preprocess", "expected.npz")
    image, expected = golden[f"{case}/image"], golden[f"{case}/out"]
    assert largest_difference(preprocess(image, expected.shape[0]), expected) < 5e-6


@pytest.mark.parametrize("case", sorted(read("schedule", "expected.npz")))
def test_schedule(case: str) -> None:
    base, steps = case.removeprefix("base").split("_steps")
    schedule = learning_rate_schedule(Recipe(learning_rate=float(base)), int(steps))
    ours = [float(schedule(count)) for count in range(int(steps))]
    np.testing.assert_allclose(ours, read("schedule", "expected.npz")[case], rtol=1e-5, atol=1e-8)


def test_resampled_position_embeddings() -> None:
    golden = read("posemb", "expected.npz")
    assert largest_difference(resample_positions(golden["old"], 36), golden["new36"]) < 1e-6


@pytest.mark.parametrize(
    ("variant", "tree"),
    [("paligemma-3b-pt-224", "paligemma_3b_224_tree.json"), ("paligemma2-3b-pt-224", "paligemma2_3b_224_tree.json")],
)
def test_published_parameter_names_and_shapes(variant: str, tree: str) -> None:
    """Checked with `jax.eval_shape`: nothing is allocated."""
    expected = {name: tuple(shape) for name, shape in json.loads((GOLDEN / tree).read_text()).items()}
    assert parameter_shapes(VARIANTS[variant]) == expected


def test_published_3b_has_its_published_size() -> None:
    shapes = parameter_shapes(VARIANTS["paligemma-3b-pt-224"])
    assert len(shapes) == 32
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 2_923_335_408
    assert sum(int(np.prod(s)) for name, s in shapes.items() if "llm/layers/attn" in name) == 169_869_312
    state = nnx.state(abstract_model(VARIANTS["paligemma-3b-pt-224"]), nnx.Param)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}


def test_the_3b_step_keeps_frozen_float16_and_trained_float32() -> None:
    """The dtypes that a real run holds, through the very step it compiles, from shapes alone."""
    model = abstract_model(VARIANTS["paligemma-3b-pt-224"], Precision.of("float32", vision_parameters="float16"))
    graph, trainable, frozen = split_trainable(model, ATTENTION)
    frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float16), frozen)
    text, losses = jax.ShapeDtypeStruct((1, 32), jnp.int32), jax.ShapeDtypeStruct((1, 8), jnp.int32)
    batch = TrainBatch(jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.uint8), text, text, losses, losses, losses)

    def gradients(trainable, frozen, batch):
        return jax.grad(lambda t: batch_loss(nnx.merge(graph, t, frozen), batch, StepSettings(LayerPlan("full"))))(trainable)

    result = parameters_by_name(jax.eval_shape(gradients, trainable, frozen, batch))
    assert sorted(result) == [f"llm/layers/attn/{name}/w" for name in ("attn_vec_einsum", "kv_einsum", "q_einsum")]
    assert {variable.get_value().dtype for variable in result.values()} == {jnp.dtype("float32")}
