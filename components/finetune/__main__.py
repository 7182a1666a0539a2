"""The command line of `finetune`."""

from __future__ import annotations

from typing import Annotated

import typer

from paligemma.artifacts.recording import recorded
from paligemma.command_line import run_command


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
            help="In place of --state: root for state; each run gets a subfolder named by a hash of recipe, data and "
            "checkpoint, and is removed at the end.",
            show_default="none",
        ),
    ] = "",
    preflight: Annotated[
        str,
        typer.Option(
            help="Folder or gs:// prefix of a preflight of this recipe, whose choice its auto settings take.",
            show_default="none: the default of the devices",
        ),
    ] = "",
    disk_budget: Annotated[
        str,
        typer.Option(
            help="Most bytes that records on gs:// may take of the disk, e.g. 1GB: rows are then fetched as they are needed.",
            show_default="none: all are fetched first",
        ),
    ] = "",
) -> None:
    """Trains the recipe's parameters and writes them, with metrics.jsonl, training.html and summary.json."""
    from components.finetune.main import fine_tune
    from components.presets import read_recipe
    from paligemma.launch.heartbeat import end_when_abandoned

    end_when_abandoned()
    asked = read_recipe(recipe, set_ or [])
    fine_tune(checkpoint, records, output, asked, validation, state, state_root, preflight, disk_budget)


def main() -> None:
    """The command line."""
    run_command(run, "finetune")


if __name__ == "__main__":
    main()
