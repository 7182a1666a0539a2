"""Gemma decoder: RMSNorm, rotary grouped-query attention, gated MLP, tied embedding. No biases.

Parameter names and numerics follow big_vision's `models/ppp/gemma.py`. Weights are cast to the compute dtype where they
are used; norm variance, rotary angles and softmax are float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from paligemma.models.attention import attend
from paligemma.models.config import DecoderConfig
from paligemma.models.layers import Remat, scan_layers, stack


class KVCache(NamedTuple):
    """Keys and values of every layer, by slot. Slots are sequence positions of the right-aligned prompt, then new tokens."""

    keys: Float[Array, "l b s k h"]
    values: Float[Array, "l b s k h"]


class LayerCache(NamedTuple):
    """One layer's part of the cache, and the slot that the incoming token takes."""

    keys: Float[Array, "b s k h"]
    values: Float[Array, "b s k h"]
    slot: Int[Array, ""]


def apply_rope(x: Float[Array, "b t n h"], positions: Int[Array, "b t"]) -> Float[Array, "b t n h"]:
    """Rotary position embedding, first half against second half, base 10,000 (arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    timescale = 10_000.0 ** (jnp.arange(half, dtype=jnp.float32) / half)
    radians = positions.astype(jnp.float32)[:, :, None, None] / timescale
    sin, cos = jnp.sin(radians), jnp.cos(radians)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a scale stored as its difference from one (arXiv 1910.07467)."""

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
        # The factor is formed in the parameter's dtype, as in the reference; the product is float32.
        return (normed * (1 + self.scale[...])).astype(x.dtype)


class Einsum(nnx.Module):
    """A weight of any rank, applied with an einsum."""

    def __init__(self, shape: tuple[int, ...], fan_in: int, rngs: nnx.Rngs) -> None:
        self.w = nnx.Param(nnx.initializers.normal(fan_in**-0.5)(rngs.params(), shape))

    def __call__(self, equation: str, x: Array) -> Array:
        return jnp.einsum(equation, x, self.w[...].astype(x.dtype))


class Attention(nnx.Module):
    """Rotary grouped-query self-attention."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        D, N, K, H = config.width, config.num_heads, config.num_kv_heads, config.head_dim
        if N == K:
            self.qkv_einsum = Einsum((3, N, D, H), D, rngs)
        else:
            self.q_einsum = Einsum((N, D, H), D, rngs)
            self.kv_einsum = Einsum((2, K, D, H), D, rngs)
        self.attn_vec_einsum = Einsum((N, H, D), N * H, rngs)
        self.fused_qkv = N == K
        self.scale = config.query_scale
        self.softcap = config.attn_logits_softcap

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        mask: Bool[Array, "b t s"],
        cache: LayerCache | None = None,
    ) -> tuple[Float[Array, "b t d"], tuple[Float[Array, "b s k h"], Float[Array, "b s k h"]]]:
        """Returns the output, and the keys and values it attended to."""
        if self.fused_qkv:
            query, key, value = self.qkv_einsum("btd,cndh->cbtnh", x)
        else:
            query = self.q_einsum("btd,ndh->btnh", x)
            key, value = self.kv_einsum("btd,ckdh->cbtkh", x)
        query = apply_rope(query, positions) * self.scale
        key = apply_rope(key, positions)
        if cache is not None:
            start = (0, cache.slot, 0, 0)
            key = jax.lax.dynamic_update_slice(cache.keys, key.astype(cache.keys.dtype), start)
            value = jax.lax.dynamic_update_slice(cache.values, value.astype(cache.values.dtype), start)
        attended = attend(query, key.astype(x.dtype), value.astype(x.dtype), mask, self.softcap)
        return self.attn_vec_einsum("btnh,nhd->btd", attended), (key, value)


class FeedForward(nnx.Module):
    """Gated MLP: tanh-approximated GELU of the gate, times the up-projection."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        D, F = config.width, config.mlp_dim
        self.gating_einsum = nnx.Param(nnx.initializers.normal(D**-0.5)(rngs.params(), (2, D, F)))
        self.linear = nnx.Param(nnx.initializers.normal(F**-0.5)(rngs.params(), (F, D)))

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        gate, up = self.gating_einsum[...].astype(x.dtype)
        return (jax.nn.gelu(x @ gate, approximate=True) * (x @ up)) @ self.linear[...].astype(x.dtype)


