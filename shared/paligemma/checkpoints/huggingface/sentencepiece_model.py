"""Recovers the SentencePiece model behind a `tokenizer.json`, for folders without the model. The result is exact, or refused.

transformers makes the file from the model (its `convert_slow_tokenizer.py`, `GemmaConverter`; from release 5 on
`tokenization_gemma.py`): every way to cut a piece in two is a merge, ranked by the piece's score. So the order of the merges
gives the order of the scores, which is all that SentencePiece's BPE uses (`bpe_model.cc`). The way back is exact if the merges
are complete and each piece's merges are adjacent; `_scores` confirms both.

Two rules come from convention, not from the file. `<image>` after the pieces is transformers' own and not in the model. Every
other added token except pad, eos, bos and unknown is user-defined, as all of Gemma's are, and so are `<loc>` and `<seg>`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paligemma.checkpoints.huggingface.tokenizer import (
    BPE,
    BYTE,
    CONTROL,
    IMAGE_TOKEN,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Piece,
)
from paligemma.checkpoints.identify import refuse_other
from paligemma.errors import DamagedError, InputError
from paligemma.foreign_json import read_json

_OTHER_SYMBOLS = re.compile(r"<loc\d{4}>|<seg\d{3}>")  # transformers' PaliGemmaProcessor adds them in its constructor
_SPACE = {"String": " "}
_REPLACED = {"type": "Replace", "pattern": _SPACE, "content": "▁"}
_PLAIN = {
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (True,),
    "ignore_merges": (None, False),
}
"""Settings of the tokenizer's model, and the values that SentencePiece can express."""
_LOWEST = -1e7


class _InexactError(ValueError):
    """The file has a property that no SentencePiece model can have."""


def sentencepiece_model(path: Path) -> bytes:
    """The model as the bytes of a `tokenizer.model`.

    Args:
        path: a `tokenizer.json`.

    Raises:
        InputError: no conversion gives every text the same tokens.
        DamagedError: it is not JSON.
    """
    try:
        values = read_json(path, "The tokenizer", fix="fetch it again")
    except DamagedError:
        refuse_other(path, "The tokenizer")
        raise
    try:
        pieces = _pieces(values)
    except (_InexactError, LookupError, TypeError, ValueError, AttributeError) as error:
        why = str(error) if isinstance(error, _InexactError) else f"it is not laid out as one ({error!r})"
        raise InputError(
            f"tokenizer.json cannot be converted to a SentencePiece model with the same tokens: {why}.",
            where=path,
            expected="a tokenizer of Gemma's kind, as transformers saves it",
            fix="put tokenizer.model beside it, or pass it to fetch_checkpoint as --tokenizer; the published PaliGemma models "
            "have it, e.g. hf download google/paligemma-3b-pt-224 tokenizer.model",
        ) from None
    return _serialized(pieces)


def _pieces(values: Mapping[str, Any]) -> list[Piece]:
    model = values["model"]
    _check_kind(values, model)
    vocabulary, added = _vocabulary(model["vocab"], values.get("added_tokens") or [])
    unknown = model.get("unk_token")
    kinds = {text: _kind(text, number, unknown, added) for number, text in enumerate(vocabulary)}
    tab = vocabulary.index("\t") if "<0x09>" not in kinds and "\t" in kinds else None
    if tab is not None:  # transformers writes the piece for the tab byte as a tab
        vocabulary[tab], kinds["<0x09>"] = "<0x09>", BYTE
        del kinds["\t"]
    if missing := [f"<0x{byte:02X}>" for byte in range(256) if kinds.get(f"<0x{byte:02X}>") != BYTE]:
        raise _InexactError(f"it has no piece for {len(missing)} bytes, the first {missing[0]}")
    if UNKNOWN not in kinds.values():
        raise _InexactError("its unknown token is not a piece")
    scores = _scores({text for text, kind in kinds.items() if kind == NORMAL}, set(kinds) | {"\t"}, model["merges"])
    return [Piece(text, scores.get(text, _LOWEST if kinds[text] == NORMAL else 0.0), kinds[text]) for text in vocabulary]


