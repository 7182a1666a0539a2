"""Decoding against slow, cache-free loops, and its independence of batch composition and devices."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import paligemma
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.parameters import abstract_decoding_model, build_decoding_module, build_module, decoding_dtype
from paligemma.decoding import cpu_layout
from paligemma.decoding.decode import Decoded, Generator, decode, decode_once
from paligemma.decoding.sample import choose, truncate
from paligemma.decoding.settings import NO_EOS, DecodeSettings
from paligemma.errors import InputError
from paligemma.models.attention import PLAIN, AttentionForm
from paligemma.models.config import DecoderConfig
from paligemma.models.gemma import Attention
from paligemma.models.matrix_attention import MATRICES, MatrixAttention, as_matrix
from paligemma.models.weight_formats import QuantizeConfig, WeightFormat, dequantize, quantize, weight_format
from paligemma.precision import FLOAT32, Precision
from paligemma.preflight.account import account, open_loops
from paligemma.preflight.hlo_text import read_program
from paligemma.runtime.compile_cache import compiled_quickly
from paligemma.runtime.sharding import make_mesh

LONGEST = 5
WIDTH = 24
PROMPTS = ["ocr", "caption en", "answer en is the number of dots odd or even?", "answer en which shape is it?"]


@pytest.fixture(scope="module")
def model() -> paligemma.Model:
    return paligemma.load("embedded:tiny", dtype="float32")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (len(PROMPTS), 32, 32, 3)).astype(np.float32)


def prompts(model: paligemma.Model, texts: list[str], width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    ids = [model.tokenizer.prefix_ids(text) for text in texts]
    tokens = np.array([row + [0] * (width - len(row)) for row in ids], np.int32)
    return tokens, np.array([[True] * len(row) + [False] * (width - len(row)) for row in ids])


def logprobs_without_cache(model: paligemma.Model, image: np.ndarray, text: str, answer: list[int]) -> np.ndarray:
    """Log-probabilities `[t + 1, v]` of every token of an answer and the next one: a forward pass over everything.

    The row is filled up with tokens that nothing before them sees, so that all of them have one program.
    """
    prompt = model.tokenizer.prefix_ids(text)
    tokens = np.array([(prompt + answer + [5] * (WIDTH + LONGEST))[: WIDTH + LONGEST]])
    mask_ar = np.array([([0] * len(prompt) + [1] * (WIDTH + LONGEST))[: WIDTH + LONGEST]])
    logits = np.asarray(model.logits(image[None], tokens, mask_ar)[0], np.float64)[len(prompt) - 1 :][: len(answer) + 1]
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def search(model: paligemma.Model, images: np.ndarray, rows: list[int], settings: DecodeSettings, eos: int | None) -> Decoded:
    tokens, mask = prompts(model, [PROMPTS[row] for row in rows])
    return model.search(images[rows], tokens, mask, np.zeros_like(tokens), settings, eos, row_seeds=rows)


def test_a_program_that_is_compiled_quickly_answers_the_same(model: paligemma.Model, images: np.ndarray) -> None:
    settings = DecodeSettings(LONGEST)
    slowly = search(model, images, [0, 1], settings, eos=None)
    before = decode_once._cache_size()
    with compiled_quickly():
        quickly = search(model, images, [0, 1], settings, eos=None)
    assert decode_once._cache_size() == before + 1
    np.testing.assert_array_equal(quickly.tokens, slowly.tokens)
    np.testing.assert_allclose(quickly.logprobs, slowly.logprobs, atol=1e-5)


def check_logprobs(model: paligemma.Model, images: np.ndarray, found: Decoded, eos: int | None) -> None:
    for row, text in enumerate(PROMPTS):
        answer = found.tokens[row].tolist()
        answer = answer[: answer.index(eos) + 1] if eos in answer else answer
        expected = logprobs_without_cache(model, images[row], text, answer)[np.arange(len(answer)), answer]
        np.testing.assert_allclose(found.logprobs[row, : len(answer)], expected, atol=1e-4)
        assert (found.logprobs[row, len(answer) :] == 0).all()
        assert found.scores[row] == pytest.approx(expected.sum(), abs=1e-4)


def test_unequal_prompts_decode_greedily_as_a_cache_free_loop_does_alone(model, images) -> None:
    found = search(model, images, [0, 1, 2, 3], DecodeSettings(5), None)
    for row, text in enumerate(PROMPTS):
        answer: list[int] = []
        for _ in range(5):
            answer.append(int(np.argmax(logprobs_without_cache(model, images[row], text, answer)[-1])))
        assert found.tokens[row].tolist() == answer
    check_logprobs(model, images, found, None)


def test_samples_have_the_log_probabilities_of_a_cache_free_loop(model, images) -> None:
    eos = model.tokenizer.eos_id
    found = search(model, images, [0, 1, 2, 3], DecodeSettings(5, temperature=2.0, top_k=40, top_p=0.95), eos)
    check_logprobs(model, images, found, eos)


def beam_search_without_cache(model, image: np.ndarray, text: str, beams: int, steps: int, eos: int) -> tuple[list[int], float]:
    """The search in plain Python: (score, tokens) of what lives, and of the best that has ended."""
    live, best = [(0.0, [])], (-np.inf, [])
    for _ in range(steps):
        grown = []
        for score, tokens in live:
            logprobs = logprobs_without_cache(model, image, text, tokens)[-1]
            best = max(best, (score + logprobs[eos], [*tokens, eos]), key=lambda item: item[0])
            grown += [(score + logprobs[token], [*tokens, int(token)]) for token in np.argsort(-logprobs)[: beams + 1]]
        live = sorted((item for item in grown if item[1][-1] != eos), key=lambda item: -item[0])[:beams]
        if live[0][0] < best[0]:
            break
    return best[1], best[0]


@pytest.mark.parametrize("likely_eos", [False, True])
def test_beams_are_those_of_a_cache_free_search(model, images, likely_eos: bool) -> None:
    """Once with the true eos, once with a token in its place that comes late, so that beams change places."""
    eos = model.tokenizer.eos_id if likely_eos else int(search(model, images, [3], DecodeSettings(4), None).tokens[0, 3])
    found = search(model, images, [0, 1, 2, 3], DecodeSettings(5, beams=3), eos)
    check_logprobs(model, images, found, eos)
    for row, text in enumerate(PROMPTS):
        answer, score = beam_search_without_cache(model, images[row], text, 3, 5, eos)
        assert found.tokens[row].tolist() == answer + [0] * (5 - len(answer))
        assert found.scores[row] == pytest.approx(score, abs=1e-4)


WAYS = [DecodeSettings(5), DecodeSettings(5, temperature=1.5, top_k=30, best_of=2), DecodeSettings(5, beams=2)]


@pytest.mark.parametrize("settings", WAYS, ids=["greedy", "best of samples", "beams"])
def test_rows_do_not_depend_on_the_batch_or_on_the_devices(model, images, settings: DecodeSettings) -> None:
    """Eight rows at once against one, three, and two of them, and over eight devices, a row and all weights on each."""
    eos = model.tokenizer.eos_id
    rows, images, texts = np.arange(8), np.concatenate([images, -images]), [*PROMPTS, *PROMPTS[::-1]]
    tokens, mask = prompts(model, texts)

    def found(chosen: list[int]) -> Decoded:
        parts = (images[chosen], tokens[chosen], mask[chosen], 0 * tokens[chosen])
        return model.search(*parts, settings, eos, row_seeds=rows[chosen])

    together = found([0, 1, 2, 3, 4, 5, 6, 7])
    parts = [found(chosen) for chosen in ([0], [5, 1, 4], [7, 2, 6], [3])]
    alone = [np.concatenate(field)[np.argsort([0, 5, 1, 4, 7, 2, 6, 3])] for field in zip(*parts, strict=True)]
    wide, wide_mask = prompts(model, texts, width=32)
    everywhere = Generator(model.module, make_mesh(copies=8))
    over_devices = everywhere(images, wide, wide_mask, np.zeros_like(wide), settings, eos)
    for row in rows:
        end = together.tokens[row].tolist().index(eos) + 1 if eos in together.tokens[row] else 5
        for other in (Decoded(*alone), over_devices):
            assert other.tokens[row, :end].tolist() == together.tokens[row, :end].tolist()
            np.testing.assert_allclose(other.logprobs[row, :end], together.logprobs[row, :end], atol=1e-4)
            assert other.scores[row] == pytest.approx(together.scores[row], abs=1e-4)


@pytest.mark.parametrize("copies", [None, 1])
def test_references_have_the_log_probabilities_of_a_cache_free_loop(model, images, copies: int | None) -> None:
    """On one device, and with the parameters split over eight."""
    texts = ["7", "a circle", "even", "the number 12"]
    ids = [model.tokenizer.suffix_ids(text)[-LONGEST:] for text in texts]
    mask = np.array([[place < len(row) for place in range(8)] for row in ids])
    given = np.zeros(mask.shape, np.int32)
    given[mask] = np.concatenate(ids)
    tokens, real = prompts(model, PROMPTS)
    generator = Generator(model.module, None if copies is None else make_mesh(copies=copies))
    found = generator(images, tokens, real, np.zeros_like(tokens), DecodeSettings(1), references=(given, mask))
    for row, text in enumerate(PROMPTS):
        logprobs = logprobs_without_cache(model, images[row], text, ids[row])
        expected = logprobs[np.arange(len(ids[row])), ids[row]].sum()
        assert found.reference_scores[row] == pytest.approx(expected, abs=1e-4 * len(ids[row]))


def test_on_a_cpu_gates_and_embedding_share_the_memory_of_the_stacked_weights() -> None:
    decoder = paligemma.load("embedded:tiny", dtype="float32").module.llm
    stacked, table = decoder.layers.mlp.gating_einsum[...], decoder.embedder.input_embedding[...]
    cpu_layout.take_apart(decoder)
    for index, block in enumerate(decoder.layers):
        for part, matrix in enumerate((block.mlp.gate, block.mlp.up)):
            offset = matrix.w[...].unsafe_buffer_pointer() - stacked.unsafe_buffer_pointer()
            assert offset == index * stacked[0].nbytes + part * stacked[0, 0].nbytes
    assert decoder.embedder.embedder.input_embedding[...].unsafe_buffer_pointer() == table.unsafe_buffer_pointer()


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("copies", [None, 8])
def test_every_platforms_form_gives_the_same_answers(model, images, platform: str, copies: int | None) -> None:
    """As loops without a cache give them, which `logits` computes from the same form."""
    checkpoint = open_checkpoint("embedded:tiny")
    mesh = None if copies is None else make_mesh(copies=copies)
    module = build_decoding_module(checkpoint.config, checkpoint.arrays, lambda *_: np.dtype("float32"), mesh, platform)
    assert isinstance(module.llm.layers, nnx.List) == (platform == "gpu")
    other = paligemma.Model(module, model.config, model.tokenizer, mesh)
    rows, eos = [0, 1, 2, 3], model.tokenizer.eos_id
    found, expected = (search(one, images, rows, DecodeSettings(5), eos) for one in (other, model))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)
    if copies is None:
        check_logprobs(other, images, found, eos)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("rows", [1, 4])
def test_every_platforms_form_decodes_with_the_weights_that_its_codes_stand_for(
    platform: str, kind, rows: int, images, model
) -> None:
    """Compared with a model whose float32 weights are what the codes stand for."""
    checkpoint = open_checkpoint("embedded:tiny")

    def held_in(name: str, array) -> np.dtype | WeightFormat:
        return weight_format(name, tuple(array.shape), kind, QuantizeConfig()) or np.dtype(np.float32)

    arrays = dict(checkpoint.arrays)
    for name, array in arrays.items():
        if isinstance(form := held_in(name, array), WeightFormat):
            arrays[name] = dequantize(*quantize(array[...].astype(np.float32), form), form)
    found, plain = (
        paligemma.Model(build_decoding_module(checkpoint.config, *how, platform=platform), model.config, model.tokenizer)
        for how in ((checkpoint.arrays, held_in), (arrays, lambda *_: np.dtype(np.float32)))
    )
    ours, expected, floats = (
        search(one, images, list(range(rows)), DecodeSettings(4), model.tokenizer.eos_id) for one in (found, plain, model)
    )
    np.testing.assert_array_equal(ours.tokens, expected.tokens)
    np.testing.assert_allclose(ours.logprobs, expected.logprobs, atol=2e-3)
    assert not np.allclose(ours.logprobs, floats.logprobs, atol=2e-3)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_hold_weights_as_they_multiply_them_unless_a_dtype_is_asked_for(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paligemma.precision._fast_dtype", lambda: "bfloat16")
    checkpoint = open_checkpoint("embedded:tiny")
    stored = checkpoint.arrays["llm/embedder/input_embedding"].dtype
    asked_for = {"as stored": lambda name, array: array.dtype, "float32": lambda name, array: np.dtype("float32")}
    held = {}
    for what, held_in in asked_for.items():
        module = build_decoding_module(checkpoint.config, checkpoint.arrays, held_in, platform=platform)
        leaves = jax.tree_util.tree_leaves_with_path(nnx.state(module))
        held[what] = {jax.tree_util.keystr(path, simple=True, separator="/"): str(leaf.dtype) for path, leaf in leaves}
    assert set(held["float32"].values()) == {"float32"}
    weights = {name for name in held["as stored"] if name.startswith("llm/") and "scale" not in name}
    assert len(weights) > 5
    assert {held["as stored"][name] for name in weights} == {"bfloat16"}
    assert {dtype for name, dtype in held["as stored"].items() if name not in weights} == {str(stored)}


@pytest.mark.parametrize(("products", "tolerance"), [("bfloat16", 0.05), ("float16", 1e-3)])
def test_a_gpus_form_decodes_as_the_plain_one_in_its_dtypes(
    model, images, products: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU; NVIDIA's cards multiply in bfloat16, older ones in float16."""
    monkeypatch.setattr("paligemma.precision._fast_dtype", lambda: products)
    checkpoint = open_checkpoint("embedded:tiny")
    config, arrays = checkpoint.config, checkpoint.arrays

    def held_in(name: str, stored: np.dtype) -> np.dtype:
        return decoding_dtype(name, stored, Precision.of("auto", stored), "gpu")

    modules = (
        build_module(config, arrays, held_in),
        build_decoding_module(config, arrays, lambda _, stored: stored, platform="gpu"),
    )
    tokens, mask = prompts(model, PROMPTS)
    rows = np.arange(len(PROMPTS), dtype=np.uint32)
    batch = (images, tokens, mask, 0 * tokens, rows >= 0, rows, tokens[:, :0], mask[:, :0], jnp.int32(NO_EOS))
    plain, ours = (decode(*nnx.split(module), *batch, settings=DecodeSettings(LONGEST)) for module in modules)
    np.testing.assert_array_equal(ours[0], plain[0])
    np.testing.assert_allclose(ours[1], plain[1], atol=tolerance)
    exact = search(model, images, list(rows), DecodeSettings(LONGEST), None)
    np.testing.assert_array_equal(ours[0], exact.tokens)
    np.testing.assert_allclose(ours[1], exact.logprobs, atol=2 * tolerance)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_of_matrices_is_the_einsums(kv_heads: int) -> None:
    config = DecoderConfig(width=24, depth=1, mlp_dim=32, num_heads=4, num_kv_heads=kv_heads, head_dim=8, vocab_size=64)
    plain = Attention(config, jnp.dtype("float32"), None, nnx.Rngs(kv_heads))
    graph, state = nnx.split(plain)
    ours = MatrixAttention(nnx.merge(graph, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)))
    for name, parts in MATRICES.items():
        weights = [np.asarray(getattr(plain, part).w[...]) for part in parts if hasattr(plain, part)]
        matrix = getattr(ours, name)
        assert matrix.get_value().shape == as_matrix(name, weights).shape
        matrix.set_value(jnp.asarray(as_matrix(name, weights)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 24)), jnp.float32)
    at, positions, mask = jnp.array([[4, 0], [1, 3]]), jnp.broadcast_to(jnp.arange(5), (2, 5)), jnp.ones((2, 5, 5), bool)
    for found, expected in zip(*(jax.tree.leaves(one(x, positions, mask, at)) for one in (ours, plain)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_prompts_go_through_attention_in_blocks_as_all_at_once(model, images, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a TPU with large images; in float32, on a CPU."""
    monkeypatch.setattr("paligemma.models.attention._BLOCKS_OF", 8)
    tokens, mask = prompts(model, PROMPTS)
    rows = np.arange(len(PROMPTS), dtype=np.uint32)
    batch = (images, tokens, mask, 0 * tokens, rows >= 0, rows, tokens[:, :0], mask[:, :0], jnp.int32(NO_EOS))
    graph, state = nnx.split(model.module)
    forms = PLAIN, AttentionForm("as given", most_logits=1)
    programs = [decode.lower(graph, state, *batch, settings=DecodeSettings(LONGEST), form=form) for form in forms]
    assert "remat" not in programs[0].as_text(debug_info=True)
    assert "remat" in programs[1].as_text(debug_info=True)
    plain, blocks = (program.compile()(state, *batch) for program in programs)
    np.testing.assert_array_equal(blocks[0], plain[0])
    np.testing.assert_allclose(blocks[1], plain[1], atol=1e-5)


def test_a_gpus_form_writes_no_weights_again_for_a_token() -> None:
    """In float32: a CPU's compiler converts 16-bit weights, but it transposes and joins as a GPU's does what is no matrix."""
    config = open_checkpoint("embedded:tiny").config
    graph, state = nnx.split(abstract_decoding_model(config, FLOAT32, "gpu"))
    rows, size, width = 3, config.img.image_size, 16

    def of_batch(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    prompts = (of_batch("float32", size, size, 3), *(of_batch(kind, width) for kind in ("int32", "bool", "int32")))
    others = (of_batch("bool"), of_batch("uint32"), of_batch("int32", 0), of_batch("bool", 0), jnp.int32(NO_EOS))
    lowered = decode.lower(graph, state, *prompts, *others, settings=DecodeSettings(LONGEST))
    program = read_program(lowered.compile().as_text())
    token = account(program, start=open_loops(program)[0])
    shapes = [leaf.shape for leaf in jax.tree.leaves(state["llm"]) if len(leaf.shape) == 2]
    assert len(shapes) == 1 + config.llm.depth * 5
    needed = 4 * sum(map(math.prod, shapes))
    assert token.weight_copies({math.prod(shape) for shape in shapes}) == []
    assert needed < token.bytes < 1.3 * needed


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 33])
def test_products_in_another_layout_are_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of decoders with weights twice in memory, in one piece or several, and of one too large for it, against the network's."""
    llm = paligemma.load("embedded:tiny", dtype="float32").module.llm
    block = jax.tree.map(lambda leaf: leaf[1], llm.layers)
    x = jnp.asarray(np.random.default_rng(rows).normal(size=(rows, 1, llm.final_norm.scale[...].shape[0])), jnp.float32)
    expected = [*block.attn.project(x), block.mlp(x), llm.logits(x)]
    for most, large in ((cpu_layout.MOST_COPIED, 0), (cpu_layout.MOST_COPIED, cpu_layout.LARGE), (0, 0)):
        monkeypatch.setattr(cpu_layout, "MOST_COPIED", most)
        monkeypatch.setattr(cpu_layout, "LARGE", large)
        decoder = paligemma.load("embedded:tiny", dtype="float32").module.llm
        cpu_layout.take_apart(decoder)
        taken = decoder.layers[1]
        assert (decoder.embedder.strips is None) == (taken.mlp.gate.strips is None) == (most == 0)
        assert most == 0 or (len(decoder.embedder.strips) > 8) == (large == 0)
        for ours, theirs in zip([*taken.attn.project(x), taken.mlp(x), decoder.logits(x)], expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("strips", [5, 12, 32, 67, 134])
def test_a_large_matrix_of_any_number_of_strips_is_in_pieces(strips: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layout, "LARGE", 0)
    rng = np.random.default_rng(strips)
    x, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 1, 8), (8, 64 * strips)))
    matrix = cpu_layout._Matrix(weight, jnp.float32, strips=True)
    assert len(matrix.strips) == {5: 5, 12: 12, 32: 16, 67: 64, 134: 64}[strips]
    np.testing.assert_allclose(matrix(jnp.asarray(x)), x @ weight, atol=1e-5)


def test_the_best_of_several_samples_is_at_least_as_likely_as_the_first(model, images) -> None:
    eos = model.tokenizer.eos_id
    one, many = (
        search(model, images, [0, 1, 2, 3], DecodeSettings(5, temperature=2.0, best_of=count), eos).scores for count in (2, 16)
    )
    assert (many >= one).mean() >= 0.75
    assert (many > one).any()


@pytest.mark.parametrize("vocabulary", [7, 96, 512, 1000])
def test_greedy_choice_is_the_first_of_the_largest(vocabulary: int) -> None:
    logits = np.random.default_rng(vocabulary).integers(0, 9, (200, 1, vocabulary)).astype(np.float32)
    tokens, logprobs = choose(jnp.asarray(logits), None, DecodeSettings(1))
    assert tokens.tolist() == logits.argmax(axis=-1).tolist()
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits).max(axis=-1), atol=1e-5)


