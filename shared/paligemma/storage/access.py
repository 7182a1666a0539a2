"""Turns the operating system's refusals to write to a path into our own errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paligemma.errors import InputError

_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP}


@contextmanager
def explain_refusal(place: Path, fix: str = "choose another place") -> Iterator[None]:
    """Turns a refusal by the operating system into an error that says what is wrong with a path.

    Raises:
        InputError: the path is read-only or belongs to somebody else, something is in the way, or the name is invalid.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or place
        if error.errno in _NOT_ALLOWED:
            raise InputError(
                f"{place} cannot be written: {error.strerror}.", where=where, fix=f"make it yours, or {fix}"
            ) from None
        if error.errno in _IN_THE_WAY:
            raise InputError(
                f"{place} cannot be made: {error.strerror}.", where=where, fix=f"remove what is in its way, or {fix}"
            ) from None
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{place} is too long a name for this disk.", fix=fix) from None
        raise
