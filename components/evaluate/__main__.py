"""The command line of `evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from components.decoding_flags import DecodingFlags
from paligemma.artifacts.recording import recorded
from paligemma.choices import TaskName
from paligemma.command_line import run_command, with_flag_groups


@recorded("evaluate")
@with_flag_groups
def run(
    checkpoint: Annotated[str, typer.Option(help="Base checkpoint: a file, a folder, gs://, or embedded:tiny.")],
    records: Annotated[str, typer.Option(help="Records to evaluate on, from prepare_data; local or gs://.")],
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write the evaluation to.")],
    tuned: Annotated[
        str,
        typer.Option(help="Tuned model, from finetune; local or gs://.", show_default="none: evaluate the checkpoint itself"),
    ] = "",
    baseline: Annotated[
        str,
        typer.Option(
            help="Evaluation of the base on the same records; shown beside, and the candidate must beat it.",
            show_default="none",
        ),
    ] = "",
    champion: Annotated[
        str,
        typer.Option(
            help="Evaluation of the model in use on the same records; the candidate must beat it too.", show_default="none"
        ),
    ] = "",
    registry: Annotated[
        str,
        typer.Option(
            help="Registry of releases; its champion is evaluated on the same records, and the candidate must beat it too.",
            show_default="none",
        ),
    ] = "",
    margin: Annotated[float, typer.Option(help="By how much the first metric must be better, with confidence.", min=0)] = 0.0,
    task: Annotated[
        TaskName,
        typer.Option(help="What the rows ask, which selects the metrics.", show_default="exact match of any text"),
    ] = "",
    metrics: Annotated[
        str,
        typer.Option(
            help="Metrics in place of the task's, the deciding one first: names, or module:function, with commas.",
            show_default="the task's",
        ),
    ] = "",
    mask_decoder: Annotated[
        str,
        typer.Option(help="File with the weights that turn <seg> symbols into masks, for --task segment.", show_default="none"),
    ] = "",
    batch_size: Annotated[int, typer.Option(help="Rows decoded at once; does not change the result.", min=1)] = 32,
    decoding: DecodingFlags = DecodingFlags(),
    state_root: Annotated[
        str,
        typer.Option(
            help="Folder or gs:// prefix below which predictions are kept until the evaluation is written.",
            show_default="OUTPUT.predictions",
        ),
    ] = "",
) -> None:
    """Writes predictions.jsonl, metrics.json and report.html; gate.json when there is a model to be better than.

    Every row is decoded and kept before any is judged: stopped or failed, the same command decodes nothing again.
    """
    arguments = locals()  # before anything else has a name here
    from components.evaluate.main import evaluate

    settings = arguments.pop("decoding").settings()
    evaluate(**arguments, settings=settings)


def main() -> None:
    """The command line."""
    run_command(run, "evaluate")


if __name__ == "__main__":
    main()
