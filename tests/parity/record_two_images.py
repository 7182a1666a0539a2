"""Records what big_vision makes of examples with two images, in `golden/MODEL/two_images.npz`, which tests compare ours with.

    .venv/bin/python tests/parity/record_two_images.py BIG_VISION

BIG_VISION is a folder with google-research/big_vision at commit 0127fb6. The packages that it imports and we do not have go,
without what they depend on, to a temporary folder; that needs a package index. First it has to give the logits of one image
that are in `expected.npz`, so that it is known to be run as it was then.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

PACKAGES = ["ml_collections==1.1.0", "einops==0.8.1", "clu==0.0.12"]
GOLDEN = Path(__file__).parent / "golden"
MODELS = ("pg1_mqa", "pg2_cap")


def reference(config: dict):
    """big_vision's network of an architecture in our words."""
    gemma = importlib.import_module("big_vision.models.ppp.gemma")
    wrapper = importlib.import_module("big_vision.models.proj.paligemma.gemma_bv")
    image, text = config["img"], dict(config["llm"])
    patch, vocabulary = image["patch_size"], text.pop("vocab_size")
    sizes = gemma.get_config("gemma_2b")
    for key, value in text.items():
        sizes[key] = value
    # Its own configurations have no tiny one, and only the vocabulary may be another.
    wrapper.gemma.get_config = lambda variant: sizes.copy_and_resolve_references()
    vision = {
        "patch_size": (patch, patch), "width": image["width"], "depth": image["depth"], "mlp_dim": image["mlp_dim"],
        "num_heads": image["num_heads"], "pool_type": "none", "scan": True,
    }  # fmt: skip
    model = importlib.import_module("big_vision.models.proj.paligemma.paligemma").Model
    hashable = importlib.import_module("ml_collections").FrozenConfigDict
    return model(img_model="vit", img=hashable(vision), llm=hashable({"vocab_size": vocabulary, "cache_dtype": None}))


def record(name: str) -> None:
    """Writes the file of one golden model."""
    model = reference(json.loads((GOLDEN / name / "config.json").read_text()))
    utils = importlib.import_module("big_vision.utils")
    flat = dict(np.load(GOLDEN / name / "ckpt.npz"))
    params = utils.recover_tree(*zip(*((key.removeprefix("params/"), value) for key, value in flat.items()), strict=True))
    inputs, expected = (dict(np.load(GOLDEN / name / f"{file}.npz")) for file in ("inputs", "expected"))
    text, mask_ar = inputs["train/text"][:, :-1], inputs["train/mask_ar"][:, :-1]
    alone, _ = model.apply({"params": params}, inputs["train/image"], text, mask_ar)
    assert np.abs(alone - expected["train/logits"]).max() < 5e-5, "it is not run as it was for expected.npz"

    shape = inputs["train/image"].shape
    images = np.random.default_rng(2).uniform(-1, 1, (shape[0], 2, *shape[1:])).astype(np.float32)
    logits, out = model.apply({"params": params}, images, text, mask_ar)
    predict = importlib.import_module("big_vision.trainers.proj.paligemma.predict_fns").get_all(model)
    prompts = {key: inputs[f"eval/{key}"] for key in ("text", "mask_ar", "mask_input")}
    tokens = predict["decode"](
        {"params": params},
        {"image": images, **prompts, "_mask": np.ones(len(images), bool)},
        devices=jax.devices(),
        max_decode_len=int(inputs["max_decode_len"]),
        eos_token=-1,
        sampler="greedy",
    )
    found = {"image": images, "zimg": out["img/zimg"], "logits": logits, "tokens": tokens}
    np.savez_compressed(GOLDEN / name / "two_images.npz", **{key: np.asarray(value) for key, value in found.items()})
    print(f"{name}: {', '.join(f'{key} {np.shape(value)}' for key, value in found.items())}")


def main() -> None:
    """Records both models."""
    folder = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as packages:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, *PACKAGES]
        subprocess.run(install, check=True)
        sys.path[:0] = [str(folder), packages]
        for name in MODELS:
            record(name)


if __name__ == "__main__":
    main()
