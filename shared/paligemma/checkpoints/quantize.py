"""Quantizes weights while they are read, a few layers or rows at a time: no model is in memory as floats. Needs no JAX."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np

from paligemma.checkpoints.lazy import THREADS, LazyArray, Resolvable, empty, read, verify
from paligemma.models.weight_formats import WeightFormat, quantize


@runtime_checkable
class HasCodes(Protocol):
    """A parameter that is stored quantized."""

    def as_quantized(self, form: WeightFormat, /) -> tuple[np.ndarray, np.ndarray]:
        """Codes and scales in this format."""
        ...


_PIECE = 1 << 23
"""Most weights that a thread quantizes at a time: its temporary arrays are four to eight times as large in bytes."""


def quantize_array(array: LazyArray, form: WeightFormat) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of a parameter, on this host; see `weight_formats.quantize`. Those that are stored are not made anew.

    Raises:
        DamagedError: the values differ from the file's checksum, if it has one.
        InputError: the parameter is stored in another format.
    """
    array = array.resolve() if isinstance(array, Resolvable) else array
    if isinstance(array, HasCodes):
        return array.as_quantized(form)
    codes_shape, scales_shape = form.shapes(tuple(array.shape))
    codes = empty(codes_shape, form.codes_dtype)
    scales = empty(scales_shape, np.dtype(np.float32))

    def work(values: np.ndarray, within: tuple[slice, ...], outer: tuple[slice, ...]) -> None:
        place = (*outer, *(slice(None),) * (codes.ndim - len(outer)))
        own, of_scales = (part[place][within] for part in (codes, scales))
        own[...], of_scales[...] = quantize(values[within], form)

    with ThreadPoolExecutor(THREADS) as pool:
        for outer in _read_at_once(tuple(array.shape), form):
            values = read(array, outer, np.dtype(np.float32))
            for done in [pool.submit(work, values, within, outer) for within in _pieces(values.shape, form)]:
                done.result()
    verify(array)
    return codes, scales


def _read_at_once(shape: tuple[int, ...], form: WeightFormat) -> Iterator[tuple[slice, ...]]:
    """Parts of a weight that are read one after the other. Only axes before those that its product sums over are cut: into
    several along the first if they are small, else into one along each."""
    free = shape[: len(shape) + min(form.inputs)]
    step = 4 * _PIECE // math.prod(shape[1:])
    if free and step > 1:
        yield from ((slice(start, min(start + step, shape[0])),) for start in range(0, shape[0], step))
    else:
        yield from itertools.product(*([slice(at, at + 1) for at in range(length)] for length in free))


def _pieces(shape: tuple[int, ...], form: WeightFormat) -> Iterator[tuple[slice, ...]]:
    """Parts of an array that are quantized one after the other: along its last axis, unless its product sums over that."""
    axis = len(shape) - 1 if -1 not in form.inputs else 0
    step = max(1, _PIECE * shape[axis] // math.prod(shape))
    for start in range(0, shape[axis], step):
        yield (*(slice(None),) * axis, slice(start, min(start + step, shape[axis])))
