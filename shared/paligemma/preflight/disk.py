"""Disk space that a run's steps need. A step that runs out is evicted, perhaps after hours."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

from paligemma.checkpoints.architecture import HasDtype, HasShape
from paligemma.errors import InputError
from paligemma.models.config import PaliGemmaConfig
from paligemma.preflight.analyze import in_gib, trained_shapes
from paligemma.storage.disk_space import DISK_VARIABLE
from paligemma.training.recipe import Recipe
from paligemma.training.trainable import compile_pattern, is_trainable


class _Array(HasShape, HasDtype, Protocol):
    """What is known of an array whose values nobody reads here."""


class _Model(Protocol):
    @property
    def config(self) -> PaliGemmaConfig: ...

    @property
    def arrays(self) -> Mapping[str, _Array]: ...


@dataclass(frozen=True)
class Disk:
    """Bytes on one machine. A step holds its inputs and one output artifact.

    Attributes:
        checkpoint: the base checkpoint as fetched.
        tuned: the trained parameters, in float32.
        release: the whole model in one format, since formats are written one after the other.
        given: available space; 0 if unknown.
    """

    checkpoint: int
    tuned: int
    release: int
    given: int

    @property
    def needed(self) -> int:
        """Space for all of it at once, as in `publish`."""
        return self.checkpoint + self.tuned + self.release

    @property
    def for_records(self) -> int:
        """Space left for the records of `prepare_data`, whose size is unknown beforehand."""
        return self.given - self.needed

    @property
    def fits(self) -> bool:
        """Whether any space is left for records; True if unknown."""
        return not self.given or self.for_records > 0

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {in_gib(size)}" for name, size in list(asdict(self).items())[:3])
        given = f" of {in_gib(self.given)}, which leaves {in_gib(max(0, self.for_records))} for records" if self.given else ""
        return f"{in_gib(self.needed)} GiB ({parts}){given}"

    def as_json(self) -> dict:
        """Plain values."""
        return asdict(self) | {"needed": self.needed, "for_records": self.for_records if self.given else None}


def examine_disk(base: _Model, recipe: Recipe) -> Disk:
    """The disk space that a recipe's steps need.

    Args:
        base: an open checkpoint.
        recipe: how to train it.

    Raises:
        InputError: the environment variable is not a number of bytes.
    """
    told = os.environ.get(DISK_VARIABLE, "")
    if told and not told.isdecimal():
        raise InputError(f"{told} is not a number of bytes.", where=f"${DISK_VARIABLE}", expected="e.g. 80000000000")
    trained = trained_shapes(base.config, recipe.trainable, recipe.lora)
    # Weights with merged adapters become float32: at most all of attention.
    pattern = compile_pattern("attention" if recipe.trainable == "lora" else recipe.trainable)
    stored = {name: (math.prod(array.shape), array.dtype.itemsize) for name, array in base.arrays.items()}
    return Disk(
        checkpoint=sum(count * size for count, size in stored.values()),
        tuned=sum(4 * math.prod(shape) for shape in trained.values()),
        release=sum(count * (max(4, size) if is_trainable(pattern, name) else size) for name, (count, size) in stored.items()),
        given=int(told or 0),
    )