def _check_kind(values: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise _InexactError(f"its model is {model.get('type')!r}, not BPE")
    for key, allowed in _PLAIN.items():
        if model.get(key) not in allowed:
            raise _InexactError(f"its model has {key} {model.get(key)!r}")
    normalizer, splitter = values.get("normalizer"), values.get("pre_tokenizer")
    if normalizer and normalizer.get("type") == "Sequence" and len(normalizer["normalizers"]) == 1:
        (normalizer,) = normalizer["normalizers"]
    if normalizer is None and splitter and splitter.get("type") == "Metaspace":
        if splitter.get("replacement") == "▁" and splitter.get("prepend_scheme") == "never" and splitter.get("split") is False:
            return
        raise _InexactError("its pre-tokenizer splits words, or puts a space before the text")
    if normalizer != _REPLACED:
        raise _InexactError('its normalizer does other than to replace " " by "▁"')
    if splitter and not (splitter.get("type") == "Split" and splitter.get("pattern") == _SPACE):
        raise _InexactError(f"its pre-tokenizer is {splitter.get('type')!r}, which splits texts in its own way")


def _vocabulary(vocab: Mapping[str, int], entries: Iterable[Mapping[str, Any]]) -> tuple[list[str], dict[str, bool]]:
    """All pieces in order of id, and whether each added token is special."""
    by_id = {number: text for text, number in vocab.items()}
    added: dict[str, bool] = {}
    image = None
    for entry in entries:
        number, text = entry["id"], entry["content"]
        if text == IMAGE_TOKEN and text not in vocab:
            image = number
            continue
        if by_id.setdefault(number, text) != text:
            raise _InexactError(f"{by_id[number]!r} and {text!r} have the same id {number}")
        if entry.get("lstrip") or entry.get("rstrip") or entry.get("single_word"):
            raise _InexactError(f"the added token {text!r} takes spaces around it, or whole words only")
        if " " in text or (entry.get("normalized") and "▁" in text.strip("▁")):
            raise _InexactError(f"the added token {text!r} has a space in it")
        added[text] = bool(entry.get("special"))
    if image is not None and (behind := sorted(number for number in by_id if number > image)):
        raise _InexactError(f"{len(behind)} tokens are behind {IMAGE_TOKEN}, the first {by_id[behind[0]]!r}")
    texts = [text for number in range(len(by_id)) if isinstance(text := by_id.get(number), str) and text]
    if len(set(texts)) < len(by_id):
        raise _InexactError("its ids do not count from 0 without a gap, or a piece is there twice")
    return texts, added


def _kind(text: str, number: int, unknown: str | None, added: Mapping[str, bool]) -> int:
    if text == unknown:
        return UNKNOWN
    if number < 3:  # pad, eos, bos
        if not added.get(text):
            raise _InexactError(f"the token {number}, {text!r}, is not special, as pad, eos and bos are")
        return CONTROL
    if re.fullmatch(r"<0x[0-9A-F]{2}>", text):
        return BYTE
    return USER_DEFINED if text in added or _OTHER_SYMBOLS.fullmatch(text) else NORMAL


def _scores(normal: set[str], known: set[str], merges: Iterable[str | list[str]]) -> dict[str, float]:
    """Score of every normal piece that a merge makes: minus its rank among the merges."""
    scores: dict[str, float] = {}
    counts: dict[str, int] = {}
    last = None
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        whole = left + right
        if whole not in known or left not in known or right not in known:
            raise _InexactError(f"the merge of {left!r} and {right!r} matches no piece")
        if not (whole in normal and left in normal and right in normal):
            continue  # SentencePiece merges neither from nor into user-defined pieces
        if whole != last and whole in scores:
            raise _InexactError(f"the merges that make {whole!r} are not adjacent: pieces have equal scores")
        scores.setdefault(whole, -float(len(scores)))
        counts[whole] = counts.get(whole, 0) + 1
        last = whole
    for whole in normal:
        ways = sum(whole[:cut] in normal and whole[cut:] in normal for cut in range(1, len(whole)))
        if ways != counts.get(whole, 0):
            raise _InexactError(f"{counts.get(whole, 0)} merges make {whole!r}, SentencePiece makes it in {ways} ways")
    return scores


def _serialized(pieces: list[Piece]) -> bytes:
    """A `sentencepiece_model.proto` message: pieces, the trainer fields that the library needs, an identity normalizer."""
    unknown = next(number for number, piece in enumerate(pieces) if piece.kind == UNKNOWN)
    # Fields 3, 4, 35 and 40 to 43: type, size, byte fallback for unknown characters, ids; 45 to 48: the ids' texts.
    trainer = _integers({3: BPE, 4: len(pieces), 35: 1, 40: unknown, 41: 2, 42: 1, 43: 0})
    for field, number in ((45, unknown), (46, 2), (47, 1), (48, 0)):
        trainer += _bytes(field, pieces[number].text.encode())
    # Fields 3 to 5: no space added before the text, none removed; spaces become "▁".
    normalizer = _bytes(1, b"identity") + _integers({3: 0, 4: 0, 5: 1})
    return b"".join(_piece(piece) for piece in pieces) + _bytes(2, trainer) + _bytes(3, normalizer)


def _piece(piece: Piece) -> bytes:
    text = _bytes(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score)
    return _bytes(1, text + (b"" if piece.kind == NORMAL else _integers({3: piece.kind})))


def _integers(fields: Mapping[int, int]) -> bytes:
    return b"".join(_varint(field << 3) + _varint(value) for field, value in fields.items())


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    return bytes(_septets(value))


def _septets(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
