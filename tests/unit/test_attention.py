"""The prefix-LM mask and grouped-query attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.models.attention import attend, head_order, prefix_lm_mask

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
        return attend(*inputs, mask, softcap, order=head_order(platform)).astype(jnp.float32)

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
