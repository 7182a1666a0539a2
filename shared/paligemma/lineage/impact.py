"""Finds what an artifact, a data row or an image went into."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from paligemma.artifacts.record import file_sha256
from paligemma.errors import InputError, PaliGemmaError
from paligemma.lineage.diff import of_file
from paligemma.lineage.index import KEY_BYTES, Index
from paligemma.lineage.queries import (
    RELEASE_COMPONENT,
    find_numbers,
    find_record,
    reference,
    refuse_run,
    scope,
    shown_roots,
    users,
    users_of,
)
from paligemma.lineage.rejected import data_names, rejections
from paligemma.redaction import name_of_address
from paligemma.storage.files import local_file
from paligemma.storage.location import parse_location
from paligemma.web_address import is_web_address

MODEL_TYPES = ("tuned-model",)
EVALUATION_TYPES = ("evaluation",)
_NOT_CONTENTS = ("against", "baseline", "champion")  # inputs for comparison only: they are not part of the output
_NOT_TRAINED = ("validation records",)
_SHOWN_ROWS = 20


def impact(index: Index, name: str) -> dict:
    """The models, evaluations and releases that an artifact, a data row or an image went into, and where a row was rejected.

    Args:
        index: the index.
        name: an artifact as for `find_record`; an external input (its path or hash); a row's id or `FILE:LINE`; or an image's
            hash, name or file. A hash may be cut to 6 or more digits, if it stays unique.

    Raises:
        InputError: the name is unknown.
    """
    starts, what = _starts(index, name)
    reached: dict[int, set[str]] = {}
    waiting = [(number, role) for number, role in starts.items()]
    by_row = what["kind"] in ("row", "image")
    while waiting:
        number, role = waiting.pop()
        roles = reached.setdefault(number, set())
        if role in roles:
            continue
        again = bool(roles)
        roles.add(role)
        if again:
            continue
        ((sha256, tree),) = index.ask("SELECT sha256, tree FROM records WHERE id = ?", number)
        waiting += [(user, how) for user, how in users_of(index, sha256, tree) if how not in (_NOT_CONTENTS if by_row else ())]
    groups: dict[str, list[dict]] = {"models": [], "validated": [], "evaluations": [], "releases": [], "others": []}
    for number in sorted(reached):
        record = index.body(number)
        if record["status"] != "succeeded":
            continue
        groups[_group(record, reached[number])].append(reference(record) | {"as": sorted(reached[number])})
    return {**what, **groups, **scope(index)}


def _group(record: dict, roles: set[str]) -> str:
    made = record["artifact"]["type"]
    if record["producer"]["component"] == RELEASE_COMPONENT:
        return "releases"
    if made in MODEL_TYPES:
        return "validated" if roles <= set(_NOT_TRAINED) else "models"
    return "evaluations" if made in EVALUATION_TYPES else "others"


def _starts(index: Index, name: str) -> tuple[dict[int, str], dict]:
    """The records that have the named thing as their artifact, row or input."""
    if find_numbers(index, name):
        record = find_record(index, name)
        return dict(users(index, record)), {"kind": "artifact", "artifact": reference(record)}
    address = name if "://" in name else str(Path(name).absolute())
    found = index.ask("SELECT record, role FROM inputs WHERE uri = ?1 OR sha256 = ?2", address, name)
    if re.fullmatch(r"[0-9a-f]{6,63}", name):
        found += index.ask("SELECT record, role FROM inputs WHERE sha256 >= ?1 AND sha256 < ?1 || 'g'", name)
    if found:
        return {row["record"]: row["role"] for row in found}, {"kind": "source", "source": name}
    kind, rows = _find_rows(index, name)
    rejected = rejections(index, at[0], data_hash(at[0]), at[1]) if (at := _line_of(name)) else []
    if not rows and not rejected:
        refuse_run(index, name)
        raise InputError(
            f"{name!r} is not an artifact, row or image below {shown_roots(index)}.",
            expected="an artifact's address or hash, a row id, FILE:LINE of the data, or an image's file, name or hash",
            fix="`paligemma lineage list` and `show` name artifacts; rows.jsonl in records names rows and images",
        )
    sets = sorted({row["sha256"] for row in rows})
    marks = ", ".join("?" * len(sets))
    holders = index.ask(f"SELECT id FROM records WHERE rows_sha256 IN ({marks}) AND status = 'succeeded'", *sets)
    shown = [
        {"row": row["row"].hex(), "image": row["name"], "line": row["line"]} | of_file(row["source"])
        for row in rows[:_SHOWN_ROWS]
    ]
    return {number: "rows" for (number,) in holders}, {
        "kind": kind,
        "rows": shown,
        "lists": len(sets),
        "rejected": rejected,
    }


def _line_of(name: str) -> tuple[str, int] | None:
    """The data file's address and the line number, if a name is `FILE:LINE`."""
    file, _, line = name.rpartition(":")
    if not file or not re.fullmatch(r"[0-9]{1,18}", line):
        return None
    return file if "://" in file else str(Path(file).absolute()), int(line)


def data_hash(address: str) -> str:
    """The current hash of a data file, which identifies it even if it was moved; empty if the file is missing."""
    try:
        with local_file(parse_location(address)) as path:
            return file_sha256(path)
    except (OSError, PaliGemmaError):
        return ""


def _find_rows(index: Index, name: str) -> tuple[str, list]:
    """The kind of a name (row or image), and its places in all lists of rows."""
    index.refresh_rows()
    select = "SELECT rows.*, row_sets.sha256 FROM rows JOIN row_sets ON row_sets.id = row_set WHERE "
    if at := _line_of(name):
        address, line = at
        holders = index.ask(
            "SELECT DISTINCT records.id, rows_sha256 FROM records JOIN inputs ON inputs.record = records.id"
            " WHERE inputs.role = 'data' AND (inputs.uri = ? OR inputs.sha256 = ?) AND rows_sha256 NOT NULL",
            address, sha256 := data_hash(address),
        )  # fmt: skip
        places = {(sha, name) for number, sha in holders for name in data_names(index.body(number), address, sha256)}
        at_line = select + "row_sets.sha256 = ? AND source = ? AND line = ?"
        keys = {row["row"] for sha, name in places for row in index.ask(at_line, sha, name, line)}
        return "row", [row for key in sorted(keys) for row in index.ask(select + "row = ?", key)]
    if Path(name).is_file():
        with Path(name).open("rb") as opened:
            image = hashlib.file_digest(opened, "sha256").digest()[:KEY_BYTES]
        return "image", index.ask(select + "image = ?", image)
    if re.fullmatch(r"[0-9a-f]{6,64}", name):
        digits = name[: 2 * KEY_BYTES]
        bounds = bytes.fromhex(digits.ljust(2 * KEY_BYTES, "0")), bytes.fromhex(digits.ljust(2 * KEY_BYTES, "f"))
        if found := index.ask(select + "row BETWEEN ? AND ?", *bounds):
            return "row", found
        return "image", index.ask(select + "image BETWEEN ? AND ?", *bounds)
    named = name_of_address(name) if is_web_address(name) else name
    return "image", index.ask(select + "name = ?", named)
