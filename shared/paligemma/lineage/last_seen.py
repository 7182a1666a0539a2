"""The record hashes that `verify` saw below a root, kept in a file elsewhere.

Signatures tell who wrote a record, but not that more records existed: deleting a root's newest records and artifacts leaves a
valid earlier state. Only a memory elsewhere can tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from paligemma.errors import InputError
from paligemma.foreign_json import read_model
from paligemma.safe_names import RelativePath, Sha256
from paligemma.storage.atomic import write_file


class _Seen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    records: dict[RelativePath, Sha256]


def read_seen(path: Path) -> dict[str, str]:
    """The hashes of records by path below `lineage`; empty if there is no such file yet.

    Raises:
        InputError: the file is something else.
    """
    return dict(read_model(path, _Seen, "What was seen before", error=InputError).records) if path.exists() else {}


def write_seen(path: Path, hashes: Mapping[str, str]) -> None:
    """Writes the hashes, and replaces the earlier ones."""
    write_file(path, json.dumps({"records": dict(sorted(hashes.items()))}, indent=2) + "\n")
