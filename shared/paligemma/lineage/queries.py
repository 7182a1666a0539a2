"""Questions that a reviewer asks of an index. Answers are JSON values, which the command prints and the page shows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from paligemma.errors import InputError, did_you_mean
from paligemma.lineage.index import Index, unpack
from paligemma.lineage.record import ROWS_FILE

RELEASE_COMPONENT = "publish"
SUMMARY_COMPONENT = "summarize"
MODEL_TYPES = ("tuned-model",)
EVALUATION_TYPES = ("evaluation",)
_NOT_CONTENTS = ("against",)  # such an input is looked at, and changes no row of what is made
_NOT_TRAINED = ("validation records",)
_SHOWN_ROWS = 20
_KEY_BYTES = 16  # of a hash, in the index
_ENDS = ("failed", "preempted", "running", "succeeded")


def list_runs(index: Index, limit: int = 50, status: str = "", component: str = "") -> list[dict]:
    """Runs, the newest first: when they began, how they ended, their steps, releases and seconds."""
    found = []
    for run in run_names(index, status, component):
        if len(found) == limit:
            break
        entry = run_summary(index, run)
        if not status or entry["status"] == status:
            found.append(entry)
    return found


def run_names(index: Index, status: str = "", component: str = "") -> list[str]:
    """All runs, the newest first; if given, only those with an attempt that ended so, and with one of this component."""
    names = index.ask(
        "SELECT run, MIN(started) AS began FROM records WHERE (?1 = '' OR run IN (SELECT run FROM records WHERE status = ?1))"
        " AND (?2 = '' OR run IN (SELECT run FROM records WHERE component = ?2)) GROUP BY run ORDER BY began DESC, run DESC",
        status, component,
    )  # fmt: skip
    return [run for run, _ in names]


def run_summary(index: Index, run: str) -> dict:
    """A run in a few words."""
    tasks = run_tasks(index, run)
    own = [task for task in tasks if task["component"] != SUMMARY_COMPONENT]
    costs = [attempt["cost_usd"] for task in tasks for attempt in task["attempts"] if attempt["cost_usd"] is not None]
    return {
        "run": run,
        "started": min(task["started"] for task in tasks),
        "status": worst(task["status"] for task in own or tasks),
        "tasks": len(own),
        "failed": [task["task"] for task in own if task["status"] != "succeeded"],
        "cached": [task["task"] for task in own if task["cached_from"]],
        "attempts": sum(len(task["attempts"]) for task in own),
        "released": any(task["component"] == RELEASE_COMPONENT and task["status"] == "succeeded" for task in own),
        "seconds": round(sum(attempt["seconds"] for task in own for attempt in task["attempts"]), 3),
        "cost_usd": round(sum(costs), 6) if costs else None,
        "metrics": {name: value for task in own for name, value in task["metrics"].items()},
    }


def worst(statuses: Iterable[str]) -> str:
    """How things ended together: as the one that ended worst."""
    found = set(statuses)
    return next((status for status in _ENDS if status in found), "succeeded")


def run_tasks(index: Index, run: str) -> list[dict]:
    """The tasks of a run in the order they began, each as its last attempt left it, with all attempts.

    Raises:
        InputError: there is no such run.
    """
    bodies: dict[str, list[dict]] = {}
    for number, body in index.ask("SELECT id, body FROM records WHERE run = ? ORDER BY started, path", run):
        values = unpack(body) | {"id": number}
        bodies.setdefault(values["task"], []).append(values)
    if not bodies:
        known = [name for (name,) in index.ask("SELECT DISTINCT run FROM records ORDER BY started DESC LIMIT 1000")]
        raise InputError(f"There is no run {run!r}.", expected=did_you_mean(run, known))
    return [_task(name, found) for name, found in bodies.items()]


def _task(name: str, bodies: list[dict]) -> dict:
    ended = {body["attempt"] for body in bodies if body["status"] != "running"}
    bodies = [body for body in bodies if body["status"] != "running" or body["attempt"] not in ended]
    last = bodies[-1]
    ids = dict.fromkeys(body["attempt"] for body in bodies)
    by_attempt = {attempt: [body for body in bodies if body["attempt"] == attempt] for attempt in ids}
    return {
        "task": name,
        "component": last["producer"]["component"],
        "status": last["status"],
        "started": last["started"],
        "cached_from": last["cached_from"],
        "metrics": last["metrics"],
        "error": last["error"],
        "artifacts": [_reference(body) for body in bodies if body["artifact"] and body["attempt"] == last["attempt"]],
        "inputs": last["inputs"],
        "parameters": last["producer"]["parameters"],
        "attempts": [
            {
                "attempt": attempt,
                "status": worst(body["status"] for body in of_attempt),
                "started": of_attempt[0]["started"],
                "finished": of_attempt[-1]["finished"],
                "seconds": max(body["seconds"] for body in of_attempt),
                "cost_usd": of_attempt[-1]["cost_usd"],
                "error": of_attempt[-1]["error"],
            }
            for attempt, of_attempt in by_attempt.items()
        ],
    }


def show(index: Index, name: str) -> dict:
    """A run, or a record in full with who used its artifact.

    Raises:
        InputError: there is neither.
    """
    if index.ask("SELECT 1 FROM records WHERE run = ? LIMIT 1", name):
        return run_summary(index, name) | {"kind": "run", "steps": run_tasks(index, name)}
    record = find_record(index, name)
    used = [_reference(index.body(number)) | {"role": role} for number, role in users(index, record)]
    return {"kind": "artifact", "record": record, "used_by": used}


def find_record(index: Index, name: str) -> dict:
    """The record that a user means: by its artifact's address or path, the hash of the record or of the artifact (as many
    digits as it takes), `RUN/TASK`, or an attempt. Of several with the same artifact, the newest.

    Raises:
        InputError: there is none, or there are several.
    """
    found = _find(index, name)
    if not found:
        known = [output for (output,) in index.ask("SELECT DISTINCT output FROM records ORDER BY started DESC LIMIT 1000")]
        raise InputError(
            f"There is no artifact, record or task {name!r} below {index.root}.", expected=did_you_mean(name, known)
        )
    bodies = [index.body(number) | {"id": number} for number in found]
    if len({(body["output"], body["artifact"] and body["artifact"]["tree_sha256"]) for body in bodies}) > 1:
        shown = "".join(f"\n    {body['sha256'][:16]}  {body['output']}" for body in bodies[:10])
        raise InputError(f"{name!r} stands for {len(bodies)} artifacts:{shown}", fix="pass one of these")
    return bodies[-1]


def _find(index: Index, name: str) -> list[int]:
    def numbers(condition: str, *values: object) -> list[int]:
        return [number for (number,) in index.ask(f"SELECT id FROM records WHERE {condition} ORDER BY started, path", *values)]

    is_hash = re.fullmatch(r"[0-9a-f]{6,64}", name) is not None
    if is_hash and (found := numbers("sha256 >= ?1 AND sha256 < ?1 || 'g' OR tree >= ?1 AND tree < ?1 || 'g'", name)):
        return found
    address = name.rstrip("/") if "://" in name else str(Path(name).absolute())
    if found := numbers("output = ? AND status != 'running'", address) or numbers("output = ?", address):
        return found[-1:]
    run, _, task = name.partition("/")
    if task:
        return numbers("run = ? AND task = ? AND status != 'running'", run, task)[-1:]
    return numbers("attempt = ?", name) if re.match(r"\d{8}T", name) else []


def users(index: Index, record: dict) -> list[tuple[int, str]]:
    """Who used a record's artifact, and as what: steps that ended, by number, and the role that it had."""
    return _users(index, record["sha256"], record["artifact"]["tree_sha256"] if record["artifact"] else None)


