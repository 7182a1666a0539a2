"""How two runs differ."""

from __future__ import annotations

import sqlite3
from collections import Counter

from paligemma.artifacts.record import ROWS_FILE
from paligemma.json_leaves import leaves
from paligemma.lineage.index import Index, unpack
from paligemma.lineage.queries import run_tasks

_SHOWN_ROWS = 20


def diff(index: Index, before: str, after: str) -> dict:
    """How two runs differ: parameters, code, packages, sources, data rows and metrics of each task.

    Raises:
        InputError: there is no such run.
    """
    index.refresh_rows()
    old, new = ({task["task"]: task for task in run_tasks(index, run)} for run in (before, after))
    tasks = {}
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            tasks[name] = {"only_in": before if name in old else after}
            continue
        one, two = (_last_record(index, run, name) for run in (before, after))
        found = {
            "status": changes({"status": one["status"]}, {"status": two["status"]}),
            "parameters": changes(one["producer"]["parameters"], two["producer"]["parameters"]),
            "code": changes(_code(one), _code(two)),
            "sources": changes(_sources(one), _sources(two)),
            "metrics": changes(one["metrics"], two["metrics"]),
            "rows": _diff_rows(index, one, two),
        }
        tasks[name] = {key: value for key, value in found.items() if value}
    return {"before": before, "after": after, "tasks": tasks}


def changes(before: dict, after: dict) -> list[dict]:
    """The leaves in which two JSON values differ; null stands for a missing leaf."""
    old, new = dict(leaves(before)), dict(leaves(after))
    return [
        {"key": key, "before": old.get(key), "after": new.get(key)} for key in {**old, **new} if old.get(key) != new.get(key)
    ]


def _last_record(index: Index, run: str, task: str) -> dict:
    found = index.ask(
        "SELECT body FROM records WHERE run = ? AND task = ? ORDER BY status = 'running', started DESC, path DESC LIMIT 1",
        run,
        task,
    )
    return unpack(found[0]["body"])


def of_file(source: str) -> dict:
    """The part of a row's description that names its file, if its data set has several."""
    return {"source": source} if source else {}


def _code(record: dict) -> dict:
    producer = record["producer"]
    return {key: producer[key] for key in ("git_sha", "git_dirty", "image", "python", "device", "packages")}


def _sources(record: dict) -> dict:
    inputs = [one for one in record["inputs"] if one["record"] is None]
    several = Counter(one["role"] for one in inputs)  # a mixture has several files of data
    return {one["role"] + (f" {one['uri']}" if several[one["role"]] > 1 else ""): one["sha256"] for one in inputs}


def _diff_rows(index: Index, one: dict, two: dict) -> dict:
    old, new = (_row_set(index, record) for record in (one, two))
    if old is None or new is None or old == new:
        return {}
    query = (
        "SELECT row, line, name, source FROM rows WHERE row_set = ?1"
        " AND row NOT IN (SELECT row FROM rows WHERE row_set = ?2) ORDER BY line"
    )
    removed, added = index.ask(query, old, new), index.ask(query, new, old)
    by_image: dict[str, list] = {}
    for row in removed:
        by_image.setdefault(row["name"], []).append(row)
    changed, only_new = [], []
    for row in added:  # another text for the same image file, or another image under its name
        pairs = by_image.get(row["name"])
        changed.append((pairs.pop(0), row)) if pairs else only_new.append(row)
    gone = [row for rows in by_image.values() for row in rows]
    return {
        "added": len(only_new),
        "removed": len(gone),
        "changed": len(changed),
        "examples": {
            "added": [_shown(row) for row in only_new[:_SHOWN_ROWS]],
            "removed": [_shown(row) for row in sorted(gone, key=lambda row: row["line"])[:_SHOWN_ROWS]],
            "changed": [{"before": _shown(a), "after": _shown(b)} for a, b in changed[:_SHOWN_ROWS]],
        },
    }


def _row_set(index: Index, record: dict) -> int | None:
    files = record["artifact"]["files"] if record["artifact"] else []
    for file in files:
        if file["path"] == ROWS_FILE:
            found = index.ask("SELECT id FROM row_sets WHERE sha256 = ?", file["sha256"])
            return found[0]["id"] if found else None
    return None


def _shown(row: sqlite3.Row) -> dict:
    return {"line": row["line"], "image": row["name"], "row": row["row"].hex()} | of_file(row["source"])
