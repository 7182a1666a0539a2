"""What became of a run, whatever became of it: its lineage on one page, and a message to whoever wants to know."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from components.summarize.webhook import notify
from paligemma.artifacts.record import Input
from paligemma.artifacts.recording import recorded, safe_name
from paligemma.artifacts.store import produce
from paligemma.command_line import say_moved
from paligemma.errors import InputError
from paligemma.foreign_json import SMALL_BYTES, parse_json
from paligemma.lineage.cache_hits import record_cached
from paligemma.lineage.index import Index
from paligemma.lineage.page import page_data, render_page
from paligemma.lineage.queries import SUMMARY_COMPONENT, run_summary, run_tasks
from paligemma.reports.page import write_page
from paligemma.storage.location import parse_location

log = logging.getLogger("paligemma.summarize")

ARTIFACT_TYPE = "summary"
_OF_A_STEP = ("task", "component", "status", "cached_from", "error", "artifacts")


@recorded("summarize")
def summarize_run(*, output: str, root: str, run: str, status: str, expected: str) -> None:
    """Writes summary.json and report.html of a run, and posts a message; see the command line."""
    name = safe_name(run)
    said = parse_json(status, "--status", "How the run ended", most=SMALL_BYTES, error=InputError) if status else {}
    with Index(root) as index:
        steps = bool(index.ask("SELECT 1 FROM records WHERE run = ? AND component != 'summarize' LIMIT 1", name))
        if steps:
            record_cached(index, name)
    with Index(root) as index:  # which now has what was cached
        inputs = run_records(index, name)
        summary = summarize(index, name, said, steps, [safe_name(task) for task in expected.split(",") if task])
        with produce(output, ARTIFACT_TYPE, "summarize", {"run": name, "status": said}, inputs) as draft:
            (draft.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
            runs = [name] if steps else []
            place = parse_location(output)
            beside = place.absolute() if isinstance(place, Path) else None
            data = functools.partial(page_data, index, limit=1, most_rows=0, runs=runs, beside=beside)
            write_page(draft.folder / "report.html", lambda: render_page(data()))
    log.info("%s", summary["text"])
    if notify({**summary, "summary": str(output)}):
        log.info("a notification was sent")


def summarize(index: Index, name: str, said: dict, steps: bool, expected: Sequence[str] = ()) -> dict:
    """The run in one JSON value; `text` is for people, and what chat programs show.

    What the runner says is only believed where it says that the run failed: KFP gives the state that its metadata store has of
    the DAG at that moment, be it RUNNING, and no error.
    """
    if not steps:
        state = said.get("state", "unknown")
        return {"run": name, "status": state, "error": said.get("error"), "text": f"{name}: {state}, and no step left a record"}
    found = run_summary(index, name)
    tasks = [task for task in run_tasks(index, name) if task["component"] != SUMMARY_COMPONENT]
    without = [task for task in expected if task not in {one["task"] for one in tasks}]
    failed = found["status"] == "succeeded" and (said.get("state") == "FAILED" or bool(without))
    status = "failed" if failed else found["status"]
    text = f"{name}: {status}, {len(tasks)} steps in {found['seconds']:.0f} s"
    failures = [f"{task['task']}: {task['error']['message']}" for task in tasks if task["error"]]
    killed = [f"{task['task']}: killed, as it left no word" for task in tasks if task["status"] == "running"]
    unheard = [f"no record of: {', '.join(without)}"] if without else []
    figures = [f"{key} {value:.4g}" for key, value in found["metrics"].items()]
    wrong = [*failures, *killed, *unheard]
    lines = [text, *wrong, *([", ".join(figures)] if figures else [])]
    return {
        **found,
        "status": status,
        "error": said.get("error") or (wrong[0] if wrong else None),
        "without_record": without,
        "text": "\n".join(lines),
        "steps": [{key: task[key] for key in _OF_A_STEP} for task in tasks],
    }


def run_records(index: Index, name: str) -> list[Input]:
    """Every record of the run as an input, so that the summary's record vouches for all of them."""
    found = index.ask("SELECT id FROM records WHERE run = ? AND status != 'running' ORDER BY started, path", name)
    records = [index.body(number) for (number,) in found]
    return [
        Input(
            role=record["task"],
            uri=record["output"],
            sha256=record["artifact"]["tree_sha256"] if record["artifact"] else record["sha256"],
            record=record["sha256"],
            run=record["run"],
        )
        for record in records
        if record["producer"]["component"] != "summarize"
    ]


if __name__ == "__main__":
    say_moved("components.summarize")
