"""Describes a checkpoint in one line for people: its name, its size and its image size."""

from __future__ import annotations

import math
from pathlib import Path

from paligemma.checkpoints.open_checkpoint import EMBEDDED, Checkpoint, open_checkpoint
from paligemma.errors import InputError

_TOY = ", a toy for the demo"


def describe(name: str, checkpoint: Checkpoint) -> str:
    """The line, e.g. `embedded:tiny, 1.2 million parameters, pictures of 32 x 32 pixels, a toy for the demo`."""
    count = parameter_count(checkpoint)
    size = checkpoint.config.img.image_size
    toy = _TOY if name.startswith("embedded:") else ""
    return f"{name}, {_count_in_words(count)} parameters, pictures of {size} x {size} pixels{toy}"


def describe_opened(checkpoint: Checkpoint) -> str:
    """The line for a step's checkpoint, for the step's page: named by its source, if that is recorded.

    Otherwise it is named by its file and folder: pages belong to artifacts, so they are the same on every machine.
    """
    folder = checkpoint.weights.parent
    name = f"{folder.name}/{checkpoint.weights.name}"
    if folder.parent == EMBEDDED:
        name = f"embedded:{folder.name}"
    elif checkpoint.record is not None:
        source = str(checkpoint.record.producer.parameters.get("source", ""))
        name = source if "://" in source or source.startswith("embedded:") else Path(source).name or name
    return describe(name, checkpoint)


def parameter_count(checkpoint: Checkpoint) -> int:
    """Number of parameters."""
    return sum(math.prod(array.shape) for array in checkpoint.arrays.values())


def describe_source(source: str) -> str:
    """The line for a source to be fetched. A remote source is only named: its size is unknown before the fetch.

    Raises:
        PaliGemmaError: a local checkpoint is missing or damaged.
    """
    return source if "://" in source or "," in source else describe(source, open_checkpoint(source))


def named(source: str, flag: str) -> str:
    """The checkpoint that a user named with `flag`.

    Raises:
        InputError: none is named. There is no default: results of the wrong model still look like results.
    """
    if source.strip():
        return source
    fetched = "hf://google/paligemma2-3b-pt-224, kaggle://..., " if flag == "--source" else "a tuned model's folder, "
    raise InputError(
        "No model is named.",
        where=flag,
        expected=f"{fetched}gs://..., a checkpoint's file or folder, or embedded:tiny",
        fix=f"add {flag}, e.g. {flag} runs/paligemma-3b; {flag} embedded:tiny is the demo's toy of 1.2 million parameters",
    )


def _count_in_words(count: int) -> str:
    for unit, word in ((10**9, "billion"), (10**6, "million")):
        if count >= unit:
            return f"{count / unit:.1f} {word}"
    return f"{count:,}"
