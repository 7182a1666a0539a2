"""Saves predictions batch by batch, so that no row is decoded twice, whatever fails or stops later.

    part-5f0c91d2.jsonl    one batch: a line with its determining values and the lines' checksum, then a line per row

Each part is written atomically under a unique name. Parts that are incomplete, or belong to another model, other rows, other
settings or other code, are ignored.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c

import paligemma
from paligemma.artifacts.record import canonical_sha256, file_sha256
from paligemma.errors import DamagedError
from paligemma.evaluation.predict import Prediction
from paligemma.foreign_json import parse_json
from paligemma.storage import folders
from paligemma.storage.disk_space import explain_full_disk
from paligemma.storage.failures import StorageUnavailableError
from paligemma.storage.files import write_file
from paligemma.storage.location import parse_location

log = logging.getLogger("paligemma.evaluate")

FORMAT = 1
_PREFIX = "part-"
_DECODING_CODE = (
    "checkpoints",
    "data",
    "decoding",
    "models",
    "model.py",
    "precision.py",
    "runtime/sharding.py",
    "evaluation/predict.py",
)


class KeptPredictions:
    """The predictions of one model on one data set with one way of decoding.

    Attributes:
        location: their folder or prefix.
        seconds: decoding time of all saved batches, over all attempts.
    """

    def __init__(self, location: str | Path, determined_by: Mapping[str, object]) -> None:
        """Reads and writes nothing yet.

        Args:
            location: a local folder or a `gs://` prefix.
            determined_by: JSON values that determine the answers.
        """
        self.location = parse_location(location)
        self.seconds = 0.0
        self._key = canonical_sha256({"format": FORMAT, **determined_by})

    def read(self, row_ids: Sequence[str]) -> dict[int, Prediction]:
        """The saved predictions by row number.

        Args:
            row_ids: every row's hash; a prediction with another row's hash counts as damaged.
        """
        found: dict[int, Prediction] = {}
        self.seconds = 0.0
        others = 0
        names = self._names()
        with ThreadPoolExecutor(folders.readers(self.location)) as pool:
            for name, data in zip(names, pool.map(self._read_part, names), strict=True):
                try:
                    head, rows = _parsed(data)
                    if head["key"] != self._key:
                        others += 1
                        continue
                    if any(p.row_id != row_ids[number] for number, p in rows.items()):
                        raise ValueError("it is of other rows")
                    seconds = float(head["seconds"])
                except (DamagedError, ValueError, KeyError, TypeError, IndexError) as error:
                    log.warning("%s is damaged, and passed over: %r", self.location / name, error)
                    continue
                found.update(rows)
                self.seconds += seconds
        if others:
            what = "of another model, other records, other settings or other code"
            log.info("%d batches kept in %s are %s, and passed over", others, self.location, what)
        if found:
            log.info("%d of %d rows were decoded before, and are kept in %s", len(found), len(row_ids), self.location)
        return found

    def add(self, batch: Sequence[tuple[int, Prediction]], seconds: float) -> None:
        """Saves a batch: predictions by row number, and its decoding time in seconds."""
        lines = "".join(json.dumps([number, dataclasses.asdict(p)]) + "\n" for number, p in batch).encode()
        head = {"key": self._key, "seconds": seconds, "rows": len(batch), "crc32c": google_crc32c.value(lines)}
        with explain_full_disk(self.location):
            write_file(self.location / f"{_PREFIX}{secrets.token_hex(8)}.jsonl", json.dumps(head).encode() + b"\n" + lines)
        self.seconds += seconds

    def remove(self) -> None:
        """Removes every part, once the evaluation is published. Leaves other files in the folder.

        Parts that cannot be removed only give a warning, since they do no harm.
        """
        try:
            for name in self._names(_PREFIX, f".{_PREFIX}"):  # a killed write leaves the latter
                folders.remove_file(self.location / name)
            folders.remove_empty(self.location)
        except (OSError, StorageUnavailableError) as error:
            log.warning("%s holds predictions that are not needed any more, and cannot be removed: %s", self.location, error)

    def _read_part(self, name: str) -> bytes:
        try:
            return folders.read_file(self.location / name) or b""
        except DamagedError:  # its bytes do not match the service's checksum
            return b""

    def _names(self, *prefixes: str) -> list[str]:
        names = folders.list_files(self.location)
        return sorted(name for name in names if name.startswith(prefixes or _PREFIX) and "/" not in name)


def decoding_code_sha256() -> str:
    """Hash of all code that decides the answers, but not of the code that judges and shows them."""
    top = Path(paligemma.__file__).parent
    files = [file for name in _DECODING_CODE for file in ([top / name] if name.endswith(".py") else (top / name).rglob("*.py"))]
    return canonical_sha256({file.relative_to(top).as_posix(): file_sha256(file) for file in files})


def _parsed(data: bytes) -> tuple[dict, dict[int, Prediction]]:
    """Parses a part: its first line, and its predictions by row number."""
    first, _, lines = data.partition(b"\n")
    head = parse_json(first, "its first line", "A part")
    if head["crc32c"] != google_crc32c.value(lines):
        raise ValueError("its checksum is another")
    rows = {}
    for line in lines.splitlines():
        number, values = parse_json(line, "a line", "A part", kind=list, nonfinite=True)
        rows[number] = Prediction(**values | {"references": tuple(values["references"])})
    if len(rows) != head["rows"]:
        raise ValueError("rows are missing")
    return head, rows
