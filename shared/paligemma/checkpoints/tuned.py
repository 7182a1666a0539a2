"""A tuned model on disk: only the trained parameters, and the facts needed to find and check their base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, ConfigDict

from paligemma.checkpoints.hashes import checked_sha256
from paligemma.checkpoints.safetensors_files import read_safetensors
from paligemma.errors import DamagedError, InputError
from paligemma.foreign_json import read_model
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.lora_factors import LoraConfig
from paligemma.safe_names import Address, RelativePath, Sha256

WEIGHTS_FILE = "trained.safetensors"
DESCRIPTION_FILE = "tuned.json"


class Base(BaseModel):
    """The checkpoint that a tuned model is based on.

    The author of a tuned model chooses this location, so it is not trusted. It is a path, or a `gs://` address that is fetched
    into the cache. It serves only to find weights with this hash.
    """

    model_config = ConfigDict(frozen=True)

    uri: Address
    weights_file: RelativePath
    weights_sha256: Sha256


class TunedDescription(BaseModel):
    """Contents of `tuned.json`."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    base: Base
    config: PaliGemmaConfig
    recipe: dict
    lora: LoraConfig | None = None
    steps: int
    grey_range: str = ""
    """The value of `prepare_data --grey-range` for the training data."""

    @property
    def images_per_example(self) -> int:
        """Number of images in every row that it was tuned on."""
        images = self.recipe.get("images_per_example", 1)
        return images if isinstance(images, int) and images > 0 else 1


@dataclass(frozen=True)
class TunedModel:
    """An opened tuned model: its description, and its memory-mapped parameters by name."""

    description: TunedDescription
    arrays: Mapping[str, np.ndarray]


def is_tuned_model(path: str | Path) -> bool:
    """Whether a folder looks like a tuned model."""
    return (Path(path) / DESCRIPTION_FILE).is_file()


def write_tuned(folder: Path, arrays: Mapping[str, np.ndarray], description: TunedDescription) -> None:
    """Writes both files into an existing folder."""
    safetensors.numpy.save_file(dict(arrays), folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors lets only the owner read it; the next step may run as another user
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description.model_dump(), indent=2) + "\n")


def read_tuned(folder: str | Path) -> TunedModel:
    """Reads a tuned model.

    Raises:
        InputError: the folder is not a tuned model.
        DamagedError: a file is incomplete, or differs from its record.
    """
    folder = Path(folder)
    if not is_tuned_model(folder):
        raise InputError(f"{folder} is not a tuned model.", expected=f"a folder with {DESCRIPTION_FILE}")
    description = read_model(folder / DESCRIPTION_FILE, TunedDescription, DESCRIPTION_FILE, fix="run finetune again")
    if not (folder / WEIGHTS_FILE).is_file():
        raise DamagedError("The trained parameters are missing.", where=folder / WEIGHTS_FILE, fix="run finetune again")
    tensors = read_safetensors(folder / WEIGHTS_FILE)
    checked_sha256(folder / WEIGHTS_FILE)
    return TunedModel(description, {name: tensor.values() for name, tensor in tensors.items()})
