"""Fine-tunes a checkpoint on records. Reads as the story of a run: recipe, mesh, model, data, state, steps, check, save."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paligemma.artifacts.recording import recorded
from paligemma.command_line import run_command

if TYPE_CHECKING:
    from flax import nnx

    from paligemma.checkpoints.open_checkpoint import Checkpoint
    from paligemma.data.records import Records
    from paligemma.training.feed import FedBatch
    from paligemma.training.recipe import Recipe
    from paligemma.training.step import TrainState

log = logging.getLogger("paligemma.finetune")

ARTIFACT_TYPE = "tuned-model"
DIVERGED_FILE = "diverged.jsonl"


@recorded("finetune")
def run(
    checkpoint: Annotated[str, typer.Option(help="Base checkpoint: a file, a folder, gs://, or embedded:tiny.")],
    records: Annotated[str, typer.Option(help="Training records, from prepare_data; local or gs://.")],
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write the tuned model to.")],
    validation: Annotated[
        str, typer.Option(help="Records for the recipe's validate_every; local or gs://.", show_default="none")
    ] = "",
    recipe: Annotated[
        str, typer.Option(help="Training recipe: a preset's name or a YAML file.", show_default="the reference recipe")
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Overrides a value of the recipe; repeatable.", show_default="none"),
    ] = None,
    state: Annotated[
        str,
        typer.Option(
            help="Folder or gs:// prefix for the training state, which an interrupted run goes on from; kept at the end.",
            show_default="OUTPUT.state, removed at the end",
        ),
    ] = "",
    state_root: Annotated[
        str,
        typer.Option(
            help="In place of --state: where it has a place of its own, named by what determines the run; removed at the end.",
            show_default="none",
        ),
    ] = "",
) -> None:
    """Trains the recipe's parameters and writes them, with metrics.jsonl, training.html and summary.json."""
    from components.presets import read_recipe
    from paligemma.launch.heartbeat import end_when_abandoned

    end_when_abandoned()
    fine_tune(checkpoint, records, output, read_recipe(recipe, set_ or []), validation, state, state_root)


