"""The network and both directions of the Hugging Face mapping, against `transformers` on torch. All in float32."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import paligemma
from paligemma.checkpoints.export import export
from paligemma.checkpoints.npz import read_npz, write_npz
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.data.tokenizer import Tokenizer
from paligemma.errors import DamagedError
from paligemma.models.config import DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.models.parameter_shapes import parameter_shapes

torch.set_num_threads(1)  # for matrices this small, a second thread costs more than it brings

IMAGE = VisionConfig(image_size=28, patch_size=14, width=18, depth=2, mlp_dim=24, num_heads=2)  # heads of 9
VOCABULARY = 128
SHAPES = {
    "1, multi-query": DecoderConfig(width=24, depth=2, mlp_dim=40, num_heads=4, num_kv_heads=1, head_dim=6, vocab_size=128),
    "1, multi-head": DecoderConfig(width=16, depth=2, mlp_dim=32, num_heads=2, num_kv_heads=2, head_dim=8, vocab_size=128),
    "2, grouped": DecoderConfig(
        width=24, depth=3, mlp_dim=40, num_heads=4, num_kv_heads=2, head_dim=14, vocab_size=128, post_norms=True,
        attn_logits_softcap=5.0, final_logits_softcap=3.0,
    ),
    "2, multi-query, scaled as 28B": DecoderConfig(
        width=32, depth=2, mlp_dim=40, num_heads=2, num_kv_heads=1, head_dim=8, vocab_size=128, post_norms=True,
        attn_logits_softcap=50.0, query_pre_attn_norm="rsqrt_emb_per_head",
    ),
}  # fmt: skip
CONFIGS = [pytest.param(PaliGemmaConfig(img=IMAGE, llm=decoder), id=name) for name, decoder in SHAPES.items()]


def random_arrays(config: PaliGemmaConfig) -> dict[str, np.ndarray]:
    """Weights large enough for every part of the network to move the logits."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in parameter_shapes(config).items()}


def their_model(config: PaliGemmaConfig):
    """A model of transformers with random weights, configured by hand: not by our own translation of configurations."""
    image, text = config.img, config.llm
    sizes = {
        "hidden_size": text.width, "intermediate_size": text.mlp_dim, "num_hidden_layers": text.depth,
        "num_attention_heads": text.num_heads, "num_key_value_heads": text.num_kv_heads, "head_dim": text.head_dim,
        "vocab_size": VOCABULARY + 64, "hidden_activation": "gelu_pytorch_tanh",
    }  # fmt: skip
    if text.post_norms:
        scaled_by_width = text.query_pre_attn_norm == "rsqrt_emb_per_head"
        text_config = transformers.Gemma2Config(
            **sizes,
            query_pre_attn_scalar=text.width // text.num_heads if scaled_by_width else text.head_dim,
            attn_logit_softcapping=text.attn_logits_softcap,
            final_logit_softcapping=text.final_logits_softcap or None,
        )
    else:
        text_config = transformers.GemmaConfig(**sizes)
    vision_config = transformers.SiglipVisionConfig(
        hidden_size=image.width, intermediate_size=image.mlp_dim, num_hidden_layers=image.depth,
        num_attention_heads=image.num_heads, image_size=image.image_size, patch_size=image.patch_size, vision_use_head=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.PaliGemmaForConditionalGeneration(
        transformers.PaliGemmaConfig(
            vision_config=vision_config,
            text_config=text_config,
            projection_dim=text.width,
            image_token_index=VOCABULARY,
            # Sliding windows and soft caps are exact in this implementation only.
            attn_implementation="eager",
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def assert_equal_outputs(model: paligemma.model.Model, theirs) -> None:
    """Logits of prompts with a suffix, and greedy continuations of prompts."""
    rng = np.random.default_rng(1)
    size, patches = IMAGE.image_size, IMAGE.num_patches
    images = rng.uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    tokens = rng.integers(3, VOCABULARY, (2, 9))
    mask_ar = np.array([[0] * 5 + [1] * 4] * 2)

    def their_inputs(tokens: np.ndarray, mask_ar: np.ndarray) -> dict:
        ids = np.concatenate([np.full((2, patches), theirs.config.image_token_id), tokens], axis=1)
        types = np.concatenate([np.zeros((2, patches), int), mask_ar], axis=1)
        return {
            "input_ids": torch.from_numpy(ids),
            "token_type_ids": torch.from_numpy(types),
            "attention_mask": torch.ones(ids.shape, dtype=torch.long),
            "pixel_values": torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        }

    inputs = their_inputs(tokens, mask_ar)
    with torch.no_grad():
        # Suffix tokens are causal for transformers only when it is told that there are labels.
        expected = theirs(**inputs, labels=inputs["input_ids"]).logits[:, patches:, :VOCABULARY].numpy()
    ours = np.asarray(model.logits(images, tokens, mask_ar))
    if cap := model.config.llm.final_logits_softcap:
        ours = cap * np.tanh(ours / cap)  # ours come before the output cap, as the reference's do
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)

    prompt = tokens[:, :5]
    generated = theirs.generate(
        **their_inputs(prompt, np.zeros_like(prompt)), max_new_tokens=6, do_sample=False, eos_token_id=-1,
        suppress_tokens=list(range(VOCABULARY, theirs.config.text_config.vocab_size)),
    )[:, patches + 5 :]  # fmt: skip
    ones = np.ones_like(prompt)
    np.testing.assert_array_equal(model.decode(images, prompt, ones, 0 * ones, 6), generated.numpy())


@pytest.mark.parametrize("config", CONFIGS)
def test_what_transformers_writes_is_read(config: PaliGemmaConfig, tmp_path: Path) -> None:
    theirs = their_model(config)
    theirs.save_pretrained(tmp_path / "x", max_shard_size="20KB")
    assert len(list((tmp_path / "x").glob("*.safetensors"))) > 1
    model = paligemma.load(tmp_path / "x")
    assert model.config == config
    assert_equal_outputs(model, theirs)


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_exported_is_loaded_by_transformers(config: PaliGemmaConfig, tmp_path: Path) -> None:
    arrays = random_arrays(config)
    write_npz(tmp_path / "x.npz", arrays)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    export(tmp_path / "x.npz", tmp_path / "out", "huggingface")
    theirs, report = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager", dtype="auto"
    )
    assert not any(report.values())
    assert theirs.dtype == torch.float32
    assert_equal_outputs(paligemma.load(tmp_path / "x.npz"), theirs.eval())
    export(tmp_path / "out", tmp_path / "back", "big_vision")
    back = read_npz(tmp_path / "back" / "checkpoint.npz")
    assert back.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(back[name][...], values)


def test_the_exported_processor_gives_the_tokens_and_pixels_of_ours(tmp_path: Path) -> None:
    from PIL import Image

    from paligemma.data.images import preprocess

    export("embedded:tiny", tmp_path / "out", "huggingface")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert processor.image_token_id == theirs.config.image_token_id
    model = paligemma.load("embedded:tiny", dtype="float32")
    patches = model.config.img.num_patches
    for prompt in ("ocr", "answer en is the digit odd or even?", "  two   spaces", "<loc0003><seg001> zé\t\U0001f600", "a\nb"):
        pixels = np.random.default_rng(len(prompt)).integers(0, 256, (40, 50, 3), np.uint8)
        inputs = processor(images=Image.fromarray(pixels), text=f"<image>{prompt}", return_tensors="pt")
        expected = [processor.image_token_id] * patches + model.tokenizer.prefix_ids(prompt)
        assert inputs["input_ids"][0].tolist() == expected
        ours = preprocess(pixels, model.config.img.image_size)
        np.testing.assert_allclose(inputs["pixel_values"][0].permute(1, 2, 0).numpy(), ours, atol=2.5 / 255)
        inputs["pixel_values"] = torch.from_numpy(np.asarray(ours)).permute(2, 0, 1)[None]
        answer = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)[0, len(expected) :]
        text = processor.decode(answer, skip_special_tokens=True)
        assert text == model.generate([pixels], [prompt], max_new_tokens=8)[0]


