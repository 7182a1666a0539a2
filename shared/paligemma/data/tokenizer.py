"""The SentencePiece tokenizer with PaliGemma's special symbols, and the layout of a training sequence."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from paligemma.checkpoints.identify import no_file, refuse_other
from paligemma.errors import DamagedError, InputError
from paligemma.foreign_json import read_bounded

SEPARATOR = "\n"
NUM_LOC, NUM_SEG = 1024, 128


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        pad_id, eos_id, bos_id: PaliGemma's 0, 1, 2.
        sha256: hash of the model file.
        vocab_size: number of pieces; may be less than the embedding's rows.
    """

    def __init__(self, path: str | Path) -> None:
        """Loads a SentencePiece model file and checks that PaliGemma can use it.

        Raises:
            InputError: the file or a special symbol is missing.
            DamagedError: the file is not a SentencePiece model.
        """
        path = Path(path)
        if not path.is_file():
            raise no_file(path, "tokenizer")
        data = read_bounded(path, "The tokenizer", error=InputError)
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(data)
        except RuntimeError:
            refuse_other(path, "The tokenizer")
            raise DamagedError(
                "The tokenizer is not a SentencePiece model.", where=path, fix="fetch tokenizer.model again"
            ) from None
        self._check_texts(path)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.pad_id, self.eos_id, self.bos_id = self._model.pad_id(), self._model.eos_id(), self._model.bos_id()
        self.vocab_size = self._model.GetPieceSize()
        if (self.pad_id, self.eos_id, self.bos_id) != (0, 1, 2):
            raise InputError(
                f"The tokenizer's pad, eos and bos are {self.pad_id}, {self.eos_id}, {self.bos_id}.",
                where=path,
                expected="0, 1, 2, as in PaliGemma's tokenizer",
                fix="take the tokenizer.model of the PaliGemma that the weights come from",
            )
        wanted = [SEPARATOR, *(f"<loc{i:04d}>" for i in range(NUM_LOC)), *(f"<seg{i:03d}>" for i in range(NUM_SEG))]
        unknown = self._model.unk_id()
        missing = [piece for piece in wanted if self._model.PieceToId(piece) == unknown]
        if missing:
            raise InputError(
                f"The tokenizer lacks {len(missing)} of PaliGemma's symbols, the first {missing[0]!r}.",
                where=path,
                expected=r"'\n', <loc0000> to <loc1023> and <seg000> to <seg127> as single pieces",
                fix="take the tokenizer.model of a PaliGemma: Gemma's own has no <loc> and no <seg>",
            )
        self._separator = [self._model.PieceToId(SEPARATOR)]

    def _check_texts(self, path: Path) -> None:
        """Checks that pieces are valid text: the library accepts any bytes, and fails only when decoding them."""
        try:
            self._model.IdToPiece(list(range(self._model.GetPieceSize())))
        except UnicodeDecodeError:
            raise DamagedError(
                "The tokenizer has a piece that is not UTF-8.", where=path, fix="fetch tokenizer.model again"
            ) from None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special symbols."""
        return self._model.EncodeAsIds(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` for many texts, on one thread, because callers with many texts use processes."""
        return self._model.EncodeAsIds(texts, num_threads=1)

    def spells(self, texts: list[str], ids: list[list[int]]) -> list[bool]:
        """Whether each text equals its decoded token ids from `encode_batch`."""
        return [back == text for back, text in zip(self._model.DecodeIds(ids, num_threads=1), texts, strict=True)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids up to the first eos; drops padding and ids beyond the vocabulary."""
        ids = [int(token) for token in ids]
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        special = (self.pad_id, self.bos_id)
        return self._model.Decode([token for token in ids if token not in special and token < self.vocab_size])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The piece of each token id, for people to read; `?` for ids beyond the vocabulary."""
        return [self._model.IdToPiece(int(token)) if token < self.vocab_size else "?" for token in ids]

    def prefix_ids(self, prefix: str) -> list[int]:
        """`[bos] prefix "\\n"`. The separator is tokenized on its own, so that it never merges with the prefix."""
        return self.with_prefix_marks(self.encode(prefix))

    def suffix_ids(self, suffix: str) -> list[int]:
        """`suffix [eos]`."""
        return self.with_suffix_marks(self.encode(suffix))

    def with_prefix_marks(self, ids: list[int]) -> list[int]:
        """Adds bos and the separator around a prefix's token ids."""
        return [self.bos_id, *ids, *self._separator]

    def with_suffix_marks(self, ids: list[int]) -> list[int]:
        """Appends eos to a suffix's token ids."""
        return [*ids, self.eos_id]
