"""Rows of records that were fetched from Cloud Storage, on the disk, up to a number of bytes.

The rows that come first stay, and no row takes another's place. An epoch reads each row once, in an order of its own, so
whatever was put out would be missed as often as what came for it; a share of the rows that stays is found again in every epoch.

    $PALIGEMMA_CACHE/streams/NUMBER/    taken by one process at a time, which holds a lock
        of          names what is in it; of anything else, it is emptied
        rows        payloads, one after the other
        places      int64 for each row: 1 + where its payload begins; 0 if it is not there

A killed process leaves all that it noted in `places`. What is read is checked by its crc32c, so nothing is synced.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
from itertools import count
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
from jaxtyping import Int

from paligemma.errors import InputError
from paligemma.storage.access import explain_refusal
from paligemma.storage.cache import CACHE_VARIABLE, cache_folder
from paligemma.storage.disk_space import is_full_disk

_FOLDER = "streams"
_OF, _ROWS, _PLACES = "of", "rows", "places"

log = logging.getLogger("paligemma.data")


class Slot:
    """A folder in the cache that this process alone uses, until this object is gone.

    Attributes:
        folder: the folder.
    """

    folder: Path

    def __init__(self, of: str) -> None:
        """Takes the folder that holds this, else any that nobody uses. Removes those that nobody uses and that hold others.

        So there are no more folders than processes that used one at the same time, whatever they used them for.

        Args:
            of: names the contents.

        Raises:
            InputError: the cache is not writable.
        """
        root = cache_folder() / _FOLDER
        with explain_refusal(root, fix=f"point ${CACHE_VARIABLE} to a folder of yours"):
            root.mkdir(parents=True, exist_ok=True)
            there = sorted(int(path.name) for path in root.iterdir() if path.name.isdecimal())
            free = [(root / str(number), lock) for number in there if (lock := _lock(root / str(number))) is not None]
            for folder, _ in free:
                if _holds(folder) != of:
                    shutil.rmtree(folder)
            others = (root / str(number) for number in count() if number not in there)
            more = ((folder, lock) for folder in others if (lock := _lock(folder)) is not None)
            kept = [one for one in free if one[0].is_dir()]
            self.folder, self._lock = (*kept, *free)[0] if free else next(more)
            self.folder.mkdir(exist_ok=True)
            (self.folder / _OF).write_text(of)


def _lock(folder: Path) -> BinaryIO | None:
    """The lock on a folder, held until it is closed; None if another process has it. The kernel frees a killed process's."""
    file = folder.with_name(f".{folder.name}.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _holds(folder: Path) -> str:
    try:
        return (folder / _OF).read_text()
    except OSError:
        return ""


class RowCache:
    """The payloads of rows in a folder; from any thread."""

    def __init__(self, slot: Slot, sizes: Int[np.ndarray, " rows"], checksums: Int[np.ndarray, " rows"], most: int) -> None:
        """Goes on with what is there.

        Args:
            slot: where; held as long as this object is.
            sizes: of each row's payload, in bytes.
            checksums: crc32c of each row's payload.
            most: bytes that the payloads may take.
        """
        self._slot, self._sizes, self._checksums, self._most = slot, sizes, checksums, most
        self._guard = threading.Lock()
        places, size = slot.folder / _PLACES, 8 * len(sizes)
        if not places.is_file() or places.stat().st_size != size:
            with places.open("wb") as file:
                file.truncate(size)
        self._places = np.memmap(places, np.int64, "r+", shape=sizes.shape)
        self._handle = os.open(slot.folder / _ROWS, os.O_RDWR | os.O_CREAT, 0o666)
        end = min(most, os.fstat(self._handle).st_size)
        kept = (self._places > 0) & (self._places <= end - sizes + 1)
        self._places[~kept] = 0
        self._end = int((self._places[kept] - 1 + sizes[kept]).max(initial=0))
        os.ftruncate(self._handle, self._end)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    @property
    def bytes(self) -> int:
        """What the payloads take."""
        return self._end

    def __contains__(self, row: int) -> bool:
        return bool(self._places[row])

    def read(self, row: int) -> bytes | None:
        """A row's payload; None if it is not there, or damaged, and then it is not there any more."""
        place = int(self._places[row])
        if not place:
            return None
        payload = os.pread(self._handle, int(self._sizes[row]), place - 1)
        if google_crc32c.value(payload) == self._checksums[row]:
            return payload
        self._places[row] = 0
        return None

    def write(self, row: int, payload: bytes) -> None:
        """Keeps a row's payload, if there is room, and if it is not there."""
        with self._guard:
            begin = self._end
            if row in self or begin + len(payload) > self._most:
                return
            self._end = begin + len(payload)
        try:
            os.pwrite(self._handle, payload, begin)
        except OSError as error:
            if not is_full_disk(error):
                raise InputError(f"The cache cannot be written: {error.strerror}.", where=self._slot.folder) from None
            log.warning("the disk of %s is full, so rows that come from now on are fetched again", self._slot.folder)
            self._most = 0
            return
        self._places[row] = begin + 1