class Block(nnx.Module):
    """One decoder layer; Gemma 2 also normalizes what attention and MLP return."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        self.pre_attention_norm = RMSNorm(config.width)
        self.attn = Attention(config, rngs)
        self.pre_ffw_norm = RMSNorm(config.width)
        self.mlp = FeedForward(config, rngs)
        self.post_norms = config.post_norms
        if config.post_norms:
            self.post_attention_norm = RMSNorm(config.width)
            self.post_ffw_norm = RMSNorm(config.width)

    def __call__(self, x, positions, mask, cache: LayerCache | None = None):
        attended, keys_values = self.attn(self.pre_attention_norm(x), positions, mask, cache)
        if self.post_norms:
            attended = self.post_attention_norm(attended)
        x = x + attended
        mixed = self.mlp(self.pre_ffw_norm(x))
        if self.post_norms:
            mixed = self.post_ffw_norm(mixed)
        return x + mixed, keys_values


class Embedder(nnx.Module):
    """Token embedding, shared by input and output."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        shape = (config.vocab_size, config.width)
        self.input_embedding = nnx.Param(nnx.initializers.normal(config.width**-0.5)(rngs.params(), shape))

    def encode(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Rows times sqrt(width); the factor is rounded to the parameter's dtype, as the reference does."""
        rows = self.input_embedding[...][tokens]
        return rows * jnp.sqrt(jnp.float32(rows.shape[-1])).astype(rows.dtype)

    def decode(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Unscaled dot products with every row, accumulated in float32."""
        return jnp.einsum("btd,vd->btv", x, self.input_embedding[...].astype(x.dtype), preferred_element_type=jnp.float32)


class Decoder(nnx.Module):
    """Embeddings in, hidden states out; `logits` turns hidden states into a distribution over tokens."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.embedder = Embedder(config, rngs)
        self.layers = stack(lambda rngs: Block(config, rngs), config.depth, rngs)
        self.final_norm = RMSNorm(config.width)
        self.dtype = dtype

    def embed(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Scaled token embeddings in the compute dtype."""
        return self.embedder.encode(tokens).astype(self.dtype)

    def __call__(
        self,
        x: Float[Array, "b p d"],
        positions: Int[Array, "b p"],
        mask: Bool[Array, "b p p"],
        remat: Remat = "none",
    ) -> Float[Array, "b p d"]:
        """Hidden states after the final norm, of a whole sequence."""

        def layer(block: Block, x, _):
            return block(x, positions, mask)[0], None

        x, _ = scan_layers(layer, self.layers, x, remat=remat)
        return self.final_norm(x)

    def prefill(self, x, positions, mask) -> tuple[Float[Array, "b p d"], KVCache]:
        """As `__call__`, and the keys and values of every layer."""

        def layer(block: Block, x, _):
            return block(x, positions, mask)

        x, (keys, values) = scan_layers(layer, self.layers, x)
        return self.final_norm(x), KVCache(keys, values)

    def step(
        self,
        x: Float[Array, "b 1 d"],
        positions: Int[Array, "b 1"],
        mask: Bool[Array, "b 1 s"],
        cache: KVCache,
        slot: Int[Array, ""],
    ) -> tuple[Float[Array, "b 1 d"], KVCache]:
        """Hidden state of one more token, whose keys and values are written to `slot` of the cache."""

        def layer(block: Block, x, layer_cache):
            return block(x, positions, mask, LayerCache(*layer_cache, slot))

        x, (keys, values) = scan_layers(layer, self.layers, x, xs=(cache.keys, cache.values))
        return self.final_norm(x), KVCache(keys, values)

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Output logits in float32, without Gemma 2's final soft cap; see `DecoderConfig.final_logits_softcap`."""
        return self.embedder.decode(hidden)
