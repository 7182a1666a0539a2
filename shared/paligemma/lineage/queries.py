"""A reviewer's queries to an index. Answers are JSON values, which the command prints and the page shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from paligemma.artifacts.store import artifact_at
from paligemma.errors import InputError, near_match
from paligemma.lineage.index import Index, unpack
from paligemma.storage.location import absolute_uri
from paligemma.terminal import printable_json

RELEASE_COMPONENT = "publish"
SUMMARY_COMPONENT = "summarize"
_ENDS = ("failed", "preempted", "running", "succeeded")


def list_runs(index: Index, limit: int = 50, status: str = "", component: str = "") -> list[dict]:
    """Runs, newest first: start, status, steps, releases, and duration in seconds."""
    found = []
    for run in run_names(index, status, component):
        if len(found) == limit:
            break
        entry = run_summary(index, run)
        if not status or entry["status"] == status:
            found.append(entry)
    return found


def run_names(index: Index, status: str = "", component: str = "") -> list[str]:
    """Names of all runs, newest first; optionally only those with an attempt of this status, and of this component."""
    names = index.ask(
        "SELECT run, MIN(started) AS began FROM records WHERE (?1 = '' OR run IN (SELECT run FROM records WHERE status = ?1))"
        " AND (?2 = '' OR run IN (SELECT run FROM records WHERE component = ?2)) GROUP BY run ORDER BY began DESC, run DESC",
        status, component,
    )  # fmt: skip
    return [run for run, _ in names]


def run_summary(index: Index, run: str) -> dict:
    """A summary of a run."""
    tasks = run_tasks(index, run)
    own = [task for task in tasks if task["component"] != SUMMARY_COMPONENT]
    costs = [attempt["cost_usd"] for task in tasks for attempt in task["attempts"] if attempt["cost_usd"] is not None]
    return {
        "run": run,
        "job": _job(tasks),
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


def _job(tasks: list[dict]) -> str | None:
    """The runner's name of the run if it differs; the exit step learns it."""
    for task in tasks:
        said = task["parameters"].get("status") if task["component"] == SUMMARY_COMPONENT else None
        if isinstance(said, dict) and said.get("job"):
            return str(said["job"]).rpartition("/")[2]
    return None


def worst(statuses: Iterable[str]) -> str:
    """The worst of several statuses."""
    found = set(statuses)
    return next((status for status in _ENDS if status in found), "succeeded")


def run_tasks(index: Index, run: str) -> list[dict]:
    """The tasks of a run in the order of their start, each with its last state and all attempts.

    Raises:
        InputError: there is no such run.
    """
    bodies: dict[str, list[dict]] = {}
    for number, body in index.ask("SELECT id, body FROM records WHERE run = ? ORDER BY started, path", run):
        values = unpack(body) | {"id": number}
        bodies.setdefault(values["task"], []).append(values)
    if not bodies:
        known = [name for (name,) in index.ask("SELECT DISTINCT run FROM records ORDER BY started DESC LIMIT 1000")]
        raise InputError(
            f"There is no run {run!r}.", expected=near_match(run, known) or "a run that `paligemma lineage list` names"
        )
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
        "artifacts": [reference(body) for body in bodies if body["artifact"] and body["attempt"] == last["attempt"]],
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
    """A run's tasks, or a full record with the users of its artifact.

    Raises:
        InputError: there is no such run or record.
    """
    if index.ask("SELECT 1 FROM records WHERE run = ? LIMIT 1", name):
        return run_summary(index, name) | {"kind": "run", "steps": run_tasks(index, name)}
    record = find_record(index, name)
    used = [reference(index.body(number)) | {"role": role} for number, role in users(index, record)]
    return {"kind": "artifact", "record": record, "used_by": used}


def find_record(index: Index, name: str) -> dict:
    """The record that a user names: by its artifact's address or path (absolute, or relative to the root); the hash of the
    record or artifact, or its first digits; `RUN/TASK`; an attempt; or a release's version. Among records of the same artifact,
    the newest of those that made it, and not of those that took it over.

    Raises:
        InputError: no record matches, or several do.
    """
    found = find_numbers(index, name)
    if not found:
        refuse_run(index, name)
        known = [output for (output,) in index.ask("SELECT DISTINCT output FROM records ORDER BY started DESC LIMIT 1000")]
        raise InputError(
            f"There is no artifact {name!r} below {shown_roots(index)}.",
            expected=near_match(name, run_names(index)[:1000] + known)
            or "an artifact's folder or address, its hash or its record's, RUN/TASK, or a release's version",
            fix="`paligemma lineage list` names runs, `show RUN` their artifacts",
        )
    bodies: list[dict] = [index.body(number) | {"id": number} for number in found]
    if len({(body["output"], body["artifact"] and body["artifact"]["tree_sha256"]) for body in bodies}) > 1:
        shown = "".join(f"\n    {body['sha256'][:16]}  {body['output']}" for body in bodies[:10])
        raise InputError(f"{name!r} stands for {len(bodies)} artifacts:{shown}", fix="pass one of these")
    return ([body for body in bodies if not body["cached_from"]] or bodies)[-1]


