"""Resamples position embeddings to another image size than the checkpoint's."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np

from paligemma.checkpoints.lazy import LazyArray
from paligemma.models.config import PaliGemmaConfig

POSITIONS = "img/pos_embedding"

log = logging.getLogger("paligemma.checkpoints")


def resampled(arrays: Mapping[str, LazyArray], config: PaliGemmaConfig) -> dict[str, LazyArray]:
    """The arrays, with position embeddings for the configuration's image size, in the file's dtype."""
    result = dict(arrays)
    found = result.get(POSITIONS)
    if found is None or len(found.shape) != 3 or found.shape[1] in (config.img.num_patches, 0):
        return result
    if math.isqrt(found.shape[1]) ** 2 != found.shape[1]:
        return result  # not a grid: the check of shapes says so
    size = math.isqrt(found.shape[1]) * config.img.patch_size
    log.info("position embeddings resampled from %d to %d pixels", size, config.img.image_size)
    result[POSITIONS] = Resampled(found, config.img.num_patches)
    return result


class Resampled:
    """Position embeddings for another number of patches. The file's are read when a value is."""

    def __init__(self, embeddings: LazyArray, patches: int) -> None:
        self.shape, self.dtype = (1, patches, embeddings.shape[2]), embeddings.dtype
        self._embeddings = embeddings

    @cached_property
    def _values(self) -> np.ndarray:
        return resample_positions(self._embeddings[...], self.shape[1]).astype(self.dtype)

    def __getitem__(self, index) -> np.ndarray:
        """Values at `index`."""
        return self._values[index]


def resample_positions(embeddings: np.ndarray, patches: int) -> np.ndarray:
    """Interpolates position embeddings of a square grid linearly along both axes; the corners stay unchanged.

    Does the same as big_vision when it loads a checkpoint at another resolution (`models/vit.py`, `resample_posemb`):
    `scipy.ndimage.zoom` of order 1.

    Args:
        embeddings: `[1, old patches, width]`, any float dtype.
        patches: patches of the new grid, a square number.

    Returns:
        `[1, patches, width]`, float32.
    """
    old, new = math.isqrt(embeddings.shape[1]), math.isqrt(patches)
    grid = embeddings.astype(np.float64).reshape(old, old, -1)
    weights = _weights(old, new)
    grid = np.einsum("ai,bj,ijd->abd", weights, weights, grid, optimize=True)
    return grid.reshape(1, patches, -1).astype(np.float32)


def _weights(old: int, new: int) -> np.ndarray:
    """Interpolation weights `[new, old]` from `old` points to `new` points with the same ends."""
    places = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(old)))
