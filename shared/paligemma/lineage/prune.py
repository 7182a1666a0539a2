"""Deletes artifacts that no release came from, so the lineage of releases stays complete. Records always stay.

A record names a location where its artifact once was. The location may hold something else by now, or the record may be forged
to delete something. So only artifacts that are below the root and match their record exactly are deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from paligemma.artifacts.record import RECORD_FILE, parse_record
from paligemma.artifacts.recording import attempt_name, keep_file
from paligemma.artifacts.signing import sign
from paligemma.errors import InputError, PaliGemmaError
from paligemma.lineage.index import Index, unpack
from paligemma.lineage.queries import RELEASE_COMPONENT, by_hash
from paligemma.lineage.record_folder import PRUNED_ENDING, PruneMark
from paligemma.lineage.relocation import Made, Places, version_folder
from paligemma.storage.folders import Entry, first_link, kind_of, read_file, remove_files, walk
from paligemma.storage.location import Location
from paligemma.storage.versions import keeps_versions

_WRITTEN_ANEW = "somebody rewrote it meanwhile"


def plan(index: Index, older_than_days: float, registries: Sequence[Index] = ()) -> dict:
    """Which artifacts can be deleted and which must stay, with reasons; the JSON value that `--dry-run` shows.

    An artifact stays if a release is made from it, directly or indirectly; if it is a release itself; if it was made, or taken
    over by a run, less than `older_than_days` ago; or if its run may still be running. `not_ours` lists locations that hold
    something other than what was recorded.

    Args:
        index: index of the root to prune.
        older_than_days: minimum age in days.
        registries: indexes of other roots whose releases count too.
    """
    released = [_releases(one) for one in (index, *registries)]
    used = [one["record"] for records in released[1:] for record in records for one in record["inputs"] if one["record"]]
    foreign = [record["id"] for record in (by_hash(index, sha256) for sha256 in used) if record]
    kept = _ancestry(index, [record["id"] for record in released[0]] + foreign)
    releases = [record for records in released for record in records]
    limit = datetime.now(UTC) - timedelta(days=min(100 * 365, older_than_days))
    under_way = {
        run
        for run, started in index.ask("SELECT run, started FROM records WHERE status = 'running'")
        if datetime.fromisoformat(started) > limit
    }
    gone = {sha256 for (sha256,) in index.ask("SELECT sha256 FROM pruned")}
    delete, not_ours, stay = [], [], {"releases": 0, "recent": 0, "under_way": 0}
    ground = _Ground(index)
    needed = {ground.key(index.body(number)) for number in kept}
    newest: dict[str, dict] = {}
    reused: dict[str, str] = {}  # when a later run took it over
    for number, body in index.ask("SELECT id, body FROM records WHERE type NOT NULL ORDER BY started, path"):
        record = unpack(body) | {"id": number}
        if record["cached_from"] is None:
            newest[ground.key(record)] = record
        else:
            reused[ground.key(record)] = record["started"]
    for key, record in newest.items():
        if record["id"] in kept or key in needed:
            stay["releases"] += 1
        elif record["run"] in under_way:
            stay["under_way"] += 1
        elif datetime.fromisoformat(max(record["started"], reused.get(key, ""))) > limit:
            stay["recent"] += 1
        else:
            found = ground.look(record, record["sha256"] in gone)
            entry = {"place": found.place, "type": record["artifact"]["type"], "bytes": record["artifact"]["bytes"]}
            entry |= {"record": record["sha256"], "run": record["run"], "task": record["task"]}
            if found.fault:
                not_ours.append(entry | {"why": found.fault})
            elif found.location is not None:
                delete.append(entry)
    return {
        "releases": len(releases),
        "delete": delete,
        "bytes": sum(entry["bytes"] for entry in delete),
        "not_ours": not_ours,
        "stay": stay,
    }


def delete(index: Index, planned: dict) -> None:
    """Deletes the artifacts in a plan, and leaves a mark beside each one's record.

    Checks each location again; artifacts that no longer match move to the plan's `not_ours`. In Cloud Storage, an object is
    deleted only if it is unchanged since this check.

    Raises:
        InputError: there is no release, so the plan would delete everything.
    """
    if not planned["releases"]:
        raise InputError(
            f"There is no release below {index.root}: nothing says what has to stay.",
            fix="pass --registry, publish a model first, or delete folders yourself",
        )
    ground, done = _Ground(index), []
    gone = {sha256 for (sha256,) in index.ask("SELECT sha256 FROM pruned")}
    for entry in planned["delete"]:
        record = by_hash(index, entry["record"])
        found = ground.look(record, entry["record"] in gone) if record else _Found(entry["place"], None, "its record is gone")
        if record is None or found.location is None:
            planned["not_ours"].append(entry | {"why": found.fault or "it is gone already"})
            continue
        if entry["record"] not in gone:
            mark = prune_mark(entry["record"], datetime.now(UTC).isoformat(timespec="seconds"))
            keep_file(index.root, f"{record['run']}/{record['task']}/{attempt_name()}{PRUNED_ENDING}", mark.render())
        kept = remove_files(found.location, found.files, last=RECORD_FILE)
        if RECORD_FILE in kept:
            planned["not_ours"].append(entry | {"why": _WRITTEN_ANEW})
            continue
        planned["not_ours"] += [entry | {"place": str(found.location / path), "why": _WRITTEN_ANEW} for path in kept]
        done.append(entry)
    planned["delete"], planned["bytes"] = done, sum(entry["bytes"] for entry in done)


def prune_mark(sha256: str, at: str) -> PruneMark:
    """The mark for deliberate deletion of the artifact whose record has this hash; signed if there is a key."""
    mark = PruneMark(pruned=sha256, at=at)
    return mark.model_copy(update={"signature": sign(mark.sha256)})


@dataclass(frozen=True)
class _Found:
    """What is at an artifact's location: `location` if it is the artifact, a fault if it is something else, or nothing.

    Attributes:
        files: the existing files of the artifact and its record.
    """

    place: str
    location: Location | None
    fault: str = ""
    files: tuple[Entry, ...] = ()


class _Ground:
    """The root of an index, with the locations of its artifacts."""

    def __init__(self, index: Index) -> None:
        self._root = index.root
        found = index.ask("SELECT component, sha256, output, started FROM records WHERE tree NOT NULL")
        self._places = Places(index.root, (Made(*row) for row in found))
        self._known = {self._places.below_root(row["output"]) for row in found} - {None}

    def key(self, record: dict) -> str:
        """A key that is equal for artifacts that replace one another."""
        return self._places.below_root(record["output"]) or record["output"]

    def look(self, record: dict, pruned: bool) -> _Found:
        """What is at the location of a record's artifact. Opens only its `lineage.json`."""
        path = self._places.below_root(record["output"])
        if path is None:
            return _Found(record["output"], None, "it is not below this root")
        place = self._root / path
        if kind_of(place) is None:
            return _Found(str(place), None)
        return self._look_at(place, path, record, pruned)

    def _look_at(self, place: Location, path: str, record: dict, pruned: bool) -> _Found:
        if (link := first_link(self._root, path)) is not None:
            return _Found(str(place), None, f"{link} is a link, or no folder")
        try:
            entries = list(walk(place))  # listed before the record is read, so that files written later are not deleted
            data = read_file(place / RECORD_FILE)
            beside = parse_record(data, place / RECORD_FILE) if data is not None else None
        except PaliGemmaError as error:
            return _Found(str(place), None, error.what)
        except OSError as error:
            return _Found(str(place), None, f"{error.filename} cannot be read: {error.strerror}")
        if beside is None and not (pruned and keeps_versions(place)):
            return _Found(str(place), None, "there is no lineage.json")
        if beside is not None and beside.sha256 != record["sha256"]:
            return _Found(str(place), None, "the lineage.json there is another one")
        if any(other != path and f"{other}/".startswith(f"{path}/") for other in self._known):
            return _Found(str(place), None, "another artifact is in it")
        if any(other != path and path.startswith(f"{other}/") for other in self._known):
            return _Found(str(place), None, "it is in another artifact")
        inside = version_folder(record["artifact"]["version"], place)
        own = {f"{inside}{file['path']}" for file in record["artifact"]["files"]} | {RECORD_FILE}
        if beside is not None and (extra := _not_recorded(place, entries, own)):
            return _Found(str(place), None, f"it holds {extra}, which its record does not list")
        return _Found(str(place), place, files=tuple(entry for entry in entries if entry.path in own))


def _not_recorded(place: Location, entries: Sequence[Entry], own: set[str]) -> str:
    """The first file, link or other entry at an artifact's location that is not its own; empty if there is none."""
    folders = {path[:end] for path in own for end, letter in enumerate(path) if letter == "/"}
    for entry in entries:
        if keeps_versions(place) and entry.path.startswith("version-"):
            continue  # leftovers of earlier versions; only this version's files are deleted
        if entry.kind == "folder" and entry.path in folders:
            continue
        if entry.kind != "file" or entry.path not in own:
            return entry.path
    return ""


def _releases(index: Index) -> list[dict]:
    found = index.ask("SELECT id FROM records WHERE component = ? AND status = 'succeeded'", RELEASE_COMPONENT)
    return [index.body(number) | {"id": number} for (number,) in found]


def _ancestry(index: Index, numbers: list[int]) -> set[int]:
    """These records, and those of everything that their artifacts were made from."""
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