def test_draws_follow_the_truncated_distribution() -> None:
    logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    for top_k, top_p, kept in ((0, 1.0, 4), (2, 1.0, 2), (0, 0.75, 3), (0, 0.4, 1), (3, 0.8, 3), (2, 0.5, 1), (9, 1.0, 4)):
        assert jnp.isfinite(truncate(logits, top_k, top_p)).tolist() == [index < kept for index in range(4)]


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 0.5), (7, 1.0), (40, 0.9), (12, 0.6)])
def test_truncation_keeps_what_sorting_would(top_k: int, top_p: float) -> None:
    logits = np.random.default_rng(top_k).normal(0, 3, (200, 40)).astype(np.float32)
    kept = np.isfinite(np.asarray(truncate(jnp.asarray(logits), top_k, top_p)))
    for row, found in zip(logits, kept, strict=True):
        order = np.argsort(-row)[:top_k]
        probabilities = np.exp(row[order].astype(np.float64))
        before = np.concatenate([[0.0], np.cumsum(probabilities / probabilities.sum())[:-1]])
        if np.abs(before - top_p).min() > 1e-5:  # else float32 may see it on either side
            assert sorted(np.flatnonzero(found)) == sorted(order[before < top_p])


@pytest.mark.parametrize(
    ("values", "message"),
    [({"max_new_tokens": 0}, "max_new_tokens is 0"), ({"top_p": 0.0}, "top_p"), ({"temperature": -1.0}, "temperature"),
     ({"beams": 2, "best_of": 2}, "draws no samples"), ({"best_of": 2}, "need samples"), ({"seed": 1 << 32}, "seed is")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DecodeSettings(**values)


def test_the_settings_seed_is_that_of_the_samples_and_needs_no_other_program(model, images) -> None:
    tokens, mask = prompts(model, PROMPTS)

    def drawn(seed: int, rows: list[int] | None = None) -> np.ndarray:
        settings = DecodeSettings(5, temperature=3.0, seed=seed)
        return model.search(images, tokens, mask, np.zeros_like(tokens), settings, None, row_seeds=rows).tokens

    first = drawn(7)
    before = decode._cache_size()
    assert (drawn(0, [7, 8, 9, 10]) == first).all()
    assert (drawn(8)[:3] == drawn(7, [8, 9, 10, 11])[:3]).all()
    assert (drawn(1 << 31) != first).any()
    assert decode._cache_size() == before


def test_stops_when_every_row_has_ended(model, images) -> None:
    tokens, mask = prompts(model, PROMPTS)
    free = model.decode(images, tokens, mask, np.zeros_like(tokens), 6)
    eos = int(free[0, 2])
    rows = np.arange(len(PROMPTS)) == 0
    stopped = model.decode(images, tokens, mask, np.zeros_like(tokens), 6, eos, rows)
    first = int(np.flatnonzero(free[0] == eos)[0])
    np.testing.assert_array_equal(stopped[:, : first + 1], free[:, : first + 1])
    assert (stopped[:, first + 1 :] == 0).all()


def test_generate_answers_in_order_for_files_pictures_and_arrays(model, tmp_path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    answers = model.generate([tmp_path / "x.png", Image.fromarray(pixels), pixels], "caption en", max_new_tokens=8)
    assert len(answers) == 3
    assert len(set(answers)) == 1


def test_generate_composites_a_transparent_picture_as_a_file_would(model, tmp_path) -> None:
    from PIL import Image

    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (4, 4, 12, 12))
    picture.save(tmp_path / "x.png")
    answers = model.generate([tmp_path / "x.png", picture], "caption en", max_new_tokens=8)
    assert answers[0] == answers[1]


def test_wrong_image_size_is_refused(model) -> None:
    with pytest.raises(InputError, match="images have shape"):
        model.logits(np.zeros((1, 16, 16, 3)), np.zeros((1, 4), np.int32), np.zeros((1, 4), np.int32))


def test_prompts_and_images_must_match(model) -> None:
    with pytest.raises(InputError, match="1 images and 2 prompts"):
        model.generate([np.zeros((4, 4, 3), np.uint8)], ["a", "b"])
