"""Fine-tunes a checkpoint on records. Reads as the story of a run: recipe, mesh, model, data, state, steps, check, save."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

from components.finetune.job import Job, open_job, recorded_parameters
from components.finetune.results import final_figures, write_results
from paligemma.artifacts.compiled_programs import shared_programs
from paligemma.artifacts.recording import recorded
from paligemma.artifacts.results import Result
from paligemma.artifacts.store import produce
from paligemma.checkpoints.lazy import LazyArray
from paligemma.checkpoints.open_checkpoint import Checkpoint
from paligemma.checkpoints.parameters import build_module, parameters_by_name
from paligemma.checkpoints.quantize import quantize_array
from paligemma.command_line import say_moved
from paligemma.data.augment import Augmentation
from paligemma.data.loader import training_batches
from paligemma.data.records import Records, row_ids
from paligemma.models.paligemma import PaliGemma
from paligemma.models.quantized import Quantized
from paligemma.models.weight_formats import WeightFormat
from paligemma.runtime.accelerator import expect_accelerator
from paligemma.runtime.compile_cache import use_compile_cache
from paligemma.runtime.host_memory import trim_after_compiling
from paligemma.storage.disk_space import check_space, same_disk
from paligemma.storage.files import write_file
from paligemma.storage.location import parse_location
from paligemma.terminal import show_table
from paligemma.training import distributed
from paligemma.training.feed import FedBatch, feed
from paligemma.training.fit import Loop, Progress, fit
from paligemma.training.flops import flops_counter, peak_flops
from paligemma.training.learning_rate import learning_rate_schedule
from paligemma.training.open_recipe import OpenRecipe
from paligemma.training.optimizer import make_optimizer
from paligemma.training.state import StateStore, remove_state
from paligemma.training.step import StepSettings, TrainState, init_state, make_train_step
from paligemma.training.telemetry import Telemetry
from paligemma.training.trainable import compile_pattern, groups_table, is_trainable, parameter_groups, split_trainable
from paligemma.training.validation import make_validator
from paligemma.training.vision_cache import make_vision_cache

log = logging.getLogger("paligemma.finetune")

ARTIFACT_TYPE = "tuned-model"


@recorded("finetune")
def fine_tune(
    checkpoint: str,
    records: str,
    output: str,
    recipe: OpenRecipe,
    validation: str = "",
    state: str = "",
    state_root: str = "",
    preflight: str = "",
    disk_budget: str = "",
) -> str:
    """Trains and writes a tuned model.

    Args:
        checkpoint, records, output, validation, state, state_root, preflight, disk_budget: as the command line has them. By
            `state_root`, a task that is started again, by whatever runner and with whatever output, goes on.
        recipe: the recipe, whose open settings are settled for the devices of this run.

    Returns:
        Where the tuned model is: OUTPUT, or what an earlier run of a pipeline made of the same data and recipe.
    """
    distributed.join_processes()
    expect_accelerator()
    use_compile_cache(shared_programs())
    trim_after_compiling()
    job = open_job(checkpoint, records, output, recipe, validation, state, state_root, preflight, disk_budget)
    result = result_of(job)
    if (made := result.find()) is not None:
        return made
    optimizer = make_optimizer(job.recipe, job.steps)
    graph, current, frozen = build(job, optimizer)
    with contextlib.ExitStack() as stack:
        keep_best = "min" if job.recipe.select == "best" else None
        store = stack.enter_context(
            StateStore(job.location, job.determined_by, keep_last=job.recipe.keep_last, keep_best=keep_best)
        )
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), current)
        done, progress = 0, Progress()
        if restored := store.restore(abstract):
            current, done, progress = restored.state, restored.step, Progress(**restored.extra)
            log.info("going on after step %d of %d, from the state in %s", done, job.steps, job.location)
        draft = None
        if distributed.is_first():
            draft = stack.enter_context(produce(output, ARTIFACT_TYPE, "finetune", recorded_parameters(job), job.inputs))
            check_room(job.location, draft.folder, current)
        folder = draft.folder if draft is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = time.monotonic()
        loop = make_loop(job, optimizer, graph, current, frozen, done)
        with Telemetry(folder, job.steps, job.recipe.batch_size, progress.entries) as telemetry:
            current = fit(loop, current, done, progress, store, telemetry, job.location)
        loop.batches.close()
        best = store.best_step() if job.recipe.select == "best" else None
        if best is not None and (restored := store.restore(abstract, best)):
            current = restored.state
        seconds = time.monotonic() - started
        trained = {name: distributed.on_host(leaf[...]) for name, leaf in parameters_by_name(current.trainable).items()}
        identical = is_identical(frozen, job.base)
        if draft is not None:
            draft.device, draft.metrics = device(), final_figures(telemetry.entries)
            grey_range = job.data.dataset.grey_range
            write_results(
                folder, job.base, job.recipe, trained, telemetry.entries, progress, seconds, device(), identical, grey_range
            )
    if not state and distributed.is_first():
        remove_state(job.location)
    result.keep()
    log.info("%d steps in %.0f s, in %s", job.steps - done, seconds, output)
    return output


def result_of(job: Job) -> Result:
    """The model that comes of a job. Of a preflight, only what it chose matters, which the parameters hold."""
    inputs = [entry for entry in job.inputs if entry.role != "preflight"]
    return Result.of("finetune", Path(__file__).parent, recorded_parameters(job), inputs, devices=device())


def build(job: Job, optimizer: optax.GradientTransformation) -> tuple[nnx.GraphDef[PaliGemma], TrainState, nnx.State]:
    """Loads the model array by array, in the recipe's dtypes: its structure, the state before step 1, frozen parameters."""
    recipe = job.recipe
    pattern = compile_pattern(recipe.trainable)
    lora = recipe.lora if recipe.trainable == "lora" else None

    def held_in(name: str, array: LazyArray) -> str | WeightFormat:
        return "float32" if is_trainable(pattern, name) else recipe.frozen_in(name, tuple(array.shape))

    model = build_module(job.base.config, job.base.arrays, held_in, recipe.compute_dtype, job.mesh, lora, recipe.seed)
    if distributed.is_first():
        show_table(groups_table(parameter_groups(parameters_by_name(model), pattern)), error=True)
    log.info("training %d steps of %d examples on %s", job.steps, recipe.batch_size, device())
    graph, trainable, frozen = split_trainable(model, pattern)
    return graph, init_state(trainable, optimizer, job.mesh), frozen


