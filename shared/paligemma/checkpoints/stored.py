"""A checkpoint in Cloud Storage, opened without its weights: they are fetched when a value is first read.

Its step wrote names, shapes and dtypes of the arrays beside them. So a step that needs a tokenizer and shapes fetches
kilobytes, and a step whose result is there already fetches nothing else.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 by its name then
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from paligemma.artifacts.record import RECORD_FILE, MadeRecord, tree_sha256
from paligemma.artifacts.store import artifact_at, cached_folder, localize_recorded, record_of, small_files
from paligemma.checkpoints.lazy import LazyArray, read_into, verify
from paligemma.checkpoints.safetensors_files import INDEX_FILE, read_index
from paligemma.errors import DamagedError
from paligemma.foreign_json import read_model
from paligemma.safe_names import RelativePath
from paligemma.storage.files import exists
from paligemma.storage.location import GcsLocation

PARAMETERS_FILE = "parameters.json"
"""In a checkpoint's artifact: names, shapes and dtypes of the parameters, at the resolution that the weights have."""

_BESIDE = (PARAMETERS_FILE, INDEX_FILE, "config.json", "tokenizer.model")


class _Described(BaseModel):
    """Shape and dtype of an array."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: str


class _Description(BaseModel):
    """The contents of `PARAMETERS_FILE`; `weights` is the file that holds the arrays, or the index of such files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Annotated[int, Field(ge=1, le=1)] = 1
    weights: RelativePath
    arrays: dict[str, _Described]


class FetchedOnUse:
    """An array with its shape and dtype now. The first read of a value fetches the whole checkpoint."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, fetched: Callable[[], LazyArray]) -> None:
        self.shape, self.dtype, self._fetched = shape, dtype, fetched

    def __getitem__(self, index) -> np.ndarray:
        """Values at `index`."""
        return self._fetched()[index]

    def resolve(self) -> LazyArray:
        """See `lazy.Resolvable`."""
        return self._fetched()

    def read_into(self, to: np.ndarray) -> None:
        """See `lazy.Checked`."""
        read_into(self._fetched(), to)

    def verify(self) -> None:
        """See `lazy.Checked`."""
        verify(self._fetched())


@dataclass
class StoredWeights:
    """Weights in Cloud Storage, and what is known of them before they are fetched.

    Attributes:
        record: the record of their artifact.
        beside: a local folder with the small files of the artifact: architecture, tokenizer, description.
        weights: the local path of the weight file, or of the index of its shards, once it is fetched.
    """

    location: GcsLocation
    record: MadeRecord
    beside: Path
    weights: Path
    described: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    read: Callable[[Path], Mapping[str, LazyArray]]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _arrays: Mapping[str, LazyArray] | None = None

    @property
    def arrays(self) -> dict[str, LazyArray]:
        """The parameters by name, at the resolution that the weights have."""

        def fetched(name: str) -> Callable[[], LazyArray]:
            return lambda: self.fetch()[name]

        return {name: FetchedOnUse(shape, dtype, fetched(name)) for name, (shape, dtype) in self.described.items()}

    @property
    def sha256(self) -> str:
        """What `Checkpoint.weights_sha256` is of the fetched files: every byte is compared with the record when they are."""
        files = self.record.artifact.files
        if self.weights.suffix != ".json":
            return next(file.sha256 for file in files if file.path == self.weights.name)
        shards = set(read_index(self.beside / self.weights.name).values())
        return tree_sha256(file for file in files if file.path in shards)

    def fetch(self) -> Mapping[str, LazyArray]:
        """The arrays of the files, which are fetched unless this machine has them.

        Raises:
            DamagedError: the artifact is not what it was when it was opened, or not as it is described.
        """
        with self._lock:
            if self._arrays is None:
                localize_recorded(self.location, self.record)
                arrays = self.read(self.weights)
                if {name: (tuple(array.shape), array.dtype) for name, array in arrays.items()} != dict(self.described):
                    raise DamagedError(
                        f"The weights are not as {PARAMETERS_FILE} describes them.",
                        where=self.location,
                        fix="run fetch_checkpoint again",
                    )
                self._arrays = arrays
            return self._arrays


def write_description(folder: Path, weights: str, arrays: Mapping[str, LazyArray]) -> None:
    """Writes `PARAMETERS_FILE`.

    Args:
        folder: the artifact's folder.
        weights: name of the weight file, or of the index of its shards.
        arrays: the parameters by name, at the resolution that the weights have.
    """
    described = {name: _Described(shape=tuple(array.shape), dtype=array.dtype.name) for name, array in sorted(arrays.items())}
    values = _Description(weights=weights, arrays=described).model_dump(mode="json")
    (folder / PARAMETERS_FILE).write_text(json.dumps(values, indent=1) + "\n")


def open_stored(location: Any, read: Callable[[Path], Mapping[str, LazyArray]]) -> StoredWeights | None:
    """The weights of an artifact in Cloud Storage; None if there is none, or one without a description.

    Args:
        location: a `gs://` address; or a task's folder that says where its artifact is.
        read: gives the parameters of a weight file, or of the index of its shards, at the resolution that the weights have.

    Raises:
        DamagedError: the record or the description is damaged.
    """
    place = artifact_at(location)
    if not (isinstance(place, GcsLocation) and exists(place, RECORD_FILE)):
        return None
    record = record_of(place)
    if record.artifact.file(PARAMETERS_FILE) is None:
        return None
    beside = small_files(place, record, _BESIDE)
    said = read_model(beside / PARAMETERS_FILE, _Description, "The description of the parameters")
    if record.artifact.file(said.weights) is None:
        raise DamagedError(f"The artifact has no file {said.weights}.", where=place, fix="run fetch_checkpoint again")
    try:
        described = {name: (one.shape, np.dtype(one.dtype)) for name, one in said.arrays.items()}
    except TypeError as error:
        raise DamagedError(f"{PARAMETERS_FILE} names an unknown dtype: {error}.", where=place) from None
    return StoredWeights(place, record, beside, cached_folder(record) / said.weights, described, read)
