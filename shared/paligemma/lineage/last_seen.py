"""What `verify` saw of a root, kept in a file elsewhere.

Signatures tell who wrote a record, and not that there were more: whoever takes the newest records of a root away, with their
artifacts, leaves a whole earlier state of it. Only somebody who remembers can tell.
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
    """The hashes of records by their paths below `lineage`; none if there is no such file yet.

    Raises:
        InputError: it is another file.
    """
    return dict(read_model(path, _Seen, "What was seen before", error=InputError).records) if path.exists() else {}


def write_seen(path: Path, hashes: Mapping[str, str]) -> None:
    """Writes them, in place of what was seen before."""
    write_file(path, json.dumps({"records": dict(sorted(hashes.items()))}, indent=2) + "\n")
