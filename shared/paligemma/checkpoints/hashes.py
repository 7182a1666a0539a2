"""Expected hashes of checkpoint and model files, for formats without checksums."""

from __future__ import annotations

from pathlib import Path

from paligemma.artifacts.record import RECORD_FILE, file_sha256, read_record
from paligemma.checkpoints.sources.huggingface import expected_sha256
from paligemma.errors import DamagedError


def known_sha256(file: Path) -> str | None:
    """A file's expected hash: from the record in an artifact, from the file's name in Hugging Face's cache; else None."""
    if (record := file.parent / RECORD_FILE).is_file():
        return {entry.path: entry.sha256 for entry in read_record(record.parent).artifact.files}.get(file.name)
    return expected_sha256(file.resolve())


def checked_sha256(file: Path) -> str:
    """Hash of a file.

    Raises:
        DamagedError: it is not the expected hash.
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
