"""The prefix-LM mask and grouped-query attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.models import attention
from paligemma.models.attention import AttentionForm, attend, attention_form, prefix_lm_mask, query_block
from paligemma.preflight.hlo_text import read_program

masks = st.integers(1, 12).flatmap(lambda n: st.tuples(*(st.lists(st.booleans(), min_size=n, max_size=n) for _ in range(2))))


def test_prefix_sees_itself_and_suffix_is_causal() -> None:
    mask = prefix_lm_mask(jnp.array([[0, 0, 1, 1]]))[0]
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])


@given(masks)
def test_mask_is_its_definition(case: tuple[list[bool], list[bool]]) -> None:
    mask_ar, valid = case
    ours = np.asarray(prefix_lm_mask(jnp.array([mask_ar], jnp.int32), jnp.array([valid])))[0]
    for query in range(len(valid)):
        for key in range(len(valid)):
            seen = sum(mask_ar[: key + 1]) <= sum(mask_ar[: query + 1])
            assert ours[query, key] == (seen and valid[query] and valid[key])


def test_each_key_head_serves_consecutive_query_heads() -> None:
    rng = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(rng[0], (2, 5, 6, 4))
    key, value = (jax.random.normal(r, (2, 7, 3, 4)) for r in rng[1:])
    repeated = attend(query, jnp.repeat(key, 2, axis=2), jnp.repeat(value, 2, axis=2))
    np.testing.assert_allclose(attend(query, key, value), repeated, atol=1e-6)


def test_a_query_without_visible_keys_is_finite() -> None:
    ones = jnp.ones((1, 2, 1, 4))
    assert jnp.isfinite(attend(ones, ones, ones, jnp.zeros((1, 2, 2), bool))).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_values_and_gradients_are_those_of_a_plain_softmax(dtype: str, tolerance: float, softcap: float, platform: str) -> None:
    rng = jax.random.split(jax.random.key(1), 5)
    query, weight = (jax.random.normal(r, (2, 5, 6, 4)) for r in rng[:2])
    key, value = (jax.random.normal(r, (2, 7, 3, 4)) for r in rng[2:4])
    mask = jax.random.bernoulli(rng[4], 0.6, (2, 5, 7)).at[:, :, 0].set(True)

    def plain(query, key, value):
        key, value = (jnp.repeat(part, 2, axis=2) for part in (key, value))
        logits = jnp.einsum("btnh,bsnh->bnts", query, key)
        logits = jnp.tanh(logits / softcap) * softcap if softcap else logits
        weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -jnp.inf), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", weights, value)

    def ours(*parts):
        inputs = (part.astype(dtype) for part in parts)
        return attend(*inputs, mask, softcap, form=attention_form(platform)).astype(jnp.float32)

    parts = (query, key, value)
    np.testing.assert_allclose(ours(*parts), plain(*parts), atol=tolerance)
    found, expected = (jax.grad(lambda *p, f=f: jnp.sum(f(*p) * weight), argnums=(0, 1, 2))(*parts) for f in (ours, plain))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=4 * tolerance)


def test_large_logits_do_not_overflow() -> None:
    ones = jnp.full((1, 3, 1, 4), 1e4)
    grads = jax.grad(lambda query: jnp.sum(attend(query, ones, ones)))(ones)
    assert jnp.isfinite(grads).all()
    np.testing.assert_allclose(attend(ones, ones, ones), ones, rtol=1e-6)


@st.composite
def sequences(draw) -> tuple[np.ndarray, np.ndarray]:
    """Rows of prefixes and suffixes of any length, with padding: `mask_ar` and the mask of real tokens."""
    length, rows = draw(st.integers(2, 21)), draw(st.integers(1, 3))
    prefixes, ends = (draw(st.lists(st.integers(1, length), min_size=rows, max_size=rows)) for _ in range(2))
    places = np.arange(length)
    return (places >= np.array(prefixes)[:, None]).astype(np.int32), places < np.array(ends)[:, None]


@given(
    sequence=sequences(),
    block=st.integers(1, 7),
    order=st.sampled_from(["first", "as given"]),
    softcap=st.sampled_from([0.0, 2.0]),
    kv_heads=st.sampled_from([1, 2, 4]),
    keys_of=st.sampled_from([1, 4]),
    masked=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_every_form_gives_what_the_plain_one_does(
    sequence, block: int, order, softcap: float, kv_heads: int, keys_of: int, masked: bool
) -> None:
    """Blocks of queries, and keys that are filled up; of queries that see a key: what others give is never read."""
    mask_ar, valid = sequence
    rows, length = mask_ar.shape
    mask = prefix_lm_mask(jnp.asarray(mask_ar), jnp.asarray(valid)) if masked else None
    rng = np.random.default_rng(length)
    shapes = [(rows, length, 4, 6), (rows, length, kv_heads, 6), (rows, length, kv_heads, 6), (rows, length, 4, 6)]
    *parts, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    seeing = jnp.ones((rows, length, 1, 1)) if mask is None else mask.any(axis=2)[:, :, None, None]

    def value_and_gradients(form: AttentionForm):
        def loss(query, key, value):
            attended = attend(query, key, value, mask, softcap, form=form) * seeing
            return jnp.sum(attended * weight), attended

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_BLOCKS_OF", block)
        form = AttentionForm(order, most_logits=1, keys_of=keys_of)
        assert query_block(form, rows, 4, length, length) == min(block, length)
        found = value_and_gradients(form)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(value_and_gradients(AttentionForm())), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([1, 4, 8]))
def test_a_block_is_large_but_its_logits_are_few(rows: int, heads: int, queries: int, keys: int, devices: int) -> None:
    form = AttentionForm(most_logits=2**22, devices=devices)
    block, of_query = query_block(form, rows, heads, queries, keys), 4 * -(-rows // devices) * heads * keys
    if queries * of_query <= 2**22:
        assert block == queries
    else:
        assert block == queries or block % 64 == 0
        assert block <= 64 or block * of_query <= 2**22
        assert -(-queries // block) * block < queries + 64 or block <= 64


def largest_logits(form: AttentionForm, rows: int, length: int) -> int:
    """Bytes of the largest float32 array `[..., length]` in a compiled gradient of attention, as eight heads have it."""
    shapes = [(rows, length, heads, 16) for heads in (8, 1, 1)]
    gradient = jax.grad(lambda *parts: attend(*parts, form=form).sum(), argnums=(0, 1, 2))
    text = jax.jit(gradient).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile().as_text()
    arrays = [
        array for one in read_program(text).computations.values() for line in one.instructions.values() for array in line.arrays
    ]
    return max(array.bytes for array in arrays if array.dtype == "f32" and array.lengths[-1:] == (length,))


def test_a_tpu_takes_blocks_where_logits_do_not_fit_on_the_chip_and_others_never() -> None:
    tpu = attention_form("tpu")
    assert query_block(tpu, 8, 8, 383, 383) == 383
    assert query_block(tpu, 4, 8, 1151, 1151) == 192
    assert query_block(tpu, 1, 8, 4223, 4223) == 192
    assert query_block(tpu, 1, 16, 4096, 4096) == 128
    assert query_block(attention_form("tpu", devices=4), 4, 8, 4223, 4223) == 192
    for platform in ("cpu", "gpu"):
        assert query_block(attention_form(platform), 8, 8, 4223, 4223) == 4223


def test_the_backward_pass_multiplies_logits_in_their_operands_dtype() -> None:
    """In heads' first order: what a GPU multiplies in float32, it multiplies at half the speed."""
    shapes = [jax.ShapeDtypeStruct((1, 8, heads, 16), jnp.bfloat16) for heads in (4, 1, 1)]
    gradient = jax.grad(lambda *parts: attend(*parts, form=attention_form("gpu")).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    products = [line for line in jax.jit(gradient).lower(*shapes).as_text().splitlines() if "dot_general" in line]
    assert len(products) == 2 + 4
    assert all(line.count("xbf16>") >= 2 for line in products)


@pytest.mark.parametrize("order", ["first", "as given"])
def test_blocks_keep_no_logits_of_the_whole_sequence(order) -> None:
    whole = 4 * 8 * 640 * 640
    assert largest_logits(AttentionForm(order), 1, 640) >= whole
    assert largest_logits(AttentionForm(order, most_logits=2**20), 1, 640) <= 4 * 8 * 64 * 640


def test_gradients_of_logits_below_float16s_range_still_reach_the_queries() -> None:
    query, keys = jnp.ones((1, 1, 1, 8), jnp.float16), jnp.ones((1, 1, 4096, 8), jnp.float16)
    _, pull = jax.vjp(lambda query: attention.scores(query, keys, jnp.float32), query)
    (gradient,) = pull(jnp.full((1, 1, 1, 4096), 1e-8, jnp.float32))
    np.testing.assert_allclose(np.asarray(gradient, np.float32), 4096e-8, rtol=0.01)
