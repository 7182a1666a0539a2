"""Fine-tunes a checkpoint on records. Reads as the story of a run: recipe, mesh, model, data, steps, check, save."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from paligemma.command_line import run_command

if TYPE_CHECKING:
    from flax import nnx

    from paligemma.checkpoints.open import Checkpoint
    from paligemma.data.records import Records
    from paligemma.training.recipe import Recipe

log = logging.getLogger("paligemma.finetune")

ARTIFACT_TYPE = "tuned-model"


def run(
    checkpoint: Annotated[str, typer.Option(help="Base checkpoint: a file, a folder, gs://, or embedded:tiny.")],
    records: Annotated[str, typer.Option(help="Training records, from prepare_data; local or gs://.")],
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write the tuned model to.")],
    recipe: Annotated[str, typer.Option(help="YAML file of the training recipe.", show_default="the reference recipe")] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Overrides a value of the recipe; repeatable.", show_default="none"),
    ] = None,
) -> None:
    """Trains the recipe's parameters and writes them, with metrics.jsonl, training.html and summary.json."""
    from paligemma.training.recipe import read_recipe

    fine_tune(checkpoint, records, output, read_recipe(recipe or None, set_ or []))


def fine_tune(checkpoint: str, records: str, output: str, recipe: Recipe) -> None:
    """Trains and writes a tuned model; see `run`."""
    import json
    import time

    import jax

    from paligemma.checkpoints.open import TOKENIZER_FILE, open_checkpoint
    from paligemma.checkpoints.parameters import build_module, parameters_by_name
    from paligemma.checkpoints.tuned import Base, TunedDescription, write_tuned
    from paligemma.data.loader import training_batches
    from paligemma.data.records import open_records
    from paligemma.lineage.artifact import input_of, produce
    from paligemma.lineage.record import file_sha256
    from paligemma.sharding import check_batch_size, make_mesh
    from paligemma.training.fit import fit
    from paligemma.training.optimizer import learning_rate_schedule, make_optimizer
    from paligemma.training.recipe import TRAINABLE_SETS
    from paligemma.training.step import init_state, is_trainable, make_train_step, split_trainable

    base, data = open_checkpoint(checkpoint), open_records(records)
    check_compatible(base, data)
    mesh = make_mesh()
    check_batch_size(mesh, recipe.batch_size)
    steps = recipe.total_steps(data.dataset.rows)
    inputs = [input_of("checkpoint", base.location), input_of("train records", records)]

    with produce(output, ARTIFACT_TYPE, "finetune", recipe.model_dump(), inputs) as draft:
        pattern = TRAINABLE_SETS[recipe.trainable]

        def dtype_of(name: str, _) -> str:
            return "float32" if is_trainable(pattern, name) else recipe.frozen_dtype

        model = build_module(base.config, base.arrays, dtype_of, recipe.compute_dtype, mesh)
        graph, trainable, frozen = split_trainable(model, pattern)
        del model
        trained_count, frozen_count = count_parameters(trainable), count_parameters(frozen)
        device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        log.info("training %s parameters of %s, %d steps, on %s", f"{trained_count:,}", f"{trained_count + frozen_count:,}",
                 steps, device)  # fmt: skip

        started = time.monotonic()
        optimizer = make_optimizer(recipe, steps)
        state, history = fit(
            make_train_step(graph, optimizer, recipe.remat),
            init_state(trainable, optimizer),
            frozen,
            (batch for _, batch in training_batches(data, recipe.batch_size, recipe.seed, buckets=1)),
            steps=steps,
            batch_size=recipe.batch_size,
            schedule=learning_rate_schedule(recipe, steps),
            mesh=mesh,
            metrics_file=draft.folder / "metrics.jsonl",
            log_every=recipe.log_every,
        )
        seconds = time.monotonic() - started

        trained = {name: jax.device_get(variable[...]) for name, variable in parameters_by_name(state.trainable).items()}
        base_of = Base(uri=base.location, weights_file=base.weights.name, weights_sha256=file_sha256(base.weights))
        description = TunedDescription(base=base_of, config=base.config, recipe=recipe.model_dump(), steps=steps)
        write_tuned(draft.folder, trained, description)
        if base.tokenizer is not None:
            (draft.folder / TOKENIZER_FILE).write_bytes(base.tokenizer.read_bytes())
        tail = [entry["loss"] for entry in history[-max(1, len(history) // 10) :]]
        summary = {
            "steps": steps,
            "first_loss": history[0]["loss"],
            "final_loss": sum(tail) / len(tail),
            "examples_per_second": steps * recipe.batch_size / seconds,
            "seconds": seconds,
            "device": device,
            "trained_parameters": trained_count,
            "frozen_parameters": frozen_count,
            "frozen_parameters_identical": is_identical(frozen, base),
        }
        (draft.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        (draft.folder / "training.html").write_text(_report(summary, history, trained, recipe))
        draft.device = device
    log.info("loss %.4f -> %.4f in %.0f s, in %s", summary["first_loss"], summary["final_loss"], seconds, output)


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


def count_parameters(state: nnx.State) -> int:
    """How many numbers the parameters hold."""
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(state))


def is_identical(frozen: nnx.State, base: Checkpoint) -> bool:
    """Whether every frozen parameter is, bit for bit, the base's in the dtype it is held in. One array at a time."""
    import numpy as np

    from paligemma.checkpoints.parameters import parameters_by_name

    for name, variable in parameters_by_name(frozen).items():
        for shard in variable.get_value().addressable_shards:
            expected = np.asarray(base.arrays[name][shard.index], shard.data.dtype)
            if np.asarray(shard.data).tobytes() != expected.tobytes():
                return False
    return True


def _report(summary: dict, history: list[dict], trained: dict, recipe: Recipe) -> str:
    import yaml

    from paligemma.reports.page import render

    rows = [
        {"name": name, "shape": list(values.shape), "dtype": str(values.dtype), "bytes": values.nbytes}
        for name, values in trained.items()
    ]
    return render(
        "training.html",
        summary=summary,
        recipe=recipe,
        recipe_text=yaml.safe_dump(recipe.model_dump(), sort_keys=False),
        trained=rows,
        curve=lambda key: [(entry["step"], entry[key]) for entry in history],
    )


def main() -> None:
    """The command line."""
    run_command(run, "finetune")


if __name__ == "__main__":
    main()
