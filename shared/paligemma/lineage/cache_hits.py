"""Cached steps of a run: a step that the runner serves from its cache leaves no record, so one is written for it."""

from __future__ import annotations

from paligemma.artifacts.record import Record, render_record
from paligemma.artifacts.recording import attempt_name, keep_file
from paligemma.artifacts.results import reused_record
from paligemma.lineage.index import Index
from paligemma.lineage.queries import by_hash, run_tasks

_NOT_STEPS = ("champion",)  # from another run, for comparison on purpose


def record_cached(index: Index, run: str) -> list[Record]:
    """Writes and returns a record for each step of a run whose artifact came from another run's step."""
    tasks = run_tasks(index, run)
    own = {task["task"] for task in tasks}
    written = []
    for one in (one for task in tasks for one in task["inputs"]):
        if one["record"] is None or one["run"] == run or one["role"] in _NOT_STEPS:
            continue
        made = by_hash(index, one["record"])
        if made is None or made["task"] in own:
            continue
        own.add(made["task"])
        made.pop("id")
        record = reused_record(Record.model_validate(made), run, made["task"], attempt_name(), tasks[0]["started"])
        keep_file(index.root, f"{run}/{record.task}/{record.attempt}.json", render_record(record))
        written.append(record)
    return written
