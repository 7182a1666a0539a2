"""Gemma decoder: RMSNorm, rotary grouped-query attention, gated MLP, tied embedding. No biases.

Parameter names and numerics follow big_vision's `models/ppp/gemma.py`. Weights are cast to the compute dtype where they
are used; norm variance, rotary angles and softmax are float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key

from paligemma.models.attention import PLAIN, AttentionForm, attend
from paligemma.models.config import DecoderConfig
from paligemma.models.layers import ATTENTION_SAVED, LayerPlan, scan_but_last, scan_layers, stack, unstack
from paligemma.models.lora import make_adapter
from paligemma.models.lora_factors import LoraConfig
from paligemma.models.quantized import Quantized
from paligemma.models.scaled_matmul import product
from paligemma.precision import Precision
from paligemma.runtime.sharding import gather, split_rows


class Dropout(NamedTuple):
    """Dropout on what attention and MLP add to the residual stream, as in big_vision's Gemma."""

    rate: float
    key: Key[Array, ""]

    def __call__(
        self, x: Float[Array, "b q d"], place: int, length: int, at: Int[Array, "b q"] | None = None
    ) -> Float[Array, "b q d"]:
        """Drops elements of `x`.

        Args:
            x: a whole sequence, or its rows at positions `at`.
            place: number of the place within a layer, so that each place drops other elements.
            length: length of the whole sequence.
            at: positions of the rows; drops the same elements as for the whole sequence. None for all.
        """
        whole = (x.shape[0], length, x.shape[2])
        keep = jax.random.bernoulli(jax.random.fold_in(self.key, place), 1.0 - self.rate, whole)
        keep = keep if at is None else take(keep, at)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))