def _users(index: Index, sha256: str, tree: str | None) -> list[tuple[int, str]]:
    """By the record's hash, or, where no record is named, by the artifact's."""
    found = index.ask(
        "SELECT inputs.record, role FROM inputs JOIN records ON records.id = inputs.record"
        " WHERE (made_by = ?1 OR made_by IS NULL AND inputs.sha256 = ?2) AND status != 'running' AND component != ?3",
        sha256, tree, SUMMARY_COMPONENT,
    )  # fmt: skip
    return [(number, role) for number, role in found]


def trace(index: Index, name: str) -> dict:
    """Where an artifact comes from, back to what no step made: each step, nearest first, with code, image and parameters.

    Raises:
        InputError: there is no such artifact.
    """
    first = find_record(index, name)
    steps, sources, missing = [], [], []
    seen, waiting = {first["sha256"]}, [first]
    while waiting:
        record = waiting.pop(0)
        steps.append(_step(record))
        for one in record["inputs"]:
            if one["record"] is None:
                sources.append({**one, "used_by": f"{record['run']}/{record['task']}"})
            elif one["record"] not in seen:
                seen.add(one["record"])
                maker = by_hash(index, one["record"])
                if maker is None:
                    missing.append({**one, "used_by": f"{record['run']}/{record['task']}"})
                else:
                    waiting.append(maker)
    return {"artifact": _reference(first), "steps": steps, "sources": sources, "missing": missing}


