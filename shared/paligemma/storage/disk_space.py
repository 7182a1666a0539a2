"""Disk space: checked before a long transfer begins, and explained if it runs out all the same."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paligemma.errors import InputError
from paligemma.storage.location import Location

MARGIN = 64 * 1024 * 1024
"""Bytes to leave free."""
DISK_VARIABLE = "PALIGEMMA_DISK_BYTES"
"""Disk space that a pipeline's profile gives each step; unset: preflight does not check it."""

_UNITS = {"": 1, "B": 1, **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)}}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)}
_FIX = "free some, or point the output, $PALIGEMMA_CACHE or $TMPDIR to a larger disk"


def check_space(folder: Location, wanted: int) -> None:
    """Confirms that `wanted` bytes fit on the disk of an existing folder. A bucket has room for anything.

    Raises:
        InputError: they do not fit.
    """
    if isinstance(folder, Path) and wanted + MARGIN > _free(folder):
        raise InputError(f"There is not enough room in {folder}.", expected=room_for(wanted, folder), fix=_FIX)


def room_for(wanted: int, folder: Location) -> str | None:
    """Needed and free space on a folder's disk, for a message; None for a bucket."""
    if not isinstance(folder, Path):
        return None
    return f"{_size(wanted + MARGIN)} free, found {_size(_free(_existing(folder)))}"


def parse_bytes(text: str, where: str) -> int:
    """A number of bytes as people write it: `1GB`, `1.5 TB`, `512MiB`, `1000000`.

    Args:
        text: what they wrote.
        where: the flag, for the message.

    Raises:
        InputError: it is no such number.
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]{0,3})", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise InputError(f"{text!r} is no number of bytes.", where=where, expected="a number with a unit, e.g. 1GB or 512MiB")
    return int(float(match[1]) * unit)


def is_full_disk(error: BaseException) -> bool:
    """Whether an error means that the disk is full, or the user's quota is used up."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def same_disk(one: Location, other: Location) -> bool:
    """Whether two existing folders share a disk."""
    return isinstance(one, Path) and isinstance(other, Path) and one.stat().st_dev == other.stat().st_dev


@contextmanager
def explain_full_disk(*folders: Location) -> Iterator[None]:
    """Turns the operating system's "no space left" into an error that names the disk and the space that did not suffice.

    Args:
        folders: where the block writes; they need not exist yet, and `$TMPDIR` is always included. What the block leaves in
            them is counted. Prefixes in buckets are on no disk.

    Raises:
        InputError: the disk was full, or the user's quota was used up.
    """
    places = [_existing(folder) for folder in (*folders, Path(tempfile.gettempdir())) if isinstance(folder, Path)]
    before = {place: shutil.disk_usage(place).free for place in places}
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        named = error.filename2 or error.filename  # a copy's first path is its source
        place = _existing(Path(named)) if isinstance(named, str) else min(places, key=_free)
        had = max((free for one, free in before.items() if same_disk(one, place)), default=_free(place))
        raise InputError(
            f"There was not enough room in {place}: {os.strerror(error.errno or errno.ENOSPC)}.",
            expected=f"more than the {_size(had)} that were free when this began",
            fix=_FIX,
        ) from None


def _existing(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    try:
        folder = folder.absolute()
    except FileNotFoundError:  # the working folder was deleted
        return Path("/")
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
