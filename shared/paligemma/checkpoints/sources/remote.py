"""What remote sources have in common: their names in messages and records, and the error if one is unavailable."""

from __future__ import annotations

import re

from paligemma.redaction import without_secrets
from paligemma.storage.failures import StorageUnavailableError
from paligemma.storage.location import SCHEME

DOWNLOADS = 3
"""How often a file is fetched whose bytes arrive wrong."""


def is_remote(source: str) -> bool:
    """Whether we fetch a source from outside the storage that a step can name as an input."""
    return "://" in source and not source.startswith(SCHEME)


def is_immutable(source: str) -> bool:
    """Whether a source always gives the same files: a version of a Kaggle model, or a commit on Hugging Face."""
    return source.startswith("kaggle://") or bool(re.fullmatch(r"hf://[^@]+@[0-9a-f]{40}", source))


def redacted(source: str) -> str:
    """A source without possible secrets: the user, password, query and fragment of a web address."""
    return without_secrets(source)


def unavailable(source: str, error: Exception) -> StorageUnavailableError:
    """The error after the last attempt."""
    # Only the error's type: its text may hold a signed address.
    name = type(error).__name__
    return StorageUnavailableError(
        f"{redacted(source)} could not be fetched.", where=name, fix="run again; what has arrived is kept"
    )
