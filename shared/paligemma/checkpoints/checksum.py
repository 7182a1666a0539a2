"""Reads bytes of a file into an array with several threads, and computes their CRC-32 on the way."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from paligemma.checkpoints.lazy import THREADS

_PIECE = 16 * 1024 * 1024  # bytes in one thread's task
_CHUNK = 512 * 1024  # bytes per read: they are still in the core's own cache when the checksum is computed
_POLYNOMIAL = 0xEDB88320  # CRC-32 (IEEE 802.3), as everywhere below: the highest bit is the lowest power


def read_values(path: Path, offset: int, dtype: np.dtype, to: np.ndarray) -> int:
    """Fills an array with the values at an offset of a file.

    Faster than copying from a memory map, which takes a page fault for every few pages. Does not crash if the file has become
    shorter.

    Args:
        path: the file.
        offset: position of the first value, in bytes.
        dtype: dtype of the values in the file.
        to: the array to fill, contiguous in C order; of any dtype.

    Returns:
        CRC-32 of the bytes that were read.

    Raises:
        EOFError: the file ends too early.
    """
    flat, itemsize = to.reshape(-1), dtype.itemsize
    with path.open("rb", buffering=0) as file:

        def read(start: int, stop: int) -> int:
            if hasattr(os, "posix_fadvise"):  # not on macOS; the disk reads ahead while this thread computes
                os.posix_fadvise(file.fileno(), offset + start + THREADS * _PIECE, _PIECE, os.POSIX_FADV_WILLNEED)
            return _read_piece(file.fileno(), offset + start, dtype, flat[start // itemsize : stop // itemsize])

        return _combined(flat.size * itemsize, read)


def crc32(values: np.ndarray) -> int:
    """CRC-32 of bytes, `[n]` of uint8, by several threads."""
    return _combined(values.size, lambda start, stop: zlib.crc32(values[start:stop].data))


def combine(first: int, second: int, size: int) -> int:
    """CRC-32 of two concatenated byte strings, from the CRC-32 of each (zlib's `crc32_combine`).

    Args:
        first: CRC-32 of the first.
        second: CRC-32 of the second.
        size: length of the second, in bytes.
    """
    return _multiply(_power(8 * size), first) ^ second


def _combined(size: int, piece_crc: Callable[[int, int], int]) -> int:
    pieces = [(start, min(start + _PIECE, size)) for start in range(0, size, _PIECE)]
    if len(pieces) < 2:
        return piece_crc(0, size)
    crc = 0
    with ThreadPoolExecutor(min(THREADS, len(pieces))) as pool:
        for (start, stop), found in zip(pieces, pool.map(lambda piece: piece_crc(*piece), pieces), strict=True):
            crc = combine(crc, found, stop - start)
    return crc


def _read_piece(handle: int, offset: int, dtype: np.dtype, to: np.ndarray) -> int:
    count, crc = _CHUNK // dtype.itemsize, 0
    buffer = None if to.dtype == dtype else np.empty(min(count, to.size), dtype)
    for start in range(0, to.size, count):
        part = to[start : start + count]
        values = part if buffer is None else buffer[: part.size]
        data = values.view(np.uint8).data
        done = 0
        while done < len(data):
            read = os.preadv(handle, [data[done:]], offset + start * dtype.itemsize + done)
            if not read:
                raise EOFError("it ends within an array")
            done += read
        crc = zlib.crc32(data, crc)
        if buffer is not None:
            part[...] = values
    return crc


def _multiply(one: int, other: int) -> int:
    """The product of two polynomials modulo the CRC's."""
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product


@functools.lru_cache(maxsize=64)
def _power(exponent: int) -> int:
    """x to the power of `exponent`, modulo the CRC's polynomial."""
    result, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            result = _multiply(result, square)
        square = _multiply(square, square)
        exponent >>= 1
    return result