def state_of(theirs) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in theirs.state_dict().items()}


def embedding_as_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tied weights as some exporters write them."""
    return {name: tensor for name, tensor in tensors.items() if "embed_tokens" not in name}


@pytest.mark.parametrize("config", CONFIGS[:3:2])
@pytest.mark.parametrize(
    ("layout", "change"),
    [
        ("both", lambda tensors: tensors),
        ("head alone", embedding_as_head),
        ("wrapped", lambda tensors: {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}),
    ],
)
def test_what_torch_saves_of_the_model_in_memory_is_read(config: PaliGemmaConfig, layout: str, change, tmp_path: Path) -> None:
    theirs = their_model(config)
    theirs.save_pretrained(tmp_path / "x")
    tensors = change(state_of(theirs))
    assert ("lm_head.weight" in tensors) == (layout != "wrapped")
    save_file(tensors, tmp_path / "x" / "model.safetensors", metadata={"format": "pt"})
    if layout != "wrapped":
        again = transformers.PaliGemmaForConditionalGeneration.from_pretrained(tmp_path / "x")
        assert torch.equal(again.get_input_embeddings().weight, theirs.get_input_embeddings().weight)
    assert_equal_outputs(paligemma.load(tmp_path / "x"), theirs)


def test_an_output_that_is_not_tied_is_refused(tmp_path: Path) -> None:
    theirs = their_model(CONFIGS[0].values[0])
    theirs.save_pretrained(tmp_path / "x")
    tensors = state_of(theirs)
    tensors["lm_head.weight"][5, 3] += 1
    save_file(tensors, tmp_path / "x" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DamagedError, match=r"lm_head\.weight is tied to the embedding"):
        paligemma.load(tmp_path / "x")


def test_the_tokenizer_that_transformers_saves_becomes_the_model_that_it_was(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path / "cache"))
    export("embedded:tiny", tmp_path / "out", "huggingface")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "tokenizer.model").exists()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "saved" / name).write_bytes((tmp_path / "out" / name).read_bytes())
    made = Tokenizer(open_checkpoint(tmp_path / "saved").tokenizer)
    original = Tokenizer(open_checkpoint("embedded:tiny").tokenizer)
    assert made.vocab_size == original.vocab_size
    choose = random.Random(0)
    pieces = [piece.replace("▁", " ") for piece in original.pieces(range(4, original.vocab_size))]
    for _ in range(3000):
        text = "".join(choose.choice([*pieces, "é", "\U0001f600", "\t", "漢"]) for _ in range(choose.randrange(12)))
        assert made.encode(text) == original.encode(text)
        assert made.encode(text) == processor.tokenizer.encode(text, add_special_tokens=False)