def take(x: Float[Array, "b t d"], at: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    """Takes the rows of `x` at these positions, for each example."""
    return jnp.take_along_axis(x, at[:, :, None], axis=1)


@jax.custom_vjp
def gelu_gate(gate: Float[Array, "*s f"], up: Float[Array, "*s f"]) -> Float[Array, "*s f"]:
    """Tanh-approximated GELU of `gate`, times `up`.

    The backward pass is two products: the forward pass computes the slope too, where the tanh is at hand, so that nothing is
    recomputed. It saves as many numbers as automatic differentiation.
    """
    return jax.nn.gelu(gate, approximate=True) * up


def _gelu_gate_forward(gate, up):
    c = 0.7978845608028654  # sqrt(2 / pi)
    x = gate.astype(jnp.float32)
    tanh = jnp.tanh(c * (x + 0.044715 * x**3))
    half = 0.5 * (1.0 + tanh)
    slope = half + 0.5 * x * (1.0 - tanh**2) * c * (1.0 + 3 * 0.044715 * x**2)
    gelu = (x * half).astype(gate.dtype)
    return gelu * up, (gelu, slope.astype(gate.dtype) * up)


def _gelu_gate_backward(kept, gradient):
    gelu, slope = kept
    return gradient * slope, gradient * gelu


gelu_gate.defvjp(_gelu_gate_forward, _gelu_gate_backward)


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
        # As in the reference, the factor is computed in the parameter's dtype, and the product in float32.
        return (normed * (1 + self.scale[...])).astype(x.dtype)


class Einsum(nnx.Module):
    """A weight of any rank, applied with an einsum."""

    def __init__(self, shape: tuple[int, ...], fan_in: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.w = nnx.Param(nnx.initializers.normal(fan_in**-0.5)(rngs.params(), shape))
        self.dtype = dtype

    def __call__(self, equation: str, x: Array) -> Array:
        return product(equation, x, self.w.get_value(), self.dtype)


class Attention(nnx.Module):
    """Rotary grouped-query self-attention."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, lora: LoraConfig | None, rngs: nnx.Rngs) -> None:
        D, N, K, H = config.width, config.num_heads, config.num_kv_heads, config.head_dim
        if N == K:
            self.qkv_einsum = Einsum((3, N, D, H), D, dtype, rngs)
            self.lora_qkv_einsum = make_adapter("qkv_einsum", (3, N, D, H), lora, rngs)
        else:
            self.q_einsum = Einsum((N, D, H), D, dtype, rngs)
            self.kv_einsum = Einsum((2, K, D, H), D, dtype, rngs)
            self.lora_q_einsum = make_adapter("q_einsum", (N, D, H), lora, rngs)
            self.lora_kv_einsum = make_adapter("kv_einsum", (2, K, D, H), lora, rngs)
        self.attn_vec_einsum = Einsum((N, H, D), N * H, dtype, rngs)
        self.lora_attn_vec_einsum = make_adapter("attn_vec_einsum", (N, H, D), lora, rngs)
        self.fused_qkv = N == K
        self.scale = config.query_scale
        self.softcap = config.attn_logits_softcap

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        mask: Bool[Array, "b t t"],
        at: Int[Array, "b q"] | None = None,
        form: AttentionForm = PLAIN,
    ) -> tuple[Float[Array, "b q d"], tuple[Float[Array, "b t k h"], Float[Array, "b t k h"]]]:
        """Returns the output at positions `at` (None: all), and the keys and values."""
        query, key, value = self.project(x, at)
        key = apply_rope(key, positions)
        if at is not None:
            positions, mask = jnp.take_along_axis(positions, at, axis=1), take(mask, at)
        query = apply_rope(query, positions) * self.scale
        query, key, value = checkpoint_name((query, key, value), ATTENTION_SAVED)
        attended = checkpoint_name(attend(query, key, value, mask, self.softcap, form=form), ATTENTION_SAVED)
        return self.output(attended), (key, value)

    def project(
        self, x: Float[Array, "b t d"], at: Int[Array, "b q"] | None = None
    ) -> tuple[Float[Array, "b q n h"], Float[Array, "b t k h"], Float[Array, "b t k h"]]:
        """Queries at positions `at` (None: all), keys and values, all before rotary embedding."""
        if self.fused_qkv:
            query, key, value = _adapted(self.qkv_einsum("btd,cndh->cbtnh", x), self.lora_qkv_einsum, x)
            return query if at is None else jnp.take_along_axis(query, at[:, :, None, None], axis=1), key, value
        asking = x if at is None else take(x, at)
        query = _adapted(self.q_einsum("btd,ndh->btnh", asking), self.lora_q_einsum, asking)
        key, value = _adapted(self.kv_einsum("btd,ckdh->cbtkh", x), self.lora_kv_einsum, x)
        return query, key, value

    def output(self, attended: Float[Array, "b q n h"]) -> Float[Array, "b q d"]:
        """What attention adds to the residual stream."""
        return _adapted(self.attn_vec_einsum("btnh,nhd->btd", attended), self.lora_attn_vec_einsum, attended)


class FeedForward(nnx.Module):
    """Gated MLP: tanh-approximated GELU of the gate, times the up-projection."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, lora: LoraConfig | None, rngs: nnx.Rngs) -> None:
        D, F = config.width, config.mlp_dim
        self.gating_einsum = nnx.Param(nnx.initializers.normal(D**-0.5)(rngs.params(), (2, D, F)))
        self.linear = nnx.Param(nnx.initializers.normal(F**-0.5)(rngs.params(), (F, D)))
        self.lora_gating_einsum = make_adapter("gating_einsum", (2, D, F), lora, rngs)
        self.lora_linear = make_adapter("linear", (F, D), lora, rngs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        weights = self.gating_einsum.get_value()  # one array, or a tuple of two
        gate, up = (product("btd,df->btf", x, weights, self.dtype, part) for part in (0, 1))
        if self.lora_gating_einsum is not None:
            more_gate, more_up = self.lora_gating_einsum(x)
            gate, up = gate + more_gate, up + more_up
        hidden = gelu_gate(gate, up)
        return _adapted(product("btf,fd->btd", hidden, self.linear.get_value(), self.dtype), self.lora_linear, hidden)


def _adapted(output: Array, adapter, x: Array) -> Array:
    return output if adapter is None else output + adapter(x)


class Block(nnx.Module):
    """One decoder layer; Gemma 2 also normalizes what attention and MLP return."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, lora: LoraConfig | None, rngs: nnx.Rngs) -> None:
        self.pre_attention_norm = RMSNorm(config.width)
        self.attn = Attention(config, dtype, lora, rngs)
        self.pre_ffw_norm = RMSNorm(config.width)
        self.mlp = FeedForward(config, dtype, lora, rngs)
        self.post_norms = config.post_norms
        if config.post_norms:
            self.post_attention_norm = RMSNorm(config.width)
            self.post_ffw_norm = RMSNorm(config.width)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        mask: Bool[Array, "b t t"],
        at: Int[Array, "b q"] | None = None,
        dropout: Dropout | None = None,
        form: AttentionForm = PLAIN,
    ) -> tuple[Float[Array, "b q d"], tuple[Float[Array, "b t k h"], Float[Array, "b t k h"]]]:
        """Returns the residual stream at positions `at` (None: all), and the keys and values."""
        length = x.shape[1]
        attended, keys_values = self.attn(self.pre_attention_norm(x), positions, mask, at, form)
        if self.post_norms:
            attended = self.post_attention_norm(attended)
        if dropout is not None:
            attended = dropout(attended, 0, length, at)
        x = checkpoint_name((x if at is None else take(x, at)) + attended, ATTENTION_SAVED)
        mixed = self.mlp(self.pre_ffw_norm(x))
        if self.post_norms:
            mixed = self.post_ffw_norm(mixed)
        if dropout is not None:
            mixed = dropout(mixed, 1, length, at)
        return x + mixed, keys_values


class Embedder(nnx.Module):
    """Token embedding, shared by input and output."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        shape = (config.vocab_size, config.width)
        self.input_embedding = nnx.Param(nnx.initializers.normal(config.width**-0.5)(rngs.params(), shape))

    def encode(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Rows times sqrt(width). As in the reference, the factor is rounded to the parameter's dtype."""
        table = self.input_embedding.get_value()
        rows = table.rows(tokens) if isinstance(table, Quantized) else table[tokens]
        return rows * jnp.sqrt(jnp.float32(rows.shape[-1])).astype(rows.dtype)

    def decode(self, x: Float[Array, "b t d"], dtype: jnp.dtype) -> Float[Array, "b t v"]:
        """Unscaled dot products with every row, in float32."""
        return product("btd,vd->btv", x, self.input_embedding.get_value(), dtype, result=jnp.dtype(jnp.float32))


class Decoder(nnx.Module):
    """Embeddings in, hidden states out; `logits` turns hidden states into a distribution over tokens."""

    def __init__(self, config: DecoderConfig, precision: Precision, lora: LoraConfig | None, rngs: nnx.Rngs) -> None:
        self.embedder = Embedder(config, rngs)
        self.layers = stack(lambda rngs: Block(config, precision.products, lora, rngs), config.depth, rngs)
        self.depth = config.depth
        self.final_norm = RMSNorm(config.width)
        self.precision = precision

    def embed(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Scaled token embeddings in the compute dtype."""
        return self.embedder.encode(tokens).astype(self.precision.activations)

    def __call__(
        self,
        x: Float[Array, "b p d"],
        positions: Int[Array, "b p"],
        mask: Bool[Array, "b p p"],
        at: Int[Array, "b s"] | None = None,
        plan: LayerPlan | None = None,
        dropout: Dropout | None = None,
    ) -> Float[Array, "b s d"]:
        """Hidden states of a whole sequence after the final norm.

        Args:
            x: embeddings.
            positions: their positions in the sequence.
            mask: which key each query sees.
            at: positions of the returned hidden states; None for all.
            plan: how the layers run.
            dropout: dropout to apply; None for none.
        """
        plan = plan or LayerPlan()
        x = split_rows(plan.mesh, x)
        keys = None if dropout is None else jax.random.split(dropout.key, self.depth)

        def layer(block: Block, x, key, at=None):
            dropped = None if dropout is None else Dropout(dropout.rate, key)
            return block(x, positions, mask, at=at, dropout=dropped, form=plan.attention)[0], None

        last_key = None if keys is None else keys[-1]
        # Only these positions of the last layer are read, so its attention and MLP skip the others.
        if plan.unroll or isinstance(self.layers, nnx.List):
            *blocks, last = self.layers if isinstance(self.layers, nnx.List) else unstack(self.layers)
            run = plan.checkpoint(lambda block, x, key, at=None: layer(gather(plan.mesh, block), x, key, at)[0])
            for index, block in enumerate(blocks):
                x = run(block, x, None if keys is None else keys[index])
            return self.final_norm(run(last, x, last_key, at))
        if at is None or plan.remat == "none":  # without rematerialization, another copy of each layer's weights would be kept
            x, _ = scan_layers(layer, self.layers, x, xs=keys, plan=plan)
            return self.final_norm(x if at is None else take(x, at))
        x, last = scan_but_last(layer, self.layers, "llm/layers", x, plan, xs=keys)
        return self.final_norm(layer(last, x, last_key, at)[0])

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Output logits in float32, without Gemma 2's final soft cap; see `DecoderConfig.final_logits_softcap`."""
        return self.embedder.decode(hidden, self.precision.products)
