"""Brings a checkpoint into the pipeline: weights byte for byte, its architecture, its tokenizer."""

from __future__ import annotations

import logging
import shutil
from typing import Annotated, Literal

import typer

from paligemma.command_line import run_command

log = logging.getLogger("paligemma.fetch_checkpoint")


def run(
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write the checkpoint to.")],
    source: Annotated[
        str,
        typer.Option(
            help="kaggle://owner/model/jax/variation/version, https://, gs:// or a path of a big_vision .npz file or a folder "
            "with one, or embedded:tiny; several, separated by commas, are tried in turn."
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
        typer.Option(help="SentencePiece model, when it is not beside the weights.", show_default="beside the weights"),
    ] = "",
    precision: Annotated[
        Literal["float16", "bfloat16", "float32"],
        typer.Option(help="Which file of a Kaggle model: by the dtype of its weights."),
    ] = "float16",
) -> None:
    """Copies a checkpoint to OUTPUT, after checking that it is whole, fits its architecture and has a usable tokenizer."""
    import json

    from paligemma.checkpoints.npz import verify_weights
    from paligemma.checkpoints.open import CONFIG_FILE, TOKENIZER_FILE, open_checkpoint
    from paligemma.checkpoints.sources.fetch import fetch_first
    from paligemma.checkpoints.sources.remote import is_remote, redacted
    from paligemma.data.tokenizer import Tokenizer
    from paligemma.errors import DamagedError, InputError
    from paligemma.lineage.artifact import input_of, localize, produce
    from paligemma.lineage.record import Input, file_sha256
    from paligemma.storage.space import check_space

    had, local = fetch_first(source, sha256, precision)
    checkpoint = open_checkpoint(local)
    tokenizer_file = localize(tokenizer) if tokenizer else checkpoint.tokenizer
    if tokenizer_file is None:
        raise InputError("The checkpoint has no tokenizer beside it.", where=checkpoint.weights, fix="pass --tokenizer")
    pieces = Tokenizer(tokenizer_file).vocab_size
    rows = checkpoint.config.llm.vocab_size
    if pieces > rows:
        raise InputError(
            f"The tokenizer has {pieces} pieces, the embedding only {rows} rows.",
            where=tokenizer_file,
            expected="the tokenizer that the checkpoint was trained with",
        )
    parameters = {"source": redacted(had), "sha256": sha256, "precision": precision}
    if is_remote(had):
        weights_input = Input(role="weights", uri=redacted(had), sha256=file_sha256(checkpoint.weights))
    else:
        weights_input = input_of("weights", checkpoint.location)
    inputs = [weights_input, input_of("tokenizer", tokenizer or tokenizer_file)]
    with produce(output, "checkpoint", "fetch_checkpoint", parameters, inputs) as draft:
        weights = draft.folder / checkpoint.weights.name
        check_space(draft.folder, checkpoint.weights.stat().st_size)
        shutil.copyfile(checkpoint.weights, weights)
        found = file_sha256(weights)
        if sha256 and found != sha256.lower():
            raise DamagedError(
                "The weight file is not the expected one.", where=checkpoint.weights, expected=f"sha256 {sha256}, found {found}"
            )
        verify_weights(weights)
        shutil.copyfile(tokenizer_file, draft.folder / TOKENIZER_FILE)
        (draft.folder / CONFIG_FILE).write_text(json.dumps(checkpoint.config.model_dump(), indent=2) + "\n")
    log.info("checkpoint %s, sha256 %s, in %s", checkpoint.weights.name, found, output)


def main() -> None:
    """The command line."""
    run_command(run, "fetch_checkpoint")


if __name__ == "__main__":
    main()
