"""Rows that prepare_data rejected. They are not in the list of rows, but in an artifact's file that says why."""

from __future__ import annotations

import logging

from paligemma.artifacts.record import REJECTED_FILE, file_sha256
from paligemma.errors import DamagedError, PaliGemmaError
from paligemma.foreign_json import read_json_lines
from paligemma.lineage.index import Index
from paligemma.lineage.relocation import Made, Places, version_folder
from paligemma.storage.files import local_file
from paligemma.storage.folders import kind_of
from paligemma.storage.location import Location

log = logging.getLogger("paligemma.lineage")


def rejections(index: Index, data: str, sha256: str, line: int) -> list[dict]:
    """Where and why each run that read a data file rejected one of its lines.

    The list is part of the artifact and is deleted with it. Warns if a list is gone or contradicts its record.

    Args:
        index: the index.
        data: the file's address in the records.
        sha256: its hash, which identifies a moved file; empty if the file is missing.
        line: line number, from 1.
    """
    found = index.ask(
        "SELECT DISTINCT records.id FROM records JOIN inputs ON inputs.record = records.id"
        " WHERE inputs.role = 'data' AND (inputs.uri = ? OR inputs.sha256 = ?) AND tree NOT NULL ORDER BY started, path",
        data, sha256,
    )  # fmt: skip
    if not found:
        return []
    made = index.ask("SELECT component, sha256, output, started FROM records WHERE tree NOT NULL")
    places = [(root, Places(root, [Made(*row) for row in made])) for root in index.roots]
    answer: list[dict] = []
    for (number,) in found:
        record = index.body(number)
        if record["cached_from"] is None:
            answer += _rejections(places, record, line, data_names(record, data, sha256))
    return answer


def data_names(record: dict, data: str, sha256: str) -> set[str]:
    """The names that a data file has among those that a record's data set was made of; an empty one if it is the only one.

    Args:
        record: the record. If it names sources, their numbers are in the order of its inputs.
        data, sha256: see `rejections`.
    """
    inputs = [one for one in record["inputs"] if one["role"] == "data"]
    named = record["producer"]["parameters"].get("sources")
    numbers = {"1": ""}
    if isinstance(named, dict):
        numbers = {str(one.get("number")): name for name, one in named.items() if isinstance(one, dict)}
    of_file = (str(number) for number, one in enumerate(inputs, 1) if one["uri"] == data or one["sha256"] == sha256)
    return {numbers[number] for number in of_file if number in numbers}


def _rejections(places: list[tuple[Location, Places]], record: dict, line: int, sources: set[str]) -> list[dict]:
    listed = next((file for file in record["artifact"]["files"] if file["path"] == REJECTED_FILE), None)
    if listed is None or not listed["bytes"]:
        return []
    named = {"run": record["run"], "task": record["task"], "output": record["output"]}
    try:
        return [
            {**named, "line": line, "code": str(remark["code"]), "message": str(remark["message"])}
            for remark in _remarks(places, record, listed["sha256"])
            if remark["line"] == line and remark.get("source", "") in sources
        ]
    except (OSError, LookupError, PaliGemmaError) as error:
        why = error.what if isinstance(error, PaliGemmaError) else f"{REJECTED_FILE} cannot be read: {error}"
        log.warning("the rows that %s/%s rejected are unknown: %s", record["run"], record["task"], why)
        return []


def _remarks(places: list[tuple[Location, Places]], record: dict, sha256: str) -> list[dict]:
    """The lines of an artifact's list. Reads only below the roots, since a record may name any location."""
    found = [root / path for root, place in places if (path := place.below_root(record["output"])) is not None]
    files = [place / f"{version_folder(record['artifact']['version'], place)}{REJECTED_FILE}" for place in found]
    file = next((file for file in files if kind_of(file) is not None), None)
    if file is None:
        raise DamagedError(f"{REJECTED_FILE} is gone.", where=files[0] if files else None)
    with local_file(file) as copy:
        if file_sha256(copy) != sha256:
            raise DamagedError(f"{REJECTED_FILE} was altered, or another artifact took its place.", where=file)
        return list(read_json_lines(copy, "The list of rejected rows"))
