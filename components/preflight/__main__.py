"""The command line of `preflight`."""

from __future__ import annotations

from typing import Annotated

import typer

from paligemma.command_line import run_command


def run(
    checkpoint: Annotated[str, typer.Option(help="Base checkpoint: a file, a folder, gs://, or embedded:tiny.")],
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write the report to.")],
    recipe: Annotated[
        str, typer.Option(help="Training recipe: a preset's name or a YAML file.", show_default="the reference recipe")
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Overrides a value of the recipe; repeatable.", show_default="none"),
    ] = None,
    target: Annotated[str, typer.Option(help="Hardware: cpu, t4, l4, a100-40, h100-80, v5e-1, v5e-4, v6e-1, ...")] = "cpu",
    max_text_tokens: Annotated[int, typer.Option(help="Maximum tokens of a row's prefix and suffix.", min=4)] = 128,
    warn_only: Annotated[bool, typer.Option("--warn-only", help="Go on when it does not fit.", show_default="no")] = False,
    decode_batch: Annotated[int, typer.Option(help="Prompts decoded at once; above 0, decoding is compiled too.", min=0)] = 0,
    images_per_example: Annotated[
        int,
        typer.Option(
            help="Images in every row of the records, which the recipe has to agree with.", min=0, show_default="the recipe's"
        ),
    ] = 0,
) -> None:
    """Writes preflight.json and preflight.html; fails when the target cannot hold the job."""
    from components.preflight.main import check
    from components.presets import read_recipe

    check(
        checkpoint,
        output,
        read_recipe(recipe, set_ or []),
        target,
        max_text_tokens,
        warn_only,
        decode_batch,
        images_per_example,
    )


def main() -> None:
    """The command line."""
    run_command(run, "preflight")


if __name__ == "__main__":
    main()
