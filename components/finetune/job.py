"""What a run is asked to do: opened, checked as a whole before any weight is loaded, and named by what determines it."""

from __future__ import annotations

from dataclasses import dataclass

from jax.sharding import Mesh

from components.finetune.settle import settle
from paligemma.artifacts.record import Input, canonical_sha256
from paligemma.artifacts.store import input_of
from paligemma.checkpoints.open_checkpoint import Checkpoint, open_checkpoint
from paligemma.data.augment import Augmentation, check_augmentation
from paligemma.data.records import Records, open_records, stream
from paligemma.data.tokenizer import Tokenizer
from paligemma.errors import InputError
from paligemma.preflight.choice import Choice
from paligemma.runtime.sharding import check_batch_size, make_mesh
from paligemma.storage.disk_space import parse_bytes
from paligemma.storage.location import GcsLocation
from paligemma.training.open_recipe import OpenRecipe
from paligemma.training.recipe import Recipe, check_images


@dataclass(frozen=True)
class Job:
    """A run that can begin.

    Attributes:
        base: the checkpoint that it starts from.
        data: the training records.
        validation: records to validate on; None when the recipe does not validate.
        recipe: the recipe, of which nothing is open.
        choice: what was chosen for settings that were open; None if none was.
        steps: to make in all.
        mesh: of all devices.
        determined_by: what determines the parameters that come out; see `fingerprint`.
        location: folder or `gs://` prefix of the training state.
        inputs: for the lineage record.
    """

    base: Checkpoint
    data: Records
    validation: Records | None
    recipe: Recipe
    choice: Choice | None
    steps: int
    mesh: Mesh
    determined_by: dict
    location: str
    inputs: list[Input]


def open_job(
    checkpoint: str,
    records: str,
    output: str,
    recipe: OpenRecipe,
    validation: str = "",
    state: str = "",
    state_root: str = "",
    preflight: str = "",
    disk_budget: str = "",
) -> Job:
    """Opens everything that a run needs, and confirms that it fits together.

    Args:
        checkpoint, records, output, recipe, validation, state, state_root, preflight, disk_budget: as the command line has
            them.

    Raises:
        InputError: something does not fit the rest; says what.
    """
    base, data = open_checkpoint(checkpoint), open_records(records)
    check_compatible(base, data, recipe.recipe)
    # Below a root, a state is found by the recipe that was settled, so it has no say in it.
    choice = settle(recipe, preflight, "" if state_root and not state else state or beside(output))
    settled = recipe.settled(choice.settings) if choice else recipe.recipe
    if settled.validate_every is not None and not validation:
        raise InputError("The recipe has validate_every, but there are no validation records.", fix="pass --validation")
    validated_on = None if settled.validate_every is None else open_records(validation)
    if validated_on is not None:
        check_compatible(base, validated_on, settled)
    if disk_budget:
        data = within_budget(data, validated_on, parse_bytes(disk_budget, "--disk-budget"))
    if settled.augment != Augmentation():
        check_augmentation(settled.augment, data)
    mesh = make_mesh(copies=settled.data_parallel)
    check_batch_size(mesh, settled.batch_size, settled.accumulate)
    steps = settled.total_steps(data.dataset.rows)
    determined_by = fingerprint(base, data, validated_on, settled, steps)
    inputs = [input_of("checkpoint", base.location), input_of("train records", records)]
    inputs += [input_of("validation records", validation)] if validated_on is not None else []
    inputs += [input_of("preflight", preflight)] if choice and preflight else []
    location = state_location(output, state, state_root, determined_by)
    return Job(base, data, validated_on, settled, choice, steps, mesh, determined_by, location, inputs)


def recorded_parameters(job: Job) -> dict:
    """The parameters of the lineage record: the recipe; and which of its settings were chosen, and by whom, if any were."""
    values = job.recipe.model_dump(mode="json")
    return values if job.choice is None else values | {"chosen": dict(job.choice.settings), "chosen_by": job.choice.by}


def check_compatible(base: Checkpoint, data: Records, recipe: Recipe) -> None:
    """Confirms that the records were prepared for this checkpoint's image size and tokenizer, and the recipe's images."""
    check_images(recipe, data.dataset.images_per_example, data.location)
    size = base.config.img.image_size
    if data.dataset.image_size != size:
        raise InputError(
            f"The records hold images of {data.dataset.image_size} pixels, the checkpoint wants {size}.",
            where=data.location,
            fix="run prepare_data with this checkpoint",
        )
    if base.tokenizer is not None and Tokenizer(base.tokenizer).sha256 != data.dataset.tokenizer_sha256:
        raise InputError(
            "The records were tokenized with another tokenizer than the checkpoint's.",
            where=data.location,
            fix="run prepare_data with this checkpoint",
        )


def within_budget(data: Records, validation: Records | None, disk_budget: int) -> Records:
    """The training records as they are read when no more than this many bytes of all records may be on the disk.

    Validation records are read as a whole again and again, so they are fetched, and the rest of the budget is for training.

    Raises:
        InputError: the budget is too small.
    """
    whole = 0
    if validation is not None and isinstance(validation.location, GcsLocation):
        whole = validation.record.artifact.bytes
        if whole > disk_budget:
            raise InputError(
                f"The validation records have {whole:,} bytes, and are fetched as a whole.",
                where=validation.location,
                expected=f"at most the disk budget of {disk_budget:,} bytes",
                fix="raise --disk-budget, or validate on fewer rows",
            )
    return stream(data, disk_budget - whole)


def fingerprint(base: Checkpoint, data: Records, validation: Records | None, recipe: Recipe, steps: int) -> dict:
    """What determines the parameters that come out, down to the last bit, on given devices."""
    return {
        "recipe": recipe.determining(),
        "steps": steps,
        "checkpoint": base.weights_sha256,
        "records": data.record.artifact.tree_sha256,
        "validation": None if validation is None else validation.record.artifact.tree_sha256,
    }


def state_location(output: str, state: str, state_root: str, determined_by: dict) -> str:
    """Where the training state is: where the user says, below a root, or beside the output."""
    if state:
        return state
    if state_root:
        return f"{state_root.rstrip('/')}/{canonical_sha256(determined_by)[:16]}"
    return beside(output)


def beside(output: str) -> str:
    """Where the state is by default."""
    return f"{str(output).rstrip('/')}.state"