def by_hash(index: Index, sha256: str) -> dict | None:
    """The record with this hash."""
    found = index.ask("SELECT id, body FROM records WHERE sha256 = ? LIMIT 1", sha256)
    return unpack(found[0]["body"]) | {"id": found[0]["id"]} if found else None


def _step(record: dict) -> dict:
    producer, made = record["producer"], record["artifact"]
    weights = [file for file in made["files"] if file["path"].endswith((".npz", ".safetensors"))] if made else []
    return _reference(record) | {
        "git_sha": producer["git_sha"],
        "git_dirty": producer["git_dirty"],
        "image": producer["image"],
        "packages": producer["packages"],
        "parameters": producer["parameters"],
        "metrics": record["metrics"],
        "weights": {file["path"]: file["sha256"] for file in weights},
        "inputs": record["inputs"],
    }


def impact(index: Index, name: str) -> dict:
    """What an artifact, a data row or an image went into: models, evaluations and releases.

    Args:
        index: the index.
        name: an artifact as for `find_record`, or an input that no step made (its path or hash); a row's id, `FILE:LINE`, or
            the hash, name or file of an image. Each hash needs only as many digits as tell it from others, and at least 6.

    Raises:
        InputError: it is nothing that is known.
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
        waiting += [(user, how) for user, how in _users(index, sha256, tree) if how not in (_NOT_CONTENTS if by_row else ())]
    groups: dict[str, list[dict]] = {"models": [], "validated": [], "evaluations": [], "releases": [], "others": []}
    for number in sorted(reached):
        record = index.body(number)
        if record["status"] != "succeeded":
            continue
        groups[_group(record, reached[number])].append(_reference(record) | {"as": sorted(reached[number])})
    return {**what, **groups}


def _group(record: dict, roles: set[str]) -> str:
    made = record["artifact"]["type"]
    if record["producer"]["component"] == RELEASE_COMPONENT:
        return "releases"
    if made in MODEL_TYPES:
        return "validated" if roles <= set(_NOT_TRAINED) else "models"
    return "evaluations" if made in EVALUATION_TYPES else "others"


def _starts(index: Index, name: str) -> tuple[dict[int, str], dict]:
    """The records that what a user names is in, or is an input of."""
    if _find(index, name):
        record = find_record(index, name)
        return dict(users(index, record)), {"kind": "artifact", "artifact": _reference(record)}
    address = name if "://" in name else str(Path(name).absolute())
    found = index.ask("SELECT record, role FROM inputs WHERE uri = ?1 OR sha256 = ?2", address, name)
    if re.fullmatch(r"[0-9a-f]{6,63}", name):
        found += index.ask("SELECT record, role FROM inputs WHERE sha256 >= ?1 AND sha256 < ?1 || 'g'", name)
    if found:
        return dict(found), {"kind": "source", "source": name}
    kind, rows = _find_rows(index, name)
    if not rows:
        raise InputError(
            f"{name!r} is no artifact, row or image below {index.root}.",
            expected="an artifact's address or hash, a row id, FILE:LINE of the data, or an image's file, name or hash",
            fix="`paligemma lineage list` and `show` name artifacts; rows.jsonl in records names rows and images",
        )
    sets = sorted({row["sha256"] for row in rows})
    marks = ", ".join("?" * len(sets))
    holders = index.ask(f"SELECT id FROM records WHERE rows_sha256 IN ({marks}) AND status = 'succeeded'", *sets)
    shown = [{"row": row["row"].hex(), "image": row["name"], "line": row["line"]} for row in rows[:_SHOWN_ROWS]]
    return {number: "rows" for (number,) in holders}, {
        "kind": kind,
        "rows": shown,
        "lists": len(sets),
    }


def _find_rows(index: Index, name: str) -> tuple[str, list]:
    """The places of a row in all lists of rows, or of an image; and which it is."""
    index.refresh_rows()
    select = "SELECT rows.*, row_sets.sha256 FROM rows JOIN row_sets ON row_sets.id = row_set WHERE "
    file, _, line = name.rpartition(":")
    if line.isdigit() and file:
        address = file if "://" in file else str(Path(file).absolute())
        holders = index.ask(
            "SELECT DISTINCT rows_sha256 FROM records JOIN inputs ON inputs.record = records.id"
            " WHERE inputs.role = 'data' AND inputs.uri = ? AND rows_sha256 NOT NULL", address
        )  # fmt: skip
        at_line = select + "row_sets.sha256 = ? AND line = ?"
        keys = {row["row"] for (sha,) in holders for row in index.ask(at_line, sha, int(line))}
        return "row", [row for key in sorted(keys) for row in index.ask(select + "row = ?", key)]
    if Path(name).is_file():
        with Path(name).open("rb") as opened:
            image = hashlib.file_digest(opened, "sha256").digest()[:_KEY_BYTES]
        return "image", index.ask(select + "image = ?", image)
    if re.fullmatch(r"[0-9a-f]{6,64}", name):
        digits = name[: 2 * _KEY_BYTES]
        bounds = bytes.fromhex(digits.ljust(2 * _KEY_BYTES, "0")), bytes.fromhex(digits.ljust(2 * _KEY_BYTES, "f"))
        if found := index.ask(select + "row BETWEEN ? AND ?", *bounds):
            return "row", found
        return "image", index.ask(select + "image BETWEEN ? AND ?", *bounds)
    return "image", index.ask(select + "name = ?", name)


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
    """The leaves of two JSON values that differ; null stands for one that is not there."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return [
        {"key": key, "before": old.get(key), "after": new.get(key)} for key in {**old, **new} if old.get(key) != new.get(key)
    ]


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, value


