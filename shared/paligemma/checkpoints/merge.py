"""Merges a tuned model into its base: trained parameters replace the base's, adapters add to their weights. Lazy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from paligemma.checkpoints.lazy import LazyArray, split_index
from paligemma.checkpoints.tuned import TunedModel
from paligemma.errors import DamagedError
from paligemma.models.lora_factors import adapted_weight, is_adapter, merge_adapter, merged_shape


@dataclass(frozen=True)
class MergedWeight:
    """A stacked weight plus its adapter, in float32. Indexing computes it for the selected layers."""

    target: str
    weight: LazyArray
    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return tuple(self.weight.shape)

    @property
    def dtype(self) -> np.dtype:
        """float32: the adapter's changes are smaller than the steps of a 16-bit weight."""
        return np.dtype(np.float32)

    def __getitem__(self, index) -> np.ndarray:
        (layers, *within), rest = split_index(index, self.shape)
        merged = merge_adapter(self.target, self.weight[layers], self.a[layers], self.b[layers], self.scale)
        return merged[(slice(None), *within)][rest]


def merged_arrays(base: Mapping[str, LazyArray], tuned: TunedModel) -> dict[str, LazyArray]:
    """Every parameter of the tuned model, by the base's names.

    Raises:
        DamagedError: the tuned model has a parameter that does not fit its base.
    """
    merged: dict[str, LazyArray] = dict(base)
    lora = tuned.description.lora
    for name, values in tuned.arrays.items():
        if not is_adapter(name):
            _check_known(name, name, base)
            _check_shape(tuple(values.shape), base[name], name)
            merged[name] = values
            continue
        other = tuned.arrays.get(f"{name[:-1]}{'b' if name.endswith('/a') else 'a'}")
        if lora is None or other is None:
            raise DamagedError(f"The tuned model has half an adapter: {name}.", fix="run finetune again")
        if name.endswith("/a"):
            target, weight = adapted_weight(name)
            _check_known(weight, name, base)
            _check_shape(merged_shape(target, values.shape, other.shape), base[weight], name)
            merged[weight] = MergedWeight(target, base[weight], values, other, lora.alpha / lora.rank)
    return merged


def _check_known(name: str, trained: str, base: Mapping[str, LazyArray]) -> None:
    if name not in base:
        raise DamagedError(f"The tuned model has a parameter that its base lacks: {trained}.")


def _check_shape(shape: tuple[int, ...] | None, base: LazyArray, trained: str) -> None:
    if shape != tuple(base.shape):
        raise DamagedError(
            f"A parameter of the tuned model does not fit its base: {trained}.",
            expected=f"shape {tuple(base.shape)}, found {shape}",
            fix="run finetune again",
        )