@recorded("finetune")
def fine_tune(
    checkpoint: str, records: str, output: str, recipe: Recipe, validation: str = "", state: str = "", state_root: str = ""
) -> None:
    """Trains and writes a tuned model; see `run`.

    Args:
        checkpoint, records, output, recipe, validation, state, state_root: as `run` has them. By `state_root`, a task that is
            started again, by whatever runner and with whatever output, goes on.
    """
    import contextlib
    import tempfile
    import time
    from functools import partial

    import jax

    from components.finetune.results import final_figures, write_results
    from paligemma.artifacts.store import input_of, produce
    from paligemma.checkpoints.open_checkpoint import open_checkpoint
    from paligemma.checkpoints.parameters import build_module, parameters_by_name
    from paligemma.data.augment import Augmentation, check_augmentation
    from paligemma.data.loader import training_batches
    from paligemma.data.records import open_records
    from paligemma.errors import InputError
    from paligemma.runtime.accelerator import expect_accelerator
    from paligemma.runtime.compile_cache import use_compile_cache
    from paligemma.runtime.host_memory import trim_after_compiling
    from paligemma.runtime.sharding import check_batch_size, make_mesh
    from paligemma.terminal import show_table
    from paligemma.training import distributed
    from paligemma.training.feed import feed
    from paligemma.training.fit import Loop, Progress, fit
    from paligemma.training.flops import flops_counter, peak_flops
    from paligemma.training.learning_rate import learning_rate_schedule
    from paligemma.training.optimizer import make_optimizer
    from paligemma.training.state import StateStore, remove_state
    from paligemma.training.step import StepSettings, init_state, make_train_step
    from paligemma.training.telemetry import Telemetry
    from paligemma.training.trainable import compile_pattern, groups_table, is_trainable, parameter_groups, split_trainable
    from paligemma.training.validation import make_validator
    from paligemma.training.vision_cache import make_vision_cache

    distributed.join_processes()
    expect_accelerator()
    use_compile_cache()
    trim_after_compiling()
    base, data = open_checkpoint(checkpoint), open_records(records)
    check_compatible(base, data)
    if recipe.validate_every is not None and not validation:
        raise InputError("The recipe has validate_every, but there are no validation records.", fix="pass --validation")
    judge = None if recipe.validate_every is None else open_records(validation)
    if judge is not None:
        check_compatible(base, judge)
    if recipe.augment != Augmentation():
        check_augmentation(recipe.augment, data)
    mesh = make_mesh(copies=recipe.data_parallel)
    check_batch_size(mesh, recipe.batch_size, recipe.accumulate)
    steps = recipe.total_steps(data.dataset.rows)
    determined_by = fingerprint(base, data, judge, recipe, steps)
    location = state_location(output, state, state_root, determined_by)
    inputs = [input_of("checkpoint", base.location), input_of("train records", records)]
    inputs += [input_of("validation records", validation)] if judge is not None else []

    pattern = compile_pattern(recipe.trainable)
    lora = recipe.lora if recipe.trainable == "lora" else None

    def dtype_of(name: str, _) -> str:
        return "float32" if is_trainable(pattern, name) else recipe.frozen_dtype

    model = build_module(base.config, base.arrays, dtype_of, recipe.compute_dtype, mesh, lora, recipe.seed)
    groups = parameter_groups(parameters_by_name(model), pattern)
    graph, trainable, frozen = split_trainable(model, pattern)
    del model
    settings, optimizer = StepSettings.of(recipe), make_optimizer(recipe, steps)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    if distributed.is_first():
        show_table(groups_table(groups), error=True)
    log.info("training %d steps of %d examples on %s", steps, recipe.batch_size, device)

    draft = None
    with contextlib.ExitStack() as stack:
        keep_best = "min" if recipe.select == "best" else None
        store = stack.enter_context(StateStore(location, determined_by, keep_last=recipe.keep_last, keep_best=keep_best))
        current, done, progress = init_state(trainable, optimizer, mesh), 0, Progress()
        del trainable
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), current)
        if restored := store.restore(abstract):
            current, done, progress = restored.state, restored.step, Progress(**restored.extra)
            log.info("going on after step %d of %d, from the state in %s", done, steps, location)
        if distributed.is_first():
            draft = stack.enter_context(produce(output, ARTIFACT_TYPE, "finetune", recipe.model_dump(mode="json"), inputs))
            folder = draft.folder
            check_room(location, folder, current)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = time.monotonic()
        loop = Loop(
            recipe=recipe,
            steps=steps,
            step=make_train_step(graph, optimizer, settings, mesh),
            frozen=frozen,
            batches=feed(
                training_batches(
                    data,
                    recipe.batch_size,
                    recipe.seed,
                    start_step=done,
                    buckets=recipe.buckets,
                    augment=recipe.augment if recipe.augment != Augmentation() else None,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                ),
                mesh,
                make_vision_cache(graph, current.trainable, frozen, base, data, recipe, mesh),
            ),
            schedule=learning_rate_schedule(recipe, steps),
            validate=None if judge is None else make_validator(graph, frozen, judge, recipe, mesh),
            flops=flops_counter(base.config, current.trainable),
            peak_flops=peak_flops(),
            on_divergence=partial(note_divergence, data, location),
        )
        with Telemetry(folder, steps, recipe.batch_size, progress.entries) as telemetry:
            current = fit(loop, current, done, progress, store, telemetry, location)
        loop.batches.close()
        best = store.best_step() if recipe.select == "best" else None
        if best is not None and (restored := store.restore(abstract, best)):
            current = restored.state
        seconds = time.monotonic() - started
        trained = {name: distributed.on_host(leaf[...]) for name, leaf in parameters_by_name(current.trainable).items()}
        identical = is_identical(frozen, base)
        if draft is not None:
            draft.device = device
            draft.metrics = final_figures(telemetry.entries)
            write_results(
                folder, base, recipe, trained, telemetry.entries, progress, seconds, device, identical, data.dataset.grey_range
            )
    if not state and distributed.is_first():
        remove_state(location)
    log.info("%d steps in %.0f s, in %s", steps - done, seconds, output)


