"""Derives the files of transformers' tokenizer and processor from a SentencePiece model."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from paligemma.errors import DamagedError, InputError
from paligemma.models.config import VisionConfig

IMAGE_TOKEN = "<image>"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BPE = 2


class Piece(NamedTuple):
    """An entry of the vocabulary, as in `sentencepiece_model.proto`; `kind` is its `Type`."""

    text: str
    score: float
    kind: int


def read_pieces(path: Path) -> list[Piece]:
    """The vocabulary of a SentencePiece model.

    The file is parsed here because the library tells neither which pieces are user-defined nor the model's type.

    Raises:
        InputError: the model's type is not Gemma's (BPE).
        DamagedError: the file is not a SentencePiece model.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = []
        for row in (dict(_fields(value)) for number, value in fields if number == 1):
            score = struct.unpack("<f", row[2])[0] if 2 in row else 0.0
            pieces.append(Piece(row[1].decode(), score, row.get(3, NORMAL)))
        trainer = dict(_fields(next(value for number, value in fields if number == 2)))
    except (IndexError, ValueError, LookupError, StopIteration, AttributeError, TypeError, struct.error):
        raise DamagedError("The tokenizer is not a SentencePiece model.", where=path) from None
    if trainer.get(3) != BPE:
        raise InputError("The tokenizer is not of Gemma's kind.", where=path, expected="a SentencePiece model of type BPE")
    return pieces


def tokenizer_json(pieces: list[Piece]) -> dict[str, Any]:
    """The file `tokenizer.json`: the same pieces with the same ids, then `<image>`.

    SentencePiece joins the two neighbours whose union has the best score. Here, every pair of normal pieces that forms a normal
    piece is a merge, ranked by that score. As there, user-defined pieces are never split or joined.
    """
    scores = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    merges = [
        (score, text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    merges.sort(key=lambda merge: -merge[0])
    added = [
        # Pieces with spaces are matched in the text whose spaces are already "▁".
        _added(number, piece.text, special=piece.kind != USER_DEFINED, normalized="▁" in piece.text)
        for number, piece in enumerate(pieces)
        if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    space = {"String": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [*added, _added(len(pieces), IMAGE_TOKEN, special=True, normalized=False)],
        "normalizer": {"type": "Replace", "pattern": space, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next(piece.text for piece in pieces if piece.kind == UNKNOWN),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.text: number for number, piece in enumerate(pieces)},
            "merges": [[left, right] for _, left, right in merges],
        },
    }


def tokenizer_config(pieces: list[Piece]) -> dict[str, Any]:
    """The file `tokenizer_config.json`. Pad, eos, bos and unknown are pieces 0 to 3."""
    return {
        "tokenizer_class": "GemmaTokenizer",
        "processor_class": "PaliGemmaProcessor",
        "pad_token": pieces[0].text,
        "eos_token": pieces[1].text,
        "bos_token": pieces[2].text,
        "unk_token": pieces[3].text,
        "mask_token": None,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "sp_model_kwargs": {},
        "extra_special_tokens": {"image_token": IMAGE_TOKEN},
    }


def preprocessor_config(image: VisionConfig) -> dict[str, Any]:
    """The file `preprocessor_config.json`: bilinear, as in training (the published files say bicubic), and to [-1, 1]."""
    return {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "PaliGemmaProcessor",
        "image_seq_length": image.num_patches,
        "size": {"height": image.image_size, "width": image.image_size},
        "do_convert_rgb": None,
        "do_resize": True,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _added(number: int, text: str, special: bool, normalized: bool) -> dict[str, Any]:
    return {
        "id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": normalized, "special": special,
    }  # fmt: skip


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protobuf message's fields: int for a varint, else bytes (protobuf.dev, "Encoding")."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while place < len(data):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(tag & 7)
        size = varint() if size is None and tag & 7 == 2 else size
        if size is None or place + size > len(data):
            raise ValueError("no protobuf message")
        yield tag >> 3, data[place : place + size]
        place += size
