"""The closing lines of a run: its model, its files, and the next commands, ready to type."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from paligemma.artifacts.store import localize
from paligemma.checkpoints.describe import describe
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.data.image_source import split_archive
from paligemma.data.rows import Row, RowImage, read_all_rows
from paligemma.data.source_list import parse_sources
from paligemma.foreign_json import read_json
from paligemma.storage.location import SCHEME, parse_location
from pipelines.run_local import RunOutputs

COMMAND = ".venv/bin/paligemma"
"""The command as typed in the folder of README.md."""


def end_of_run(outputs: RunOutputs, parameters: Mapping[str, object]) -> Iterator[str]:
    """The closing lines.

    Args:
        outputs: the run's outputs.
        parameters: the pipeline's parameters.
    """
    yield f"model:       {describe(str(parameters['source']), open_checkpoint(outputs.checkpoint))}"
    yield f"tuned model: {short(outputs.tuned)}"
    yield "pages:"
    for name, page in outputs.pages().items():
        yield f"  {f'{name}:':<17}{short(page)}"
    yield str(read_json(localize(outputs.tuned_evaluation) / "gate.json", "The decision of the gate", nonfinite=True)["why"])
    if outputs.release:
        yield f"release:     {short(outputs.release)}"
    yield "next:"
    yield f"  ask it:          {ask_it(outputs.tuned, parameters)}"
    yield f"  take it away:    {COMMAND} export --model {_word(outputs.tuned)} --format huggingface --output runs/exported"
    yield f"  its lineage:     {COMMAND} lineage trace {_word(outputs.tuned)} --root {_word(outputs.root)}"


def ask_it(tuned: str, parameters: Mapping[str, object]) -> str:
    """The command that asks a tuned model the first question of the validation data."""
    images_asked, prompt = ["IMAGE"], "PROMPT"
    first = parse_sources(str(parameters["validation_data"]), "validation_data")[0]
    images = first.images or str(parameters.get("images") or parse_location(first.data).parent)
    for _, row in read_all_rows(localize(first.data), int(str(parameters.get("images_per_example", 1)))):
        if isinstance(row, Row):
            prompt = row.prefix
            images_asked = [_file_of(image, images) or "IMAGE" for image in row.images]
            break
    asked = " ".join(f"--image {_word(image)}" for image in images_asked)
    return f"{COMMAND} generate --model {_word(tuned)} {asked} --prompt {shlex.quote(prompt)}"


def _file_of(image: RowImage, folder: str) -> str:
    """The file of a row's image; empty if it is not a file on this machine."""
    elsewhere = image.address or image.inline is not None or image.name.startswith(SCHEME)
    if elsewhere or folder.startswith(SCHEME) or split_archive(image.name)[0]:
        return ""
    return str(Path(folder) / image.name)


def short(location: str) -> str:
    """A path relative to the current folder if it is below it; else unchanged."""
    if location.startswith(SCHEME):
        return location
    relative = os.path.relpath(location)
    return location if relative.startswith("..") else relative


def _word(location: str) -> str:
    return shlex.quote(short(location))
