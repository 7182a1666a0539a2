"""The lines of JSONL files, plain or gzip: whole, in ranges of lines, and none longer than wanted."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paligemma.errors import DamagedError, InputError
from paligemma.storage.disk_space import check_space

MAX_RATIO = 250
"""Highest allowed compression ratio of a gzip file: rows reach 5 to 10, gzip's limit is 1,000."""

_BLOCK = 1 << 20
_ANY_RATIO = 64 << 20
"""Unpacked bytes that are allowed at any ratio."""


@dataclass(frozen=True)
class LineRange:
    """Consecutive whole lines of a file: the unit of work. Each range becomes one shard.

    Attributes:
        number: number of the range and of its shard, from 0.
        start, stop: its byte range in the file.
        line: number of its first line, from 1.
        lines: number of lines.
        source: number of the file among those of a mixture, from 0.
    """

    number: int
    start: int
    stop: int
    line: int
    lines: int
    source: int = 0


def split_lines(path: Path, lines: int) -> list[LineRange]:
    """Cuts a file after every `lines` lines. Reads it once, and parses nothing.

    Raises:
        InputError: the file cannot be read.
    """
    cuts, seen, position, last = [0], 0, 0, b"\n"
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + position + 1
                cuts += ends[lines - 1 - seen % lines :: lines].tolist()
                seen, position, last = seen + len(ends), position + len(block), block[-1:]
    except OSError as error:
        raise unreadable(path, error) from None
    seen += last != b"\n"
    if cuts[-1] < position:
        cuts.append(position)
    firsts = range(1, seen + 1, lines)
    return [
        LineRange(number, start, stop, first, min(lines, seen + 1 - first))
        for number, (start, stop, first) in enumerate(zip(cuts[:-1], cuts[1:], firsts, strict=True))
    ]


def is_gzip(path: Path) -> bool:
    """Whether a file is gzip by its first bytes, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise unreadable(path, error) from None


def unpack(path: Path, target: Path) -> None:
    """Unpacks a gzip file, so that its lines can be read from any position.

    Raises:
        DamagedError: the file is cut short, or its checksum is wrong.
        InputError: it unpacks to more than rows plausibly do, or to more than the disk has room for.
    """
    partial = target.with_name(f"{target.name}.partial")
    try:
        with _open_gzip(path) as packed, partial.open("wb") as file:
            for number, block in enumerate(iter(lambda: packed.read(_BLOCK), b"")):
                if number % 64 == 0:
                    check_space(target.parent, 64 * _BLOCK)
                file.write(block)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged_gzip(path, error) from None
    partial.replace(target)


def read_lines(path: str | Path, most: int, part: LineRange | None = None) -> Iterator[bytes | None]:
    """Yields every line of a plain file, with its end; None for a line longer than `most` bytes, which is not held in memory.

    Args:
        path: the file.
        most: longest line in bytes.
        part: the lines to read; None for all.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            size = math.inf
            if part is not None:
                file.seek(part.start)
                size = part.stop - part.start
            yield from _lines(file, size, most)
    except OSError as error:
        raise unreadable(path, error) from None


def read_all_lines(path: Path, most: int) -> Iterator[bytes | None]:
    """`read_lines` for a whole file that may be gzip. Unpacks no more than is consumed.

    Raises:
        InputError: the file cannot be read, or unpacks to more than rows plausibly do.
        DamagedError: the gzip file is cut short, or its checksum is wrong.
    """
    if not is_gzip(path):
        yield from read_lines(path, most)
        return
    try:
        with _open_gzip(path) as file:
            yield from _lines(file, math.inf, most)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged_gzip(path, error) from None
    except OSError as error:
        raise unreadable(path, error) from None


class _Unpacked(io.RawIOBase):
    """The contents of a gzip file, as long as they are not implausibly larger than the file."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, gzip.open(path)  # noqa: SIM115
        self._most, self._seen = max(_ANY_RATIO, MAX_RATIO * path.stat().st_size), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._file.readinto(buffer)
        self._seen += count
        if self._seen > self._most:
            raise InputError(
                f"The gzip file unpacks to more than {self._most:,} bytes, {MAX_RATIO} times its own.",
                where=self._path,
                expected="rows of text, which do not pack as tightly",
                fix="look at what is in it, and unpack it yourself if it is right",
            )
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_gzip(path: Path) -> io.BufferedReader:
    return io.BufferedReader(_Unpacked(path), _BLOCK)


def _lines(file, size: float, most: int) -> Iterator[bytes | None]:
    """Lines of a binary file from its current position, up to `size` bytes; None for a line that is too long."""
    while size > 0 and (line := file.readline(most + 1)):
        size -= len(line)
        if len(line) > most and not line.endswith(b"\n"):
            while (rest := file.readline(most)) and not rest.endswith(b"\n"):
                size -= len(rest)
            size -= len(rest)
            yield None
        else:
            yield line


def unreadable(path: str | Path, error: OSError) -> InputError:
    """The error of a data file that cannot be read."""
    return InputError(f"The data cannot be read: {error.strerror}.", where=path, expected="a JSONL file")


def _damaged_gzip(path: Path, error: Exception) -> DamagedError:
    return DamagedError(f"The gzip file cannot be unpacked: {error}.", where=path, fix="fetch or pack it again")
