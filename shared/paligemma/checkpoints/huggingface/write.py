"""Writes a Hugging Face folder that `transformers` loads, with no more than a piece of a tensor in memory."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from paligemma.checkpoints.huggingface.config import embedding_rows, huggingface_config
from paligemma.checkpoints.huggingface.mapping import EMBEDDING, pieces
from paligemma.checkpoints.huggingface.tokenizer import preprocessor_config, read_pieces, tokenizer_config, tokenizer_json
from paligemma.checkpoints.lazy import LazyArray, blocks
from paligemma.checkpoints.open_checkpoint import CONFIG_FILE
from paligemma.checkpoints.safetensors_files import SHARD_BYTES, Outgoing, write_safetensors
from paligemma.checkpoints.tokenizer_file import TOKENIZER_FILE
from paligemma.models.config import PaliGemmaConfig


def write_huggingface(
    folder: Path,
    config: PaliGemmaConfig,
    arrays: Mapping[str, LazyArray],
    cast: Callable[[str, np.ndarray], np.ndarray],
    tokenizer: Path | None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes weights, configuration and, given a tokenizer, its files and the processor's into an existing folder.

    Args:
        folder: the existing folder.
        config: the architecture.
        arrays: every parameter by name.
        cast: converts a block of values for writing, given the parameter's name.
        tokenizer: the SentencePiece model; None without one.
        shard_bytes: size in bytes above which a new weight file begins.
    """
    vocabulary = read_pieces(tokenizer) if tokenizer else None
    count = len(vocabulary) if vocabulary else None
    padding = embedding_rows(config, count) - config.llm.vocab_size

    def outgoing() -> Iterator[Outgoing]:
        for ours, theirs, shape, values in pieces(config, arrays):
            dtype = np.dtype(cast(ours, np.empty(0, arrays[ours].dtype)).dtype)
            if theirs == EMBEDDING:
                shape = (shape[0] + padding, *shape[1:])
                values = itertools.chain(values, _padding(arrays[ours], padding))
            yield Outgoing(theirs, shape, dtype, _cast(ours, values, cast))

    write_safetensors(folder, outgoing(), shard_bytes)
    embedding = "llm/embedder/input_embedding"
    dtype = np.dtype(cast(embedding, np.empty(0, arrays[embedding].dtype)).dtype)
    texts = {
        CONFIG_FILE: huggingface_config(config, dtype, count),
        "generation_config.json": {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
    }
    if tokenizer and vocabulary:
        shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)
        texts["tokenizer.json"] = tokenizer_json(vocabulary)
        texts["tokenizer_config.json"] = tokenizer_config(vocabulary)
        texts["preprocessor_config.json"] = preprocessor_config(config.img)
    for name, values in texts.items():
        (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _cast(name: str, values: Iterable[np.ndarray], cast: Callable[[str, np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
    return (cast(name, block) for block in values)


def _padding(embedding: LazyArray, rows: int) -> Iterator[np.ndarray]:
    """Padding rows, each the mean of all rows: so their logit is the mean of all logits, and never the largest."""
    if not rows:
        return
    total = np.zeros(embedding.shape[1:], np.float64)
    for block in blocks(embedding.shape, embedding.dtype.itemsize):
        total += embedding[block].astype(np.float64).sum(axis=0)
    mean = (total / embedding.shape[0]).astype(embedding.dtype)
    yield np.broadcast_to(mean, (rows, *mean.shape))
