"""Answers every row of a data set once; batches rows of similar length."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from paligemma.data.batch_order import LOSS_MULTIPLE, TEXT_MULTIPLE, bucket_widths, round_up
from paligemma.data.images import normalize
from paligemma.data.records import Records, read_lengths
from paligemma.data.tfrecord import RowReader, StoredRow
from paligemma.decoding.settings import DecodeSettings
from paligemma.errors import InputError
from paligemma.model import Model

BUCKETS = 4
"""Maximum number of prompt widths, each of which compiles once."""


@dataclass(frozen=True)
class Answer:
    """What a model said to a row: the answer, and the log-probabilities of the answer and of the target, in nats."""

    text: str
    logprob: float
    target_logprob: float


@dataclass(frozen=True)
class Prediction:
    """One row's answer.

    Attributes:
        row_id, prefix: the row's hash and prefix.
        target: the row's suffix.
        references: every answer that counts as right; the target if the row lists none.
        prediction: the answer.
        logprob: log-probability of the answer with its eos, in nats.
        target_logprob: log-probability of the target with its eos, in nats.
        target_tokens: number of the target's tokens with its eos.
        masks: the row's true masks as `seg_masks.masks_text` wrote them; empty if it keeps none.
    """

    row_id: str
    prefix: str
    target: str
    references: tuple[str, ...]
    prediction: str
    logprob: float
    target_logprob: float
    target_tokens: int
    masks: str = ""


def predict(
    model: Model,
    records: Records,
    batch_size: int,
    settings: DecodeSettings,
    done: Collection[int] = (),
) -> Iterator[list[tuple[int, Prediction]]]:
    """Yields answers by row number, one batch at a time.

    Rows are sorted by prompt width, then by target length, since answers tend to have similar lengths and a batch runs until
    its longest answer ends. Neither order nor batch size changes an answer: a row's samples are seeded by its hash.

    Args:
        model: the model that answers.
        records: the data set.
        batch_size: rows decoded at once.
        settings: how to decode; the seed counts together with a row's hash.
        done: numbers of rows that are answered already, and left out.

    Raises:
        InputError: the model has no tokenizer.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError("The model has no tokenizer, so its answers cannot be read.", fix="fetch it with its tokenizer")
    reader, generator = RowReader(records), model.generator()
    if not len(reader):
        return
    prefix_tokens, suffix_tokens = read_lengths(records)
    widths = bucket_widths(prefix_tokens, BUCKETS, batch_size)
    bucket = np.searchsorted(widths, round_up(prefix_tokens, TEXT_MULTIPLE))
    target_width = round_up(int(suffix_tokens.max()), LOSS_MULTIPLE)
    order = np.lexsort((-suffix_tokens, -bucket))  # longest first: a batch that does not fit in memory fails at once
    order = order[~np.isin(order, np.fromiter(done, np.int64))]
    start = 0
    while start < len(order):
        numbers = order[start : start + batch_size]
        numbers = numbers[bucket[numbers] == bucket[numbers[0]]]
        start += len(numbers)
        rows = [reader.read(number) for number in numbers.tolist()]
        filled = rows + [rows[0]] * (batch_size - len(rows))
        prompts = _padded([row.tokens[: row.prefix_length] for row in filled], int(widths[bucket[numbers[0]]]))
        targets = _padded([row.tokens[row.prefix_length :] for row in filled], target_width)
        found = generator(
            normalize(np.stack([row.image for row in filled])),
            *prompts,
            np.zeros_like(prompts[0]),
            settings,
            tokenizer.eos_id,
            np.arange(batch_size) < len(rows),
            np.array([zlib.crc32(f"{settings.seed} {row.row_id}".encode()) for row in filled]),
            targets,
        )
        yield [
            (number, _prediction(row, Answer(tokenizer.decode(tokens), float(logprob), float(of_target))))
            for number, row, tokens, logprob, of_target in zip(
                numbers.tolist(), rows, found.tokens, found.scores, found.reference_scores, strict=False
            )
        ]


def predictions_of(records: Records, answers: Mapping[int, Answer]) -> dict[int, Prediction]:
    """Predictions by row number, of answers that are known already."""
    reader = RowReader(records)
    return {number: _prediction(reader.read_texts(number), answer) for number, answer in answers.items()}


def _prediction(row: StoredRow, answer: Answer) -> Prediction:
    return Prediction(
        row_id=row.row_id,
        prefix=row.prefix,
        target=row.suffix,
        references=row.answers or (row.suffix,),
        prediction=answer.text,
        logprob=answer.logprob,
        target_logprob=answer.target_logprob,
        target_tokens=len(row.tokens) - row.prefix_length,
        masks=row.masks,
    )


def _padded(texts: list[Int[np.ndarray, " t"]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids padded on the right with 0, and the mask of real tokens."""
    lengths = np.array([len(text) for text in texts])
    tokens, mask = np.zeros((len(texts), width), np.int32), np.arange(width) < lengths[:, None]
    tokens[mask] = np.concatenate(texts)
    return tokens, mask
