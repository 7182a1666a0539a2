"""The command line of `fetch_checkpoint`."""

from __future__ import annotations

from typing import Annotated

import typer

from paligemma.artifacts.recording import recorded
from paligemma.choices import StoredDtype
from paligemma.command_line import run_command


@recorded("fetch_checkpoint")
def run(
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write the checkpoint to.")],
    source: Annotated[
        str,
        typer.Option(
            help="kaggle://owner/model/jax/variation/version, https://, hf://owner/name@revision, gs:// or a path of a "
            "big_vision .npz file, of a folder with one, or of a Hugging Face folder, or embedded:tiny; several, separated by "
            "commas, are tried in turn."
        ),
    ] = "embedded:tiny",
    sha256: Annotated[
        str,
        typer.Option(
            help="Expected sha256 of the weight file; empty: recorded, not checked. https:// needs it.", show_default="none"
        ),
    ] = "",
    tokenizer: Annotated[
        str,
        typer.Option(
            help="SentencePiece model, when it is not beside the weights.",
            show_default="beside the weights",
        ),
    ] = "",
    precision: Annotated[
        StoredDtype,
        typer.Option(help="Which file of a Kaggle model: by the dtype of its weights."),
    ] = "float16",
    image_size: Annotated[
        int,
        typer.Option(
            help="Side of the images that the checkpoint is to be used with, in pixels: position embeddings are resampled "
            "whenever it is loaded. 0: its own.",
            min=0,
        ),
    ] = 0,
) -> None:
    """Copies a checkpoint to OUTPUT, after checking that it is whole, fits its architecture and has a usable tokenizer."""
    arguments = locals()  # before anything else has a name here
    from components.fetch_checkpoint.main import fetch_checkpoint

    fetch_checkpoint(**arguments)


def main() -> None:
    """The command line."""
    run_command(run, "fetch_checkpoint")


if __name__ == "__main__":
    main()
