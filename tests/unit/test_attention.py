"""The prefix-LM mask and grouped-query attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paligemma.models.attention import attend, prefix_lm_mask

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
