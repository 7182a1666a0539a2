"""The tokenizer and the layout of a sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.checkpoints.open_checkpoint import resolve_embedded
from paligemma.data.tokenizer import Tokenizer
from paligemma.errors import DamagedError, InputError

TINY = Tokenizer(resolve_embedded("embedded:tiny") / "tokenizer.model")


def test_layout() -> None:
    assert TINY.prefix_ids("ocr") == [2, *TINY.encode("ocr"), *TINY.encode("\n")]
    assert TINY.suffix_ids("7") == [*TINY.encode("7"), 1]
    assert len(TINY.encode("\n")) == 1


@pytest.mark.parametrize("symbol", ["<loc0000>", "<loc1023>", "<seg000>", "<seg127>", "\n"])
def test_special_symbols_are_one_token_inside_text(symbol: str) -> None:
    assert len(TINY.encode(symbol)) == 1
    assert TINY.encode(f"a{symbol}b") == [*TINY.encode("a"), *TINY.encode(symbol), *TINY.encode("b")]


# SentencePiece writes a space as U+2581, so that character itself comes back as a space.
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581")))
def test_any_text_round_trips(text: str) -> None:
    assert TINY.decode([*TINY.encode(text), 1, 5, 6]) == text


def test_ids_beyond_the_vocabulary_are_dropped() -> None:
    assert TINY.decode([*TINY.encode("ab"), 10**6]) == "ab"


def test_a_file_that_is_no_model_is_damaged(tmp_path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(DamagedError, match="not a SentencePiece model"):
        Tokenizer(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("piece", [b"\xff\xfe\xff", b"\xed\xa0\x80"], ids=["bytes", "half a surrogate pair"])
def test_a_piece_that_is_not_utf_8_is_damage(tmp_path, piece: bytes) -> None:
    data = (resolve_embedded("embedded:tiny") / "tokenizer.model").read_bytes()
    assert data.count(b"\x0a\x03ans") == 1
    (tmp_path / "tokenizer.model").write_bytes(data.replace(b"\x0a\x03ans", b"\x0a\x03" + piece))
    with pytest.raises(DamagedError, match="a piece that is not UTF-8"):
        Tokenizer(tmp_path / "tokenizer.model")


def test_a_model_without_the_special_symbols_is_refused(tmp_path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some text to learn from"] * 20), model_prefix=str(tmp_path / "plain"), vocab_size=40,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(InputError, match="lacks 1153 of PaliGemma's symbols"):
        Tokenizer(tmp_path / "plain.model")
