"""Finds a checkpoint folder's SentencePiece model: `tokenizer.model`, else one made from `tokenizer.json` and cached."""

from __future__ import annotations

import logging
from pathlib import Path

from paligemma.artifacts.record import file_sha256
from paligemma.checkpoints.huggingface.sentencepiece_model import sentencepiece_model
from paligemma.storage.cache import cache_folder
from paligemma.storage.files import write_file

TOKENIZER_FILE = "tokenizer.model"
TOKENIZER_JSON = "tokenizer.json"

PUBLISHED = "https://storage.googleapis.com/big_vision/paligemma_tokenizer.model"
"""The tokenizer of PaliGemma and PaliGemma 2: gs://big_vision/paligemma_tokenizer.model, which anybody may read."""
PUBLISHED_SHA256 = "8986bb4f423f07f8c7f70d0dbe3526fb2316056c17bae71b1ea975e77a168fc6"
PUBLISHED_ROWS = 257_152
"""Rows of the embeddings that belong to this tokenizer."""

_RULES = 1
"""Version of the conversion rules: cached models of another version are not used."""

log = logging.getLogger("paligemma.checkpoints")


def find_tokenizer(folder: Path) -> Path | None:
    """The tokenizer's file in a folder; None without one. Converts nothing."""
    return next((folder / name for name in (TOKENIZER_FILE, TOKENIZER_JSON) if (folder / name).is_file()), None)


def as_sentencepiece(path: Path) -> Path:
    """The SentencePiece model for a tokenizer's file: the file itself, or one made from a `tokenizer.json`.

    Raises:
        InputError: the `tokenizer.json` cannot be converted exactly.
        DamagedError: the `tokenizer.json` cannot be read.
    """
    if path.suffix != ".json":
        return path
    made = cache_folder() / "tokenizers" / f"{file_sha256(path)}-{_RULES}.model"
    if not made.is_file():
        model = sentencepiece_model(path)
        made.parent.mkdir(parents=True, exist_ok=True)
        write_file(made, model)
        log.info("made a SentencePiece model with the same tokens from %s", path)
    return made
