"""Lazy arrays: indexing reads only the values it selects. Knows no file format."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

BLOCK = 64 * 1024 * 1024
"""Most bytes in memory at a time while streaming."""

_ALIGNMENT = 64  # bytes; XLA's own
_ROWS = 16
_PIECE = 16 * 1024 * 1024  # bytes that a thread copies per task
THREADS = min(16, max(4, os.cpu_count() or 1))
"""Threads that read. They exceed a small machine's cores, so that one copies while another waits for the disk."""


class LazyArray(Protocol):
    """Has shape and dtype now, and reads values when indexed. A numpy array is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, index, /) -> np.ndarray: ...


@runtime_checkable
class Checked(Protocol):
    """A lazy array that can verify its values."""

    def read_into(self, to: np.ndarray, /) -> None:
        """Reads all values into `to`, and compares them with their checksum if the file has one."""

    def verify(self) -> None:
        """Reads all values and compares them with their checksum if the file has one."""


@runtime_checkable
class Resolvable(Protocol):
    """A lazy array that stands for another one."""

    def resolve(self) -> LazyArray:
        """The other one."""
        ...


class Stacked:
    """Views arrays of equal shape and dtype as one with a leading axis, for files that store layers separately."""

    def __init__(self, parts: Sequence[LazyArray]) -> None:
        self._parts = list(parts)
        self.shape = (len(self._parts), *parts[0].shape)
        self.dtype = np.dtype(parts[0].dtype)

    def __getitem__(self, index) -> np.ndarray:
        """Values at `index`; reads only what it selects from each part."""
        (layers, *within), rest = split_index(index, self.shape)
        chosen = self._parts[layers]
        values = empty((len(chosen), *lengths(within)), self.dtype)
        for place, part in enumerate(chosen):
            copy(part[tuple(within)][np.newaxis], values[place : place + 1])
        return values[rest]

    def read_into(self, to: np.ndarray) -> None:
        """See `Checked`; works part by part."""
        for place, part in enumerate(self._parts):
            read_into(part, to[place])

    def verify(self) -> None:
        """See `Checked`; works part by part."""
        for part in self._parts:
            verify(part)


class FirstRows:
    """The first rows of an array, for files whose vocabulary is padded."""

    def __init__(self, array: LazyArray, rows: int) -> None:
        self._array = array
        self.shape = (rows, *array.shape[1:])
        self.dtype = np.dtype(array.dtype)

    def __getitem__(self, index) -> np.ndarray:
        """Values at `index`; no other row is read."""
        slices, rest = split_index(index, self.shape)
        return self._array[slices][rest]

    def read_into(self, to: np.ndarray) -> None:
        """See `Checked`; the checksum covers all rows."""
        copy(self[...], to)
        self.verify()

    def verify(self) -> None:
        """See `Checked`."""
        verify(self._array)


def read(array: LazyArray, index: Any, dtype: np.dtype) -> np.ndarray:
    """Values at an index, in a dtype. Values from a file get their own memory, which JAX on a CPU can take over.

    If the index selects everything, values are compared with the file's checksum. Parts have no checksum: see `verify`.
    """
    slices, _ = split_index(index, array.shape)
    if lengths(slices) == tuple(array.shape) and isinstance(array, Checked):
        result = empty(array.shape, dtype)
        array.read_into(result)
        return result[index]
    values = array[index]
    if values.dtype == dtype and not isinstance(values, np.memmap):
        return values
    result = empty(values.shape, dtype)
    copy(values, result)
    return result


def read_into(array: LazyArray, to: np.ndarray) -> None:
    """Reads all values of an array into `to`, and compares them with the file's checksum if it has one."""
    if isinstance(array, Checked):
        array.read_into(to)
    else:
        copy(array[...], to)


def verify(array: LazyArray) -> None:
    """Compares values with the file's checksum, if it has one."""
    if isinstance(array, Checked):
        array.verify()


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialized array, aligned so that JAX on a CPU takes it over without a copy. Do not reuse it afterwards."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def copy(values: np.ndarray, to: np.ndarray) -> None:
    """Copies values into `to`, possibly in another axis order or dtype, with several threads.

    A single thread would wait for every page of a memory-mapped file. A transposed matrix is copied a few rows at a time, so
    that each memory line is used up before it leaves the cache: nine times as fast as NumPy.
    """

    def copy_rows(first: int, last: int) -> None:
        for start in range(first, last, _ROWS):
            rows = (..., slice(start, min(start + _ROWS, last)))
            to[rows] = values[rows]

    def copy_block(block: tuple[slice, ...]) -> None:
        to[block] = values[block]

    if values.ndim < 2 or values.strides[-1] == values.itemsize:
        jobs = [partial(copy_block, block) for block in blocks(values.shape, values.itemsize, _PIECE)]
    else:
        step = max(_ROWS, _PIECE * values.shape[-1] // max(1, values.nbytes) // _ROWS * _ROWS)
        jobs = [partial(copy_rows, first, min(first + step, values.shape[-1])) for first in range(0, values.shape[-1], step)]
    if len(jobs) == 1:
        return jobs[0]()
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()
    return None


def split_index(index, shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[int | slice, ...]]:
    """Splits an index of integers, slices of step 1 and an ellipsis into two.

    Returns:
        One slice with both ends for each axis, and the index that then drops the axes selected by integers.
    """
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in index:
        place = index.index(Ellipsis)
        index = (*index[:place], *(slice(None),) * (len(shape) - len(index) + 1), *index[place + 1 :])
    index = (*index, *(slice(None),) * (len(shape) - len(index)))
    slices, rest = [], []
    for item, size in zip(index, shape, strict=True):
        if isinstance(item, slice):
            start, stop, step = item.indices(size)
            if step != 1:
                raise IndexError(f"lazy arrays take slices of step 1, not {item}")
            slices.append(slice(start, max(start, stop)))
            rest.append(slice(None))
        else:
            place = range(size)[operator.index(item)]
            slices.append(slice(place, place + 1))
            rest.append(0)
    return tuple(slices), tuple(rest)


def lengths(slices: Sequence[slice]) -> tuple[int, ...]:
    """The shape that slices with both ends select."""
    return tuple(part.stop - part.start for part in slices)


def blocks(shape: Sequence[int], itemsize: int, most: int = BLOCK) -> Iterator[tuple[slice, ...]]:
    """Indices of consecutive pieces of an array in C order, each of at most `most` bytes."""
    if math.prod(shape) * itemsize <= most or not shape:
        yield ()
        return
    row = math.prod(shape[1:]) * itemsize
    if row <= most:
        step = most // row
        for start in range(0, shape[0], step):
            yield (slice(start, min(start + step, shape[0])),)
        return
    for place in range(shape[0]):
        for within in blocks(shape[1:], itemsize, most):
            yield (slice(place, place + 1), *within)