def make_loop(
    job: Job,
    optimizer: optax.GradientTransformation,
    graph: nnx.GraphDef[PaliGemma],
    current: TrainState,
    frozen: nnx.State,
    done: int,
) -> Loop:
    """What the steps after `done` are made of."""
    recipe, mesh = job.recipe, job.mesh
    batches = training_batches(
        job.data,
        recipe.batch_size,
        recipe.seed,
        start_step=done,
        buckets=recipe.buckets,
        augment=recipe.augment if recipe.augment != Augmentation() else None,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    cache = make_vision_cache(graph, current.trainable, frozen, job.base, job.data, recipe, mesh)
    return Loop(
        recipe=recipe,
        steps=job.steps,
        step=make_train_step(graph, optimizer, StepSettings.of(recipe), mesh),
        frozen=frozen,
        batches=feed(batches, mesh, cache),
        schedule=learning_rate_schedule(recipe, job.steps),
        validate=None if job.validation is None else make_validator(graph, frozen, job.validation, recipe, mesh),
        flops=flops_counter(job.base.config, current.trainable),
        peak_flops=peak_flops(),
        on_divergence=partial(note_divergence, job.data, job.location),
    )


def device() -> str:
    """The devices of all processes, for people."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def check_room(location: str, folder: Path, current: TrainState) -> None:
    """Confirms before any training that its result, and one saved state, fit on the disks that hold them.

    Raises:
        InputError: they do not; says how much room is needed.
    """
    result, state = (sum(leaf.nbytes for leaf in jax.tree.leaves(part)) for part in (current.trainable, current))
    place = parse_location(location)
    if same_disk(place, folder):
        check_space(folder, result + state)
    else:
        check_space(folder, result)
        check_space(place, state)


def note_divergence(data: Records, location: str, number: int, fed: FedBatch) -> str:
    """Writes which rows a step had whose loss or gradient is not finite; returns where."""
    file = f"{location}/diverged-step-{number:08d}-process-{jax.process_index()}.json"
    noted = {"step": number, "rows": fed.rows.tolist(), "row_ids": row_ids(data, fed.rows.tolist())}
    write_file(file, (json.dumps(noted) + "\n").encode())
    return file


def is_identical(frozen: nnx.State, base: Checkpoint) -> bool:
    """Whether every frozen parameter is, bit for bit, the base's in the form it is held in. One array at a time."""
    for name, variable in parameters_by_name(frozen).items():
        value, array = variable.get_value(), base.arrays[name]
        if isinstance(value, Quantized):
            pairs = zip((value.codes, value.scales), quantize_array(array, value.form), strict=True)
        else:
            pairs = ((value, array),)
        if not all(_is_equal(held, expected) for held, expected in pairs):
            return False
    return True


def _is_equal(held: jax.Array, expected: LazyArray) -> bool:
    """Whether what this process's devices hold of an array is, in its dtype, the expected one."""
    for shard in held.addressable_shards:
        found, wanted = np.asarray(shard.data), np.asarray(expected[shard.index], shard.data.dtype)
        found, wanted = (np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in (found, wanted))
        # In pieces, as the outcome of comparing a whole array is as large as the array.
        pieces = (slice(start, start + 2**26) for start in range(0, len(found), 2**26))
        if not all(np.array_equal(found[piece], wanted[piece]) for piece in pieces):
            return False
    return True


if __name__ == "__main__":
    say_moved("components.finetune")