def _last_record(index: Index, run: str, task: str) -> dict:
    found = index.ask(
        "SELECT body FROM records WHERE run = ? AND task = ? ORDER BY status = 'running', started DESC, path DESC LIMIT 1",
        run,
        task,
    )
    return unpack(found[0]["body"])


def _code(record: dict) -> dict:
    producer = record["producer"]
    return {key: producer[key] for key in ("git_sha", "git_dirty", "image", "python", "device", "packages")}


def _sources(record: dict) -> dict:
    return {one["role"]: one["sha256"] for one in record["inputs"] if one["record"] is None}


def _diff_rows(index: Index, one: dict, two: dict) -> dict:
    old, new = (_row_set(index, record) for record in (one, two))
    if old is None or new is None or old == new:
        return {}
    query = (
        "SELECT row, line, name FROM rows WHERE row_set = ?1"
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
            return index.ask("SELECT id FROM row_sets WHERE sha256 = ?", file["sha256"])[0]["id"]
    return None


def _shown(row: object) -> dict:
    return {"line": row["line"], "image": row["name"], "row": row["row"].hex()}


def _reference(record: dict) -> dict:
    made = record["artifact"]
    return {
        "run": record["run"],
        "task": record["task"],
        "attempt": record["attempt"],
        "component": record["producer"]["component"],
        "status": record["status"],
        "output": record["output"],
        "type": made["type"] if made else None,
        "tree_sha256": made["tree_sha256"] if made else None,
        "rows": made["rows"] if made else None,
        "record": record["sha256"],
    }


def to_json(answer: object) -> str:
    """An answer as `--json` prints it."""
    return json.dumps(answer, indent=2, ensure_ascii=False)
