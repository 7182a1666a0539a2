"""Lineage at scale: 10,000 runs with 100,000 artifacts, indexed and asked.

    .venv/bin/python tests/benchmarks/lineage.py

Writes generated records as steps leave them, then times, in processes of their own, a plain sequential read of the same files
(`json.load` of each), the first index, another one with nothing new, and one query of each kind: a process that imports,
opens and refreshes the index, and answers. The files are in the page cache for all of them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from paligemma.artifacts.record import Record, record_sha256
from paligemma.artifacts.recording import FOLDER, ROWS_FOLDER

TASKS = ("fetch", "train", "validation", "preflight", "finetune", "evaluate", "evaluate-2", "export", "publish", "archive")
TYPES = {
    "train": "records",
    "validation": "records",
    "finetune": "tuned-model",
    "evaluate": "evaluation",
    "evaluate-2": "evaluation",
}
COMPONENTS = {"train": "prepare_data", "validation": "prepare_data", "evaluate-2": "evaluate"}
FILES = 8  # in an artifact
PARAMETERS = {f"parameter_{number}": number for number in range(30)}
PACKAGES = {f"package-{number}": f"1.{number}.0" for number in range(10)}
READ = "import json, sys, pathlib\nfor path in pathlib.Path(sys.argv[1]).rglob('*.json'):\n    json.loads(path.read_bytes())\n"
ASK = """
import sys
from paligemma.lineage import queries
from paligemma.lineage.diff import diff
from paligemma.lineage.impact import impact
from paligemma.lineage.index import Index
with Index(sys.argv[1]) as index:
    answer = {code}
    assert answer
"""


def write_runs(root: Path, runs: int, lists: int, rows: int) -> None:
    """Ten artifacts a run; `lists` lists of rows are used by turns, and each shares half its rows with the next."""
    kept = [write_rows(root, number, rows) for number in range(lists)]
    for number in range(runs):
        run, made = f"run-{number:06d}", {}
        for place, task in enumerate(TASKS):
            used = {"train": ["fetch"], "validation": ["fetch"], "finetune": ["fetch", "train", "validation"],
                    "evaluate": ["fetch", "validation"], "evaluate-2": ["finetune", "validation"], "export": ["finetune"],
                    "publish": ["export", "evaluate-2"], "archive": ["publish"]}.get(task, [])  # fmt: skip
            roles = {"train": "train records", "validation": "validation records"}
            inputs = [
                {
                    "role": roles.get(one, one),
                    "uri": f"{root}/{run}/{one}/x",
                    "sha256": made[one][0],
                    "record": made[one][1],
                    "run": run,
                }
                for one in used
            ]
            tree = digest(f"{run}/{task}") if task != "fetch" else digest("the one checkpoint")
            files = [{"path": f"file-{n}", "bytes": 1000, "sha256": digest(f"{tree}{n}")} for n in range(FILES)]
            if task == "train":
                files.append({"path": "rows.jsonl", "bytes": 1000, "sha256": kept[number % lists]})
            began = f"2026-{1 + number // 900:02d}-{1 + number // 30 % 28:02d}T{number % 24:02d}:{place:02d}:00.000+00:00"
            values = {
                "schema_version": 2, "run": run, "task": task, "attempt": f"2026T{number:06d}{place}", "status": "succeeded",
                "output": f"{root}/{run}/{task}/x",
                "artifact": {"type": TYPES.get(task, task), "uri": f"{root}/{run}/{task}/x", "version": None,
                             "tree_sha256": tree, "bytes": 8000, "rows": rows if task == "train" else None, "files": files},
                "producer": {"component": COMPONENTS.get(task, task), "parameters": PARAMETERS,
                             "parameters_sha256": digest("p"), "image": "x", "git_sha": "0" * 40, "git_dirty": False,
                             "packages": PACKAGES, "python": "3.11.0",
                             "device": None},
                "inputs": inputs, "cached_from": None, "metrics": {"loss": 1.0, "exact_match": 0.5}, "error": None,
                "started": began, "finished": began, "seconds": 1.0, "cost_usd": None,
            }  # fmt: skip
            values |= {"sha256": record_sha256(values), "signature": None}
            made[task] = (tree, values["sha256"])
            folder = root / FOLDER / run / task
            folder.mkdir(parents=True)
            (folder / f"{values['attempt']}.json").write_text(json.dumps(values, indent=2) + "\n")
    Record.model_validate(values)


def write_rows(root: Path, number: int, rows: int) -> str:
    first = number * rows // 2
    lines = [
        json.dumps(
            {"row_id": digest(f"row {n}"), "image_sha256": digest(f"image {n}"), "image_file": f"{n}.jpg", "line": n + 1}
        )
        for n in range(first, first + rows)
    ]
    data = "".join(f"{line}\n" for line in lines).encode()
    folder = root / FOLDER / ROWS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256(data).hexdigest()
    (folder / f"{sha256}.jsonl").write_bytes(data)
    return sha256


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def timed(code: str, root: Path) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code, str(root)], check=True)
    return time.monotonic() - started


def main(
    runs: Annotated[int, typer.Option(help="Runs of ten artifacts each.")] = 10_000,
    lists: Annotated[int, typer.Option(help="Different lists of data rows.")] = 50,
    rows: Annotated[int, typer.Option(help="Rows in each.")] = 10_000,
    repeat: Annotated[int, typer.Option(help="Times to ask each question.")] = 3,
) -> None:
    """Prints a table."""
    folder = Path(tempfile.mkdtemp(prefix="lineage-"))
    try:
        root = folder / "root"
        write_runs(root, runs, lists, rows)
        records = runs * len(TASKS)
        size = sum(path.stat().st_size for path in root.rglob("*.json"))
        print(f"{runs} runs, {records} records, {size / 1e6:.0f} MB; {lists} lists of {rows} rows\n")
        timed(READ, root)
        plain = min(timed(READ, root) for _ in range(repeat))
        print("| what | seconds | to the plain read |\n| --- | --- | --- |")
        print(f"| plain sequential JSON read | {plain:.2f} | 1.00 |")
        report = [("first index", timed(ASK.format(code="True"), root))]
        report.append(("lists of rows, once", timed(ASK.format(code="index.refresh_rows() or True"), root)))
        middle, row = f"run-{runs // 2:06d}", digest(f"row {lists * rows // 4}")
        questions = {
            "nothing new": "True",
            "list (50)": "queries.list_runs(index)",
            "list (50), by component": "queries.list_runs(index, component='publish')",
            "show RUN": f"queries.show(index, {middle!r})",
            "show ARTIFACT": f"queries.show(index, '{middle}/finetune')",
            "trace ARTIFACT": f"queries.trace(index, '{middle}/archive')",
            "impact ARTIFACT": f"impact(index, '{middle}/train')",
            "impact ROW": f"impact(index, {row!r})",
            "diff RUN RUN": f"diff(index, {middle!r}, 'run-{runs // 2 + 1:06d}')",
        }
        for name, code in questions.items():
            report.append((name, statistics.median(timed(ASK.format(code=code), root) for _ in range(repeat))))
        for name, seconds in report:
            print(f"| {name} | {seconds:.2f} | {seconds / plain:.2f} |", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
