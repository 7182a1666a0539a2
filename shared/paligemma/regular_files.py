"""Opens files of foreign origin: regular files only, nothing that hangs, is endless, or acts when opened."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegularError(OSError):
    """The path is not a regular file. `strerror` says what it is."""


def open_regular(path: str | Path) -> BufferedReader:
    """Opens a file for reading.

    Raises:
        NotRegularError: it is a folder, FIFO, socket or device, or its name is invalid.
        OSError: the file is missing or may not be read.
    """
    try:
        # A device may act when opened, so check the type first, and again after opening.
        _confirm_regular(os.stat(path).st_mode, path)
        # Without O_NONBLOCK, opening a FIFO waits for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:  # a NUL, or half of a surrogate pair
        raise NotRegularError(errno.EINVAL, "that is not a file's name", repr(str(path))) from None
    try:
        _confirm_regular(os.fstat(handle).st_mode, path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _confirm_regular(mode: int, path: str | Path) -> None:
    if not stat.S_ISREG(mode):
        raise NotRegularError(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file", str(path))
