"""The lineage page of a root: collects its data and renders it. The page is one file, and fetches nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from paligemma.artifacts.pages import way
from paligemma.artifacts.record import ROWS_FILE
from paligemma.lineage.index import Index
from paligemma.lineage.queries import list_runs, run_summary, run_tasks
from paligemma.reports.page import render


def page_data(index: Index, limit: int, most_rows: int, runs: list[str] | None = None, beside: Path | None = None) -> dict:
    """The page's data as a JSON value.

    Args:
        index: the index.
        limit: maximum number of runs, newest first.
        most_rows: maximum number of searchable data rows over all lists of rows, newest runs first.
        runs: names of the runs to show instead of the newest.
        beside: the page's folder, for links to the artifacts' pages.
    """
    names = [run["run"] for run in list_runs(index, limit)] if runs is None else runs
    shown, artifacts, lists = [], {}, {}
    for name in names:
        tasks = run_tasks(index, name)
        code = {}
        numbers = index.ask("SELECT id FROM records WHERE run = ? ORDER BY started, path", name)
        for record in (index.body(number) for (number,) in numbers):
            code[record["task"]] = {
                key: record["producer"][key] for key in ("git_sha", "git_dirty", "image", "python", "device", "packages")
            }
            if record["artifact"]:
                artifacts[record["sha256"]] = _artifact(record, beside)
        for task in tasks:
            task["code"] = code[task["task"]]
            task["artifacts"] = [made["record"] for made in task["artifacts"]]
        shown.append(run_summary(index, name) | {"steps": tasks})
    wanted = dict.fromkeys(made["rows_sha256"] for made in artifacts.values() if made["rows_sha256"])
    if most_rows:
        index.refresh_rows()
    left, complete = most_rows, True
    for sha256 in wanted:
        found = index.ask(
            "SELECT row, line, name, source FROM rows JOIN row_sets ON row_sets.id = row_set"
            " WHERE sha256 = ? ORDER BY source, line LIMIT ?",
            sha256, left + 1,
        )  # fmt: skip
        if len(found) > left or not most_rows:
            complete = False
            continue
        left -= len(found)
        lists[sha256] = [
            [row["row"].hex(), f"{row['line']} of {row['source']}" if row["source"] else row["line"], row["name"]]
            for row in found
        ]
    (total,) = index.ask("SELECT COUNT(DISTINCT run) FROM records")[0]
    return {
        "root": str(index.root),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "total_runs": total,
        "runs": shown,
        "artifacts": artifacts,
        "rows": lists,
        "rows_complete": complete,
    }


def render_page(data: dict) -> str:
    """The page as HTML."""
    return render("lineage.html", data=data)


def _artifact(record: dict, beside: Path | None) -> dict:
    made = record["artifact"]
    rows = [file["sha256"] for file in made["files"] if file["path"] == ROWS_FILE]
    return {
        "run": record["run"],
        "task": record["task"],
        "attempt": record["attempt"],
        "type": made["type"],
        "uri": made["uri"],
        "page": way(beside, made["uri"]) if beside is not None else None,
        "tree_sha256": made["tree_sha256"],
        "bytes": made["bytes"],
        "rows": made["rows"],
        "rows_sha256": rows[0] if rows else None,
        "signed": record["signature"] is not None,
        "files": [[file["path"], file["sha256"], file["bytes"]] for file in made["files"]],
    }
