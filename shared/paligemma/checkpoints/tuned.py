"""A tuned model on disk: the trained parameters only, and what is needed to find and check their base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, ValidationError

from paligemma.errors import DamagedError, InputError
from paligemma.models.config import PaliGemmaConfig, describe_validation_error
from paligemma.models.lora import LoraConfig

WEIGHTS_FILE = "trained.safetensors"
DESCRIPTION_FILE = "tuned.json"


class Base(BaseModel):
    """The checkpoint that the trained parameters replace a part of."""

    model_config = ConfigDict(frozen=True)

    uri: str
    weights_file: str
    weights_sha256: str


class TunedDescription(BaseModel):
    """Contents of `tuned.json`."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    base: Base
    config: PaliGemmaConfig
    recipe: dict
    lora: LoraConfig | None = None
    steps: int


@dataclass(frozen=True)
class TunedModel:
    """A tuned model, read: its description, and its parameters by name."""

    description: TunedDescription
    arrays: Mapping[str, np.ndarray]


def is_tuned_model(path: str | Path) -> bool:
    """Whether a folder looks like one of ours."""
    return (Path(path) / DESCRIPTION_FILE).is_file()


def write_tuned(folder: Path, arrays: Mapping[str, np.ndarray], description: TunedDescription) -> None:
    """Writes both files into an existing folder."""
    safetensors.numpy.save_file(dict(arrays), folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors makes it readable by its owner only; the next step may be another
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description.model_dump(), indent=2) + "\n")


def read_tuned(folder: str | Path) -> TunedModel:
    """Reads a tuned model.

    Raises:
        InputError: the folder is not a tuned model.
        DamagedError: one of its files is not whole.
    """
    folder = Path(folder)
    if not is_tuned_model(folder):
        raise InputError(f"{folder} is not a tuned model.", expected=f"a folder with {DESCRIPTION_FILE}")
    try:
        description = TunedDescription.model_validate_json((folder / DESCRIPTION_FILE).read_bytes())
    except ValidationError as error:
        raise DamagedError(
            f"{DESCRIPTION_FILE} is damaged: {describe_validation_error(error, TunedDescription)}", where=folder
        ) from None
    try:
        arrays = safetensors.numpy.load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise DamagedError(f"The trained parameters cannot be read: {error}.", where=folder / WEIGHTS_FILE) from None
    return TunedModel(description, arrays)
