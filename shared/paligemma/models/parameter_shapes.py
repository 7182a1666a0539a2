"""Name and shape of every parameter, as in big_vision's checkpoints. Known without building the network, and without JAX."""

from __future__ import annotations

from paligemma.models.config import DecoderConfig, PaliGemmaConfig, VisionConfig

EMBEDDING = "llm/embedder/input_embedding"
"""The token embedding, which is shared by input and output."""

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(config: PaliGemmaConfig) -> Shapes:
    """Shapes by name, sorted by name. A layer's parameters are stacked: their first axis counts layers."""
    shapes = {f"img/{name}": shape for name, shape in _tower(config.img, config.llm.width).items()}
    shapes |= {f"llm/{name}": shape for name, shape in _decoder(config.llm).items()}
    return dict(sorted(shapes.items()))


def _tower(tower: VisionConfig, decoder_width: int) -> Shapes:
    L, D, F, N = tower.depth, tower.width, tower.mlp_dim, tower.num_heads
    H, patch = D // N, tower.patch_size
    block = {f"LayerNorm_{norm}/{name}": (D,) for norm in (0, 1) for name in ("scale", "bias")}
    for name in ("query", "key", "value"):
        block |= {f"{_ATTENTION}/{name}/kernel": (D, N, H), f"{_ATTENTION}/{name}/bias": (N, H)}
    block |= {f"{_ATTENTION}/out/kernel": (N, H, D), f"{_ATTENTION}/out/bias": (D,)}
    for index, (inputs, outputs) in enumerate(((D, F), (F, D))):
        block |= {f"MlpBlock_0/Dense_{index}/kernel": (inputs, outputs), f"MlpBlock_0/Dense_{index}/bias": (outputs,)}
    return {
        "embedding/kernel": (patch, patch, 3, D),
        "embedding/bias": (D,),
        "pos_embedding": (1, tower.num_patches, D),
        **{f"Transformer/encoderblock/{name}": (L, *shape) for name, shape in block.items()},
        "Transformer/encoder_norm/scale": (D,),
        "Transformer/encoder_norm/bias": (D,),
        "head/kernel": (D, decoder_width),
        "head/bias": (decoder_width,),
    }


_ATTENTION = "MultiHeadDotProductAttention_0"


def _decoder(decoder: DecoderConfig) -> Shapes:
    L, D, F = decoder.depth, decoder.width, decoder.mlp_dim
    N, K, H = decoder.num_heads, decoder.num_kv_heads, decoder.head_dim
    attention: Shapes = {"qkv_einsum/w": (3, N, D, H)} if K == N else {"q_einsum/w": (N, D, H), "kv_einsum/w": (2, K, D, H)}
    attention |= {"attn_vec_einsum/w": (N, H, D)}
    norms = ["pre_attention_norm", "pre_ffw_norm"]
    if decoder.post_norms:
        norms += ["post_attention_norm", "post_ffw_norm"]
    layer = {f"attn/{name}": shape for name, shape in attention.items()}
    layer |= {"mlp/gating_einsum": (2, D, F), "mlp/linear": (F, D)}
    layer |= {f"{name}/scale": (D,) for name in norms}
    return {
        "embedder/input_embedding": (decoder.vocab_size, D),
        **{f"layers/{name}": (L, *shape) for name, shape in layer.items()},
        "final_norm/scale": (D,),
    }