def refuse_run(index: Index, name: str) -> None:
    """Refuses a run's name where an artifact's is needed, and lists the run's artifacts.

    Raises:
        InputError: the name is a run's.
    """
    if not index.ask("SELECT 1 FROM records WHERE run = ? LIMIT 1", name):
        return
    made = [f"{name}/{task['task']}" for task in run_tasks(index, name) if task["artifacts"]]
    raise InputError(
        f"{name!r} is a run, not an artifact.",
        expected=" or ".join(made) or "a run that made one",
        fix="pass one of its artifacts",
    )


def find_numbers(index: Index, name: str) -> list[int]:
    """Numbers of the records that a name may stand for, as in `find_record`; empty for an unknown name."""

    def numbers(condition: str, *values: object) -> list[int]:
        return [number for (number,) in index.ask(f"SELECT id FROM records WHERE {condition} ORDER BY started, path", *values)]

    is_hash = re.fullmatch(r"[0-9a-f]{6,64}", name) is not None
    if is_hash and (found := numbers("sha256 >= ?1 AND sha256 < ?1 || 'g' OR tree >= ?1 AND tree < ?1 || 'g'", name)):
        return found
    address = name.rstrip("/") if "://" in name else absolute_uri(artifact_at(Path(name)))
    if found := numbers("output = ? AND status != 'running'", address) or numbers("output = ?", address):
        made_it = [number for number in found if not index.body(number)["cached_from"]]  # and did not take it over
        return (made_it or found)[-1:]
    run, _, task = name.partition("/")
    if task and (found := numbers("run = ? AND task = ? AND status != 'running'", run, task)):
        return found[-1:]
    if re.match(r"\d{8}T", name) and (found := numbers("attempt = ?", name)):
        return found
    # In a copied root, addresses differ from those in the records; a release is named by its version.
    roots = [f"{root}/" for root in index.roots if address.startswith(f"{root}/")]
    below = address.removeprefix(max(roots, key=len)) if roots else name.strip("/")
    for ending in (f"/{below}", f"/releases/{below.rpartition('/')[2]}/release"):
        if found := numbers("id IN (SELECT id FROM records WHERE substr(output, -length(?1)) = ?1)", ending):
            return found
    return []


def users(index: Index, record: dict) -> list[tuple[int, str]]:
    """The users of a record's artifact: record numbers of finished steps, and the artifact's role in each."""
    source = record["cached_from"]  # whoever used what was taken over names the record of the one that made it
    return users_of(
        index,
        source["record"] if source else record["sha256"],
        record["artifact"]["tree_sha256"] if record["artifact"] else None,
    )


def users_of(index: Index, sha256: str, tree: str | None) -> list[tuple[int, str]]:
    """Users by the record's hash, or, if an input names no record, by the artifact's hash."""
    found = index.ask(
        "SELECT inputs.record, role FROM inputs JOIN records ON records.id = inputs.record"
        " WHERE (made_by = ?1 OR made_by IS NULL AND inputs.sha256 = ?2) AND status != 'running' AND component != ?3",
        sha256, tree, SUMMARY_COMPONENT,
    )  # fmt: skip
    return [(number, role) for number, role in found]


def trace(index: Index, name: str) -> dict:
    """The origin of an artifact, back to external inputs: each step, nearest first, with code, image and parameters.

    A run's name stands for its release, else its tuned model, else its last artifact.

    Raises:
        InputError: there is no such artifact.
    """
    first = find_record(index, _purpose(index, name) or name)
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
    return {"artifact": reference(first), "steps": steps, "sources": sources, "missing": missing, **scope(index)}


def scope(index: Index) -> dict[str, list[str]]:
    """The scope of an answer: the roots that were read, and known roots that could not be."""
    return {"looked_into": [str(root) for root in index.roots], "not_looked_into": index.unseen}


def shown_roots(index: Index) -> str:
    """The roots as text for an error."""
    unseen = f" (not looked into: {', '.join(index.unseen)})" if index.unseen else ""
    return " or ".join(str(root) for root in index.roots) + unseen


def _purpose(index: Index, run: str) -> str | None:
    """The hash of the record of a run's main artifact; None if it made nothing, or does not exist."""
    found = index.ask(
        "SELECT sha256 FROM records WHERE run = ?1 AND tree NOT NULL AND component != ?2"
        " ORDER BY type = 'release' DESC, type = 'tuned-model' DESC, started DESC, path DESC LIMIT 1",
        run, SUMMARY_COMPONENT,
    )  # fmt: skip
    return found[0]["sha256"] if found and not find_numbers(index, run) else None


def by_hash(index: Index, sha256: str) -> dict | None:
    """The record with this hash."""
    found = index.ask("SELECT id, body FROM records WHERE sha256 = ? LIMIT 1", sha256)
    return unpack(found[0]["body"]) | {"id": found[0]["id"]} if found else None


def _step(record: dict) -> dict:
    producer, made = record["producer"], record["artifact"]
    weights = [file for file in made["files"] if file["path"].endswith((".npz", ".safetensors"))] if made else []
    return reference(record) | {
        "git_sha": producer["git_sha"],
        "git_dirty": producer["git_dirty"],
        "image": producer["image"],
        "packages": producer["packages"],
        "parameters": producer["parameters"],
        "metrics": record["metrics"],
        "weights": {file["path"]: file["sha256"] for file in weights},
        "inputs": record["inputs"],
    }


def reference(record: dict) -> dict:
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
    """An answer as the text that `--json` prints."""
    return printable_json(json.dumps(answer, indent=2, ensure_ascii=False))
