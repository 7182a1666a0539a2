"""What may be deleted without breaking the lineage of a release: artifacts that no release came from. Records always stay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from paligemma.errors import InputError
from paligemma.lineage.attempt import attempt_name, keep_file
from paligemma.lineage.index import PRUNED_ENDING, Index, unpack
from paligemma.lineage.places import Places, is_there
from paligemma.lineage.queries import RELEASE_COMPONENT, by_hash
from paligemma.lineage.record import RECORD_FILE
from paligemma.lineage.verify import prune_mark
from paligemma.storage.folders import remove_folder


def plan(index: Index, older_than_days: float, registries: Sequence[Index] = ()) -> dict:
    """Which artifacts could go and which must stay, with reasons; the JSON value that `--dry-run` shows.

    An artifact stays when a release is made from it at any remove, is a release itself, is younger than that many days, or
    belongs to a run that is perhaps still under way.

    Args:
        index: of the root to prune.
        older_than_days: see above.
        registries: of other roots, whose releases count too.
    """
    released = [_releases(one) for one in (index, *registries)]
    used = [one["record"] for records in released[1:] for record in records for one in record["inputs"] if one["record"]]
    foreign = [record["id"] for record in (by_hash(index, sha256) for sha256 in used) if record]
    kept = _ancestry(index, [record["id"] for record in released[0]] + foreign)
    releases = [record for records in released for record in records]
    limit = (datetime.now(UTC) - timedelta(days=older_than_days)).isoformat()
    under_way = {
        run for (run,) in index.ask("SELECT DISTINCT run FROM records WHERE status = 'running' AND started > ?", limit)
    }
    gone = {sha256 for (sha256,) in index.ask("SELECT sha256 FROM pruned")}
    delete, stay = [], {"releases": 0, "recent": 0, "under_way": 0}
    places = Places(index)
    needed = {str(places.of(index.body(number))) for number in kept}
    newest: dict[str, dict] = {}
    for number, body in index.ask("SELECT id, body FROM records WHERE type NOT NULL ORDER BY started, path"):
        record = unpack(body) | {"id": number}
        if record["cached_from"] is None and record["sha256"] not in gone:
            newest[record["output"]] = record
    for record in newest.values():
        place = places.of(record)
        if record["id"] in kept or str(place) in needed:
            stay["releases"] += 1
        elif record["run"] in under_way:
            stay["under_way"] += 1
        elif record["started"] > limit:
            stay["recent"] += 1
        elif is_there(place):
            made = record["artifact"]
            entry = {"place": str(place), "type": made["type"], "bytes": made["bytes"], "record": record["sha256"]}
            delete.append(entry | {"run": record["run"], "task": record["task"]})
    return {
        "releases": len(releases),
        "delete": delete,
        "bytes": sum(entry["bytes"] for entry in delete),
        "stay": stay,
    }


def delete(index: Index, planned: dict) -> None:
    """Deletes what a plan says, leaving for each artifact a mark with its record that says so.

    Raises:
        InputError: nothing is released, so that the plan would be to delete everything.
    """
    if not planned["releases"]:
        raise InputError(
            f"There is no release below {index.root}: nothing says what has to stay.",
            fix="pass --registry, publish a model first, or delete folders yourself",
        )
    now, places = datetime.now(UTC).isoformat(timespec="seconds"), Places(index)
    for entry in planned["delete"]:
        (found,) = index.ask("SELECT body FROM records WHERE sha256 = ? LIMIT 1", entry["record"])
        record = unpack(found["body"])
        name = f"{record['run']}/{record['task']}/{attempt_name()}{PRUNED_ENDING}"
        keep_file(index.root, name, (json.dumps(prune_mark(record, now), indent=2) + "\n").encode())
        remove_folder(places.of(record), RECORD_FILE)


def _releases(index: Index) -> list[dict]:
    found = index.ask("SELECT id FROM records WHERE component = ? AND status = 'succeeded'", RELEASE_COMPONENT)
    return [index.body(number) | {"id": number} for (number,) in found]


def _ancestry(index: Index, numbers: list[int]) -> set[int]:
    """These records and all that their artifacts were made from."""
    reached, waiting = set(numbers), list(numbers)
    while waiting:
        for number in _makers(index, waiting.pop()):
            if number not in reached:
                reached.add(number)
                waiting.append(number)
    return reached


def _makers(index: Index, number: int) -> list[int]:
    found = index.ask(
        "SELECT records.id FROM inputs JOIN records ON records.sha256 = inputs.made_by WHERE inputs.record = ?", number
    )
    return [number for (number,) in found]
