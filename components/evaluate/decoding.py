"""Decodes answers to every row, none twice: batches are saved until the evaluation is published."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import time
from collections.abc import Mapping, Sequence
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
from paligemma.evaluation.predict import Answer, Prediction
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
            where=data.location,
            fix="run prepare_data with this checkpoint",
        )


def check_images(tuned: TunedModel, data: Records) -> None:
    """Confirms that the records have as many images in every row as a model was tuned for."""
    images, wanted = data.dataset.images_per_example, tuned.description.images_per_example
    if images != wanted:
        raise InputError(
            f"The model was tuned for {wanted} image{'s' if wanted > 1 else ''} in a row, the records have {images}.",
            where=data.location,
            fix=f"run prepare_data with --images-per-example {wanted}",
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
    found = determined_by(base, inputs, decoding)
    if state_root:
        place = f"{state_root.rstrip('/')}/{canonical_sha256(found)[:16]}"
    return KeptPredictions(place, found)


def determined_by(base: Checkpoint, inputs: Sequence[Input], decoding: Decoding) -> dict[str, object]:
    """JSON values that determine answers: what is asked of which model, how, and by which code.

    Args:
        base: the checkpoint.
        inputs: the model, and the rows if the values are to be of these rows only.
        decoding: how to decode answers.
    """
    return {
        "inputs": {entry.role: entry.sha256 for entry in inputs},
        "config": base.config.model_dump(mode="json"),
        "tokenizer": file_sha256(base.tokenizer) if base.tokenizer else None,
        "settings": dataclasses.asdict(decoding.settings),
        "code": decoding_code_sha256(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": jax.devices()[0].device_kind,
    }


@dataclass(frozen=True)
class Decoded:
    """The predictions of all rows in order, and how many of them are not an earlier run's."""

    predictions: list[Prediction]
    decoded: int


def decode(
    base: Checkpoint,
    tuned: TunedModel | None,
    data: Records,
    decoding: Decoding,
    kept: KeptPredictions,
    earlier: Mapping[str, Answer],
    what: str,
) -> Decoded:
    """The predictions of all rows. Decodes only rows with neither a saved prediction nor an earlier answer, and saves them.

    Args:
        base, tuned: the model; it is not loaded if nothing is left to do.
        data: the rows.
        decoding: how to decode answers.
        kept: the saved predictions.
        earlier: answers of the same model to earlier rows, by row id.
        what: the model's name in the progress line.
    """
    rows = data.dataset.rows
    ids = row_ids(data, range(rows))
    found = kept.read(ids)
    known = {number: earlier[row_id] for number, row_id in enumerate(ids) if number not in found and row_id in earlier}
    if known:
        log.info("%s: %d of %d rows are answered as in an earlier run", what, len(known), rows)
        found |= predict.predictions_of(data, known)
    if len(found) < rows:
        # Decoding reads all weights for every token: each device has a copy.
        mesh = make_mesh(copies=jax.device_count()) if jax.device_count() > 1 else None
        model = build_model(base, tuned, decoding.settings.loaded_as, mesh)
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
    return Decoded([found[number] for number in range(rows)], rows - len(known))
