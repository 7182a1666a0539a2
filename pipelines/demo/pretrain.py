"""Makes the embedded checkpoint `embedded:tiny`: a tiny PaliGemma pretrained on drawn digits, letters, shapes and dots.

    python -m pipelines.demo.pretrain --output shared/paligemma/checkpoints/embedded/tiny

It never sees a scanned digit or one of the demo's questions: the demo fine-tunes on those.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import optax
import sentencepiece
import typer
from flax import nnx

from paligemma.checkpoints.npz import write_npz
from paligemma.checkpoints.parameters import parameters_by_name
from paligemma.data.batch import train_batch
from paligemma.data.tokenizer import Tokenizer
from paligemma.models.config import DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.models.paligemma import PaliGemma
from paligemma.training.step import init_state, make_train_step
from paligemma.training.trainable import compile_pattern, split_trainable
from pipelines.demo.glyphs import LETTERS, SHAPES, Glyph, draw

IMAGE_SIZE = 32
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
POOL = 40_000  # number of pictures; each is used in several tasks
BATCH_SIZE = 64
TEXT_WIDTH = 24  # maximum tokens of a whole text
LOSS_WIDTH = 8  # maximum tokens of a suffix


def tasks(glyph: Glyph) -> list[tuple[str, str]]:
    """Every prefix and suffix that can be asked of a picture, in PaliGemma's task style (arXiv 2407.07726, section 3.2)."""
    yes_no = {True: "yes", False: "no"}
    rows = [("answer en what is shown?", glyph.kind)]
    if glyph.kind == "digit":
        value = int(glyph.name)
        rows += [("caption en", f"the digit {NUMBERS[value]}"), ("ocr", glyph.name)] * 2
        rows += [("answer en name the digit after this one", NUMBERS[(value + 1) % 10])]
        rows += [("answer en does it have a closed loop?", yes_no[glyph.name in "0689"])]
    elif glyph.kind == "letter":
        rows += [("caption en", f"the letter {glyph.name}"), ("ocr", glyph.name)]
        rows += [("answer en is it a vowel?", yes_no[glyph.name in "AEIOU"])]
    elif glyph.kind == "shape":
        rows += [("caption en", f"a {glyph.name}"), ("answer en which shape is it?", glyph.name)]
        rows += [("answer en is it round?", yes_no[glyph.name in ("circle", "ring")])]
    else:
        count = int(glyph.name)
        rows += [("caption en", f"{NUMBERS[count]} dots"), ("answer en how many dots are there?", glyph.name)]
        rows += [("answer en is the number of dots odd or even?", "odd" if count % 2 else "even")]
        rows += [("answer en are there more than three dots?", yes_no[count > 3])]
        rows += [("answer en are there fewer than three dots?", yes_no[count < 3])]
    return rows


def train_tokenizer() -> bytes:
    """A SentencePiece model with PaliGemma's special symbols, trained on the tasks' texts.

    It behaves like the real one: pad 0, eos 1, bos 2, byte fallback, digits split, no normalization, no dummy prefix.
    """
    blank = np.zeros((1, 1, 3), np.uint8)
    names = {"digit": "0123456789", "letter": LETTERS, "shape": SHAPES, "dots": "123456"}
    texts = [text for kind in names for name in names[kind] for row in tasks(Glyph(blank, kind, name)) for text in row]
    texts += ["which digit is this? is it larger, smaller or equal? the number in the picture, left and right, up and down",
              "a photo of a small black and white drawing on paper, seen from above", string_of_printables()]  # fmt: skip
    symbols = ["\n", *(f"<loc{i:04d}>" for i in range(1024)), *(f"<seg{i:03d}>" for i in range(128))]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=1800,
        hard_vocab_limit=False,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        user_defined_symbols=symbols,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def string_of_printables() -> str:
    """Every printable ASCII character, so that each has a piece of its own."""
    return " ".join(chr(code) for code in range(33, 127))


def batches(tokenizer, rng: np.random.Generator) -> Iterator:
    """Endless random batches over a pool of drawn pictures."""
    pool = [draw(rng, IMAGE_SIZE) for _ in range(POOL)]
    encoded: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    while True:
        tokens = np.zeros((BATCH_SIZE, TEXT_WIDTH), np.int32)
        suffix = np.zeros((BATCH_SIZE, TEXT_WIDTH), np.int32)
        images = np.zeros((BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for row in range(BATCH_SIZE):
            glyph = pool[rng.integers(POOL)]
            choices = tasks(glyph)
            pair = choices[rng.integers(len(choices))]
            if pair not in encoded:
                encoded[pair] = tokenizer.prefix_ids(pair[0]), tokenizer.suffix_ids(pair[1])
            before, after = encoded[pair]
            images[row] = glyph.pixels
            tokens[row, : len(before) + len(after)] = before + after
            suffix[row, len(before) : len(before) + len(after)] = 1
        yield train_batch(images, tokens, suffix, suffix, LOSS_WIDTH)


def pretrain(
    output: Annotated[Path, typer.Option(help="Folder to write checkpoint.npz, config.json and tokenizer.model to.")],
    steps: Annotated[int, typer.Option(help="Training steps of 64 examples.")] = 6000,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Determines the pictures, their order and the initial parameters.")] = 0,
) -> None:
    """Makes the embedded tiny checkpoint."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output.mkdir(parents=True, exist_ok=True)
    (output / "tokenizer.model").write_bytes(train_tokenizer())
    tokenizer = Tokenizer(output / "tokenizer.model")
    config = PaliGemmaConfig(
        img=VisionConfig(image_size=IMAGE_SIZE, patch_size=8, width=96, depth=4, mlp_dim=256, num_heads=4),
        llm=DecoderConfig(
            width=128,
            depth=4,
            mlp_dim=256,
            num_heads=4,
            num_kv_heads=1,
            head_dim=32,
            vocab_size=-(-tokenizer.vocab_size // 64) * 64,
        ),
    )
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, 200, steps, learning_rate / 50)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.02))
    graph, trainable, frozen = split_trainable(PaliGemma(config, rngs=nnx.Rngs(seed)), compile_pattern("all"))
    state, step = init_state(trainable, optimizer), make_train_step(graph, optimizer)
    started, losses = time.monotonic(), []
    for number, batch in zip(range(1, steps + 1), batches(tokenizer, np.random.default_rng(seed)), strict=False):
        state, metrics = step(state, frozen, batch)
        losses.append(metrics.loss)
        if number % 200 == 0:
            mean = float(np.mean(jax.device_get(losses)))
            logging.info("step %d of %d, loss %.4f, %.0f s", number, steps, mean, time.monotonic() - started)
            losses = []
    arrays = {name: np.asarray(variable[...], np.float16) for name, variable in parameters_by_name(state.trainable).items()}
    write_npz(output / "checkpoint.npz", dict(sorted(arrays.items())))
    (output / "config.json").write_text(json.dumps(config.model_dump(), indent=2) + "\n")


if __name__ == "__main__":
    typer.run(pretrain)
