"""Decodes answers to every row, none twice: batches are saved until the evaluation is published."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from paligemma.artifacts.record import Input, canonical_sha256, file_sha256
from paligemma.checkpoints.open_checkpoint import Checkpoint
from paligemma.checkpoints.tuned import TunedModel
from paligemma.data.records import Records, row_ids
from paligemma.decoding.settings import DecodeSettings
from paligemma.errors import InputError
from paligemma.evaluation import predict
from paligemma.evaluation.kept_predictions import KeptPredictions, decoding_code_sha256
from paligemma.evaluation.predict import Prediction
from paligemma.model import build_model
from paligemma.progress import WorkProgress
from paligemma.runtime.sharding import make_mesh

log = logging.getLogger("paligemma.evaluate")

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "sentencepiece")


@dataclass(frozen=True)
class Decoding:
    """How to decode answers.

    Attributes:
        settings: greedy, sampling, or beam search.
        batch_size: rows decoded at once; does not change an answer.
    """

    settings: DecodeSettings
    batch_size: int


def check_compatible(base: Checkpoint, data: Records) -> None:
    """Confirms that the records have the model's image size."""
    if base.config.img.image_size != data.dataset.image_size:
        raise InputError(
            f"The records hold images of {data.dataset.image_size} pixels, the model wants {base.config.img.image_size}.",
            where=data.folder,
            fix="run prepare_data with this checkpoint",
        )


def kept_predictions(
    place: str, state_root: str, base: Checkpoint, inputs: Sequence[Input], decoding: Decoding
) -> KeptPredictions:
    """The saved predictions of a model, with the values that determine them.

    Args:
        place: folder or prefix for predictions; ignored if `state_root` is given.
        state_root: root folder or prefix; predictions get a subfolder named by a hash of what determines them.
        base: the checkpoint.
        inputs: checkpoint, records and, if there is one, the tuned model.
        decoding: how to decode answers.
    """
    determined_by = {
        "inputs": {entry.role: entry.sha256 for entry in inputs},
        "config": base.config.model_dump(mode="json"),
        "tokenizer": file_sha256(base.tokenizer) if base.tokenizer else None,
        "settings": dataclasses.asdict(decoding.settings),
        "code": decoding_code_sha256(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": jax.devices()[0].device_kind,
    }
    if state_root:
        place = f"{state_root.rstrip('/')}/{canonical_sha256(determined_by)[:16]}"
    return KeptPredictions(place, determined_by)


def decode(
    base: Checkpoint, tuned: TunedModel | None, data: Records, decoding: Decoding, kept: KeptPredictions, what: str
) -> list[Prediction]:
    """The predictions of all rows in order. Decodes only rows without a saved prediction, and saves them.

    Args:
        base, tuned: the model; it is not loaded if nothing is left to do.
        data: the rows.
        decoding: how to decode answers.
        kept: the saved predictions.
        what: the model's name in the progress line.
    """
    rows = data.dataset.rows
    found = kept.read(row_ids(data, range(rows)))
    if len(found) < rows:
        # Decoding reads all weights for every token: each device has a copy.
        mesh = make_mesh(copies=jax.device_count()) if jax.device_count() > 1 else None
        model = build_model(base, tuned, mesh=mesh)
        with WorkProgress(f"evaluating {what}", "rows", rows - len(found)) as progress:
            started = time.monotonic()
            batches = predict.predict(model, data, decoding.batch_size, decoding.settings, frozenset(found))
            for batch in batches:
                now = time.monotonic()
                kept.add(batch, now - started)
                found.update(batch)
                progress.advance(len(batch))
                started = now
        log.info("%s: all rows are decoded, and kept in %s until the evaluation is written", what, kept.location)
    return [found[number] for number in range(rows)]
