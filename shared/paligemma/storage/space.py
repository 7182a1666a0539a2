"""Room on the disk, asked for before a long transfer begins rather than found missing at its end."""

from __future__ import annotations

import shutil
from pathlib import Path

from paligemma.errors import InputError

MARGIN = 64 * 1024 * 1024
"""Bytes that are left free."""


def check_space(folder: Path, wanted: int) -> None:
    """Confirms that `wanted` bytes fit on the disk of an existing folder.

    Raises:
        InputError: they do not.
    """
    free = shutil.disk_usage(folder).free
    if wanted + MARGIN > free:
        raise InputError(
            f"There is not enough room in {folder}.",
            expected=f"{(wanted + MARGIN) / 1e9:.2f} GB free, found {free / 1e9:.2f} GB",
            fix="free some, or point the output, $PALIGEMMA_CACHE or $TMPDIR to a larger disk",
        )