def check_room(location: str, folder: Path, current: TrainState) -> None:
    """Confirms before any training that its result, and one saved state, fit on the disks that hold them.

    Raises:
        InputError: they do not; says how much room is needed.
    """
    import jax

    from paligemma.storage.disk_space import check_space
    from paligemma.storage.location import parse_location

    result, state = (sum(leaf.nbytes for leaf in jax.tree.leaves(part)) for part in (current.trainable, current))
    place = parse_location(location)
    if isinstance(place, Path) and place.stat().st_dev == folder.stat().st_dev:
        check_space(folder, result + state)
        return
    check_space(folder, result)
    if isinstance(place, Path):
        check_space(place, state)


def check_compatible(base: Checkpoint, data: Records) -> None:
    """Confirms that the records were prepared for this checkpoint's image size and tokenizer."""
    from paligemma.data.tokenizer import Tokenizer
    from paligemma.errors import InputError

    size = base.config.img.image_size
    if data.dataset.image_size != size:
        raise InputError(
            f"The records hold images of {data.dataset.image_size} pixels, the checkpoint wants {size}.",
            where=data.folder,
            fix="run prepare_data with this checkpoint",
        )
    if base.tokenizer is not None and Tokenizer(base.tokenizer).sha256 != data.dataset.tokenizer_sha256:
        raise InputError(
            "The records were tokenized with another tokenizer than the checkpoint's.",
            where=data.folder,
            fix="run prepare_data with this checkpoint",
        )


def fingerprint(base: Checkpoint, data: Records, judge: Records | None, recipe: Recipe, steps: int) -> dict:
    """What determines the parameters that come out, down to the last bit, on given devices."""
    from paligemma.artifacts.record import read_record

    return {
        "recipe": recipe.determining(),
        "steps": steps,
        "checkpoint": base.weights_sha256,
        "records": read_record(data.folder).artifact.tree_sha256,
        "validation": None if judge is None else read_record(judge.folder).artifact.tree_sha256,
    }


def state_location(output: str, state: str, state_root: str, determined_by: dict) -> str:
    """Where the training state is: where the user says, below a root, or beside the output."""
    from paligemma.artifacts.record import canonical_sha256

    if state:
        return state
    if state_root:
        return f"{state_root.rstrip('/')}/{canonical_sha256(determined_by)[:16]}"
    return f"{str(output).rstrip('/')}.state"


def note_divergence(data: Records, location: str, number: int, fed: FedBatch) -> str:
    """Writes which rows a step had whose loss or gradient is not finite; returns where."""
    import json

    import jax

    from paligemma.data.records import row_ids
    from paligemma.storage.files import write_file

    file = f"{location}/diverged-step-{number:08d}-process-{jax.process_index()}.json"
    noted = {"step": number, "rows": fed.rows.tolist(), "row_ids": row_ids(data, fed.rows.tolist())}
    write_file(file, (json.dumps(noted) + "\n").encode())
    return file


def is_identical(frozen: nnx.State, base: Checkpoint) -> bool:
    """Whether every frozen parameter is, bit for bit, the base's in the dtype it is held in. One array at a time."""
    import numpy as np

    from paligemma.checkpoints.parameters import parameters_by_name

    for name, variable in parameters_by_name(frozen).items():
        for shard in variable.get_value().addressable_shards:
            found, expected = np.asarray(shard.data), np.asarray(base.arrays[name][shard.index], shard.data.dtype)
            found, expected = (np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in (found, expected))
            # In pieces, as the outcome of comparing a whole array is as large as the array.
            pieces = (slice(start, start + 2**26) for start in range(0, len(found), 2**26))
            if not all(np.array_equal(found[piece], expected[piece]) for piece in pieces):
                return False
    return True


def main() -> None:
    """The command line."""
    run_command(run, "finetune")


if __name__ == "__main__":
    main()
