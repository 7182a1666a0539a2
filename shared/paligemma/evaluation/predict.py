"""A model's answers to every row of a data set, once and in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from paligemma.data.images import normalize
from paligemma.data.loader import evaluation_batches
from paligemma.data.records import Records
from paligemma.errors import InputError
from paligemma.model import Model


@dataclass(frozen=True)
class Prediction:
    """One row's answer."""

    row_id: str
    prefix: str
    target: str
    prediction: str

    @property
    def exact_match(self) -> bool:
        """Whether the answer is the target, but for white space around it."""
        return self.prediction.strip() == self.target.strip()


def predict(model: Model, records: Records, batch_size: int, max_new_tokens: int) -> Iterator[tuple[Prediction, np.ndarray]]:
    """Greedy answers, each with its image (uint8, as the model saw it). Rows that fill up the last batch are dropped.

    Raises:
        InputError: the model has no tokenizer.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError("The model has no tokenizer, so its answers cannot be read.", fix="fetch it with its tokenizer")
    for batch in evaluation_batches(records, batch_size):
        images, mask_ar = normalize(batch.images), np.zeros_like(batch.tokens)
        answers = model.decode(
            images, batch.tokens, batch.mask_input, mask_ar, max_new_tokens, tokenizer.eos_id, batch.row_mask
        )
        for row in np.flatnonzero(batch.row_mask):
            prediction = Prediction(
                row_id=batch.row_ids[row],
                prefix=batch.prefixes[row],
                target=batch.suffixes[row],
                prediction=tokenizer.decode(answers[row]),
            )
            yield prediction, batch.images[row]
