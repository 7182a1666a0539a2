"""A `tokenizer.json` alone: the SentencePiece model made from it gives every text the tokens of the one it came from."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from components.fetch_checkpoint import __main__ as fetch_checkpoint
from paligemma.checkpoints.export import export
from paligemma.checkpoints.huggingface.sentencepiece_model import sentencepiece_model
from paligemma.checkpoints.huggingface.tokenizer import BYTE, NORMAL, USER_DEFINED, Piece, read_pieces, tokenizer_json
from paligemma.checkpoints.open_checkpoint import open_checkpoint, resolve_embedded
from paligemma.data.tokenizer import Tokenizer
from paligemma.errors import DamagedError, InputError

TINY = resolve_embedded("embedded:tiny") / "tokenizer.model"
PIECES = read_pieces(TINY)


def ours(pieces: list[Piece]) -> dict[str, Any]:
    """As our own export writes it."""
    return tokenizer_json(pieces)


def release_4(pieces: list[Piece]) -> dict[str, Any]:
    """As transformers 4 writes it: merges by score with those of every piece, as text; the byte of a tab as the tab."""
    values = tokenizer_json(pieces)
    scores = {piece.text: piece.score for piece in pieces}
    merges = [
        (score, len(text[:cut]), len(text[cut:]), f"{text[:cut]} {text[cut:]}")
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    values["model"]["merges"] = [merge for *_, merge in merges]
    vocab = values["model"]["vocab"]
    values["model"]["vocab"] = {"\t" if text == "<0x09>" else text: number for text, number in vocab.items()}
    return values


def release_5(pieces: list[Piece]) -> dict[str, Any]:
    """As `processor.save_pretrained` of transformers 5 writes it: merges by the id of what they make."""
    values = tokenizer_json(pieces)
    ids = values["model"]["vocab"]
    values["model"]["merges"] = [
        [text[:cut], text[cut:]] for text in ids for cut in range(1, len(text)) if text[:cut] in ids and text[cut:] in ids
    ]
    values["post_processor"] = {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}
    return values


WRITERS = [ours, release_4, release_5]


def converted(tmp_path: Path, values: object) -> sentencepiece.SentencePieceProcessor:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(values, ensure_ascii=False))
    model = sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(sentencepiece_model(path))
    return model


@pytest.fixture(scope="module", params=WRITERS)
def models(request, tmp_path_factory) -> tuple[sentencepiece.SentencePieceProcessor, sentencepiece.SentencePieceProcessor]:
    """The tiny model, and what is made of its tokenizer.json as a release writes it."""
    made = converted(tmp_path_factory.mktemp("tokenizer"), request.param(PIECES))
    return sentencepiece.SentencePieceProcessor(model_file=str(TINY)), made


def test_pieces_and_special_symbols_are_those_of_the_model(models) -> None:
    model, made = models
    assert made.GetPieceSize() == model.GetPieceSize() == len(PIECES)
    assert [made.IdToPiece(number) for number in range(len(PIECES))] == [piece.text for piece in PIECES]
    assert (made.pad_id(), made.eos_id(), made.bos_id(), made.unk_id()) == (0, 1, 2, 3)
    for number in range(len(PIECES)):
        assert (made.IsControl(number), made.IsByte(number)) == (model.IsControl(number), model.IsByte(number))


def test_texts_of_pieces_in_any_order_have_the_same_tokens(models) -> None:
    model, made = models
    choose = random.Random(0)
    texts = ["".join(choose.choice(PIECES[3:]).text.replace("▁", " ") for _ in range(12)) for _ in range(2000)]
    assert made.EncodeAsIds(texts) == model.EncodeAsIds(texts)


@settings(max_examples=200)
@given(st.text() | st.text("abcdefgh <loc0123>seg\n\t▁é漢", max_size=40))
def test_any_text_has_the_same_tokens_and_comes_back(models, text: str) -> None:
    model, made = models
    ids = model.EncodeAsIds(text)
    assert made.EncodeAsIds(text) == ids
    assert made.DecodeIds(ids) == model.DecodeIds(ids)


def test_symbols_that_the_processor_adds_and_the_image_token_are_told_apart(tmp_path: Path) -> None:
    """The published vocabularies may end before <loc> and <seg>, which then are added tokens; <image> is no piece."""
    values = tokenizer_json([piece for piece in PIECES if not piece.text.startswith(("<loc", "<seg"))])
    behind = len(values["model"]["vocab"])
    values["added_tokens"] = [entry for entry in values["added_tokens"] if entry["content"] != "<image>"]
    symbols = [piece.text for piece in PIECES if piece.text.startswith(("<loc", "<seg"))]
    for number, text in enumerate([*symbols, "<image>"]):
        values["added_tokens"].append({"id": behind + number, "content": text, "special": text == "<image>"})
    made = converted(tmp_path, values)
    assert made.GetPieceSize() == len(PIECES)
    assert made.EncodeAsIds("<loc0007><seg003>") == [behind + 7, behind + 1024 + 3]
    assert made.PieceToId("<image>") == made.unk_id()


def change(*path: object, to: object) -> Callable[[dict], None]:
    def apply(values: dict) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = to

    return apply


def without_a_merge(values: dict) -> None:
    del values["model"]["merges"][10]


def apart(values: dict) -> None:
    merges = values["model"]["merges"]
    whole = next("".join(one) for one, other in itertools.pairwise(merges) if "".join(one) == "".join(other))
    first = next(number for number, merge in enumerate(merges) if "".join(merge) == whole)
    merges.append(merges.pop(first))


def added(text: str, **others: object) -> Callable[[dict], None]:
    def apply(values: dict) -> None:
        number = len(values["model"]["vocab"])
        values["added_tokens"] = [entry for entry in values["added_tokens"] if entry["content"] != "<image>"]
        values["added_tokens"].append({"id": number, "content": text, "special": False, **others})

    return apply


def behind_the_image(values: dict) -> None:
    values["added_tokens"].append({"id": len(values["model"]["vocab"]) + 1, "content": "<mine>", "special": False})


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (change("model", "type", to="Unigram"), "'Unigram', not BPE"),
        (change("model", "byte_fallback", to=False), "byte_fallback False"),
        (change("model", "ignore_merges", to=True), "ignore_merges True"),
        (change("model", "dropout", to=0.1), "dropout 0.1"),
        (change("normalizer", to={"type": "NFKC"}), "normalizer does other"),
        (change("normalizer", to=None), "normalizer does other"),
        (change("pre_tokenizer", to={"type": "ByteLevel"}), "'ByteLevel', which splits"),
        (change("model", "unk_token", to="none"), "unknown token is not a piece"),
        (change("model", "vocab", "<0x41>", to=len(PIECES) - 1), "do not count from 0"),
        (change("model", "merges", 0, to=["a", "qqqqqq"]), "matches no piece"),
        (change("model", "merges", 0, to=["a"]), "not laid out as one|matches no piece"),
        (without_a_merge, "SentencePiece makes it in"),
        (apart, "are not adjacent"),
        (change("added_tokens", 0, "special", to=False), "'<pad>', is not special"),
        (added("<mine>", lstrip=True), "takes spaces around it"),
        (added("two words"), "has a space in it"),
        (added("<mine>", id=7), "have the same id 7"),
        (behind_the_image, "1 tokens are behind <image>, the first '<mine>'"),
        (change("model", to=[]), "not laid out as one"),
        (change("added_tokens", to=[{"id": "x"}]), "not laid out as one"),
    ],
)
def test_what_sentencepiece_has_nothing_like_is_refused_with_the_way_out(tmp_path: Path, alter, said: str) -> None:
    values = tokenizer_json(PIECES)
    alter(values)
    with pytest.raises(InputError, match=said) as caught:
        converted(tmp_path, values)
    assert "--tokenizer" in str(caught.value)
    assert "hf download google/paligemma-3b-pt-224 tokenizer.model" in str(caught.value)


def test_pieces_of_equal_score_cannot_be_told_apart_and_are_refused(tmp_path: Path) -> None:
    equal = [piece._replace(score=0.0) if piece.kind == NORMAL else piece for piece in PIECES]
    with pytest.raises(InputError, match="equal scores"):
        converted(tmp_path, release_4(equal))


def test_a_file_that_is_no_json_or_a_pointer_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xff{")
    with pytest.raises(DamagedError, match="not UTF-8"):
        sentencepiece_model(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match="Git LFS pointer"):
        sentencepiece_model(tmp_path / "tokenizer.json")


@pytest.fixture
def json_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face folder whose only tokenizer is a tokenizer.json."""
    monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path / "cache"))
    export("embedded:tiny", tmp_path / "folder", "huggingface")
    for name in ("tokenizer.model", "lineage.json"):
        (tmp_path / "folder" / name).unlink()
    return tmp_path / "folder"


