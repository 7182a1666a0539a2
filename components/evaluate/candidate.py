"""The model that is evaluated, and the rows that it is asked: opened, and confirmed to fit together."""

from __future__ import annotations

from dataclasses import dataclass

from components.evaluate.decoding import check_compatible, check_images
from paligemma.artifacts.record import Input
from paligemma.artifacts.store import input_of, localize
from paligemma.checkpoints.open_checkpoint import Checkpoint, check_base, open_checkpoint
from paligemma.checkpoints.tuned import TunedModel, read_tuned
from paligemma.data.records import Records, open_records

RECORDS_ROLE = "validation records"


@dataclass(frozen=True)
class Candidate:
    """What is evaluated.

    Attributes:
        base: the checkpoint.
        tuned: trained parameters in place of the checkpoint's; None to evaluate the checkpoint itself.
        data: the rows.
        source: the last part of the records' location, for people.
        inputs: all of these, for the lineage record.
    """

    base: Checkpoint
    tuned: TunedModel | None
    data: Records
    source: str
    inputs: list[Input]

    @property
    def name(self) -> str:
        """The model, for people."""
        return "tuned" if self.tuned is not None else "base"

    @property
    def model(self) -> list[Input]:
        """The checkpoint and, if there is one, the tuned model among the inputs."""
        return [entry for entry in self.inputs if entry.role != RECORDS_ROLE]

    @property
    def records(self) -> list[Input]:
        """The rows among the inputs."""
        return [entry for entry in self.inputs if entry.role == RECORDS_ROLE]


def open_candidate(checkpoint: str, records: str, tuned: str) -> Candidate:
    """Opens a model and the rows to ask it.

    Raises:
        InputError: the records have another image size, or number of images, or the tuned model is of another base.
    """
    base, data = open_checkpoint(checkpoint), open_records(records)
    check_compatible(base, data)
    inputs = [input_of("checkpoint", base.location), input_of(RECORDS_ROLE, records)]
    tuned_model = None
    if tuned:
        tuned_model = read_tuned(localize(tuned))
        inputs.append(input_of("tuned model", tuned))
        check_base(tuned_model, base)
        check_images(tuned_model, data)
    return Candidate(base, tuned_model, data, str(records).rstrip("/").rsplit("/", 1)[-1], inputs)
