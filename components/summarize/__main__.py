"""The command line of `summarize`."""

from __future__ import annotations

from typing import Annotated

import typer

from paligemma.artifacts.recording import recorded
from paligemma.command_line import run_command


@recorded("summarize")
def run(
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write the summary to.")],
    root: Annotated[str, typer.Option(help="Folder or gs:// prefix with the folder `lineage` of the run.")],
    run: Annotated[str, typer.Option(help="Name of the run.")],
    status: Annotated[
        str,
        typer.Option(
            help="How the run ended according to its runner, as JSON: state, error, and job (its name).",
            show_default="not known",
        ),
    ] = "",
    expected: Annotated[
        str,
        typer.Option(
            help="Comma-separated tasks that every run has; one without a record counts as failed.", show_default="none"
        ),
    ] = "",
) -> None:
    """Writes summary.json and report.html of a run, and posts a message to the address in $PALIGEMMA_WEBHOOK, if any."""
    arguments = locals()  # before anything else has a name here
    from components.summarize.main import summarize_run

    summarize_run(**arguments)


def main() -> None:
    """The command line."""
    run_command(run, "summarize")


if __name__ == "__main__":
    main()