def test_a_folder_with_tokenizer_json_alone_is_a_whole_checkpoint(json_only: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(json_only)
    assert not (tmp_path / "cache" / "tokenizers").exists()  # not before it is asked for
    text = "answer en is the digit odd or even?"
    assert Tokenizer(checkpoint.tokenizer).prefix_ids(text) == Tokenizer(TINY).prefix_ids(text)
    assert open_checkpoint(json_only).tokenizer == checkpoint.tokenizer  # made once
    assert len(list((tmp_path / "cache" / "tokenizers").iterdir())) == 1


def test_fetch_checkpoint_writes_the_model_that_later_steps_need(json_only: Path, tmp_path: Path) -> None:
    fetch_checkpoint.run(str(tmp_path / "out"), str(json_only))
    fetched = open_checkpoint(tmp_path / "out")
    assert fetched.tokenizer == tmp_path / "out" / "tokenizer.model"
    assert Tokenizer(fetched.tokenizer).encode("a text") == Tokenizer(TINY).encode("a text")
    fetch_checkpoint.run(str(tmp_path / "other"), "embedded:tiny", tokenizer=str(json_only / "tokenizer.json"))
    assert (tmp_path / "other" / "tokenizer.model").read_bytes() == (tmp_path / "out" / "tokenizer.model").read_bytes()


def test_a_tokenizer_that_cannot_be_converted_is_not_in_the_way_of_another(json_only: Path, tmp_path: Path) -> None:
    (json_only / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.raises(InputError, match="cannot be converted"):
        fetch_checkpoint.run(str(tmp_path / "out"), str(json_only))
    fetch_checkpoint.run(str(tmp_path / "out"), str(json_only), tokenizer=str(TINY))
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == TINY.read_bytes()


def test_runs_of_spaces_and_lines_are_pieces_of_their_own(tmp_path: Path) -> None:
    """As in Gemma's vocabulary, whose runs are user-defined."""
    runs = [*("\n" * size for size in range(2, 5)), *("▁" * size for size in range(2, 9))]
    pieces = [piece for piece in PIECES if piece.text not in runs]
    first = next(number for number, piece in enumerate(pieces) if piece.kind == BYTE)
    pieces[first:first] = [Piece(run, 0.0, USER_DEFINED) for run in runs]
    for write in WRITERS:
        made = converted(tmp_path, write(pieces))
        found = made.EncodeAsPieces("a\n\n\nb" + " " * 8 + "c" + " " * 11)
        assert found == ["a", "\n\n\n", "b", "▁" * 8, "c", "▁" * 8, "▁" * 3]


def test_weights_under_another_name_get_the_one_that_later_steps_look_for(json_only: Path, tmp_path: Path) -> None:
    (json_only / "model.safetensors").rename(json_only / "consolidated.safetensors")
    (json_only / "adapter_model.safetensors").write_bytes(b"of something else")
    fetch_checkpoint.run(str(tmp_path / "out"), str(json_only / "consolidated.safetensors"))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == ["model.safetensors"]
    assert open_checkpoint(tmp_path / "out").weights_sha256
