"""The hashes that files of checkpoints and models should have, for those whose format has no checksum."""

from __future__ import annotations

from pathlib import Path

from paligemma.artifacts.record import RECORD_FILE, file_sha256, read_record
from paligemma.checkpoints.sources.huggingface import expected_sha256
from paligemma.errors import DamagedError


def known_sha256(file: Path) -> str | None:
    """The hash that a file should have: of an artifact's file, as recorded; of one in Hugging Face's cache, its name there."""
    if (record := file.parent / RECORD_FILE).is_file():
        return {entry.path: entry.sha256 for entry in read_record(record.parent).artifact.files}.get(file.name)
    return expected_sha256(file.resolve())


def checked_sha256(file: Path) -> str:
    """Hash of a file.

    Raises:
        DamagedError: it is not the one that the file should have.
    """
    found, known = file_sha256(file), known_sha256(file)
    if known not in (None, found):
        raise DamagedError(
            "A file changed since it was recorded.",
            where=file,
            expected=f"sha256 {known}, found {found}",
            fix="fetch the checkpoint, or make the model, again",
        )
    return found
