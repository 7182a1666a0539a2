"""The demo: runs the whole DAG on the embedded checkpoint and scanned digits, and prints a table of results."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from components.presets import read_preset
from paligemma.artifacts.record import read_record
from paligemma.artifacts.store import localize
from paligemma.checkpoints.tuned import read_tuned
from paligemma.errors import DamagedError
from paligemma.foreign_json import read_json
from paligemma.storage.atomic import write_file
from paligemma.terminal import say, show_table
from pipelines.demo.digits import write_digits
from pipelines.run_end import ask_it
from pipelines.run_local import RunOutputs, run_pipeline

if TYPE_CHECKING:
    from kfp.local import DockerRunner, SubprocessRunner


def run_demo(folder: Path, runner: SubprocessRunner | DockerRunner | None = None) -> None:
    """Writes the data, runs the DAG, prints a table, and writes `summary.json`.

    Args:
        folder: folder for all output.
        runner: one of KFP's local runners; without it, each task is a subprocess.

    Raises:
        DamagedError: a frozen parameter differs from the base's.
    """
    started = time.monotonic()
    data = folder / "data"
    write_digits(data)
    parameters = {
        "train_data": str((data / "train.jsonl").absolute()),
        "validation_data": str((data / "validation.jsonl").absolute()),
        "source": "embedded:tiny",
        "recipe": read_preset("demo"),
        "decoding": "max_new_tokens: 8",
        "batch_size": 128,
        "registry": str((folder / "registry").absolute()),
    }
    outputs = run_pipeline(parameters, folder / "pipeline", runner)
    summary = summarize(outputs, time.monotonic() - started)
    write_file(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    show(summary, folder / "summary.json")
    say(f"Ask it: {ask_it(outputs.tuned, parameters)}")
    if not summary["frozen_parameters_identical"]:
        raise DamagedError("A parameter that should be frozen differs from the base checkpoint's.", where=outputs.tuned)


def summarize(outputs: RunOutputs, seconds: float) -> dict:
    """The run's results, from its artifacts."""
    tuned_model, of_base, of_tuned = map(localize, (outputs.tuned, outputs.base_evaluation, outputs.tuned_evaluation))
    training = read_json(tuned_model / "summary.json", "The summary of the training", nonfinite=True)
    base, tuned = (read_json(folder / "metrics.json", "The metrics", nonfinite=True) for folder in (of_base, of_tuned))
    records = {entry.role: Path(entry.uri) for folder in (tuned_model, of_tuned) for entry in read_record(folder).inputs}
    return {
        "base": {"exact_match": base["exact_match"], "by_question": base["by_question"]},
        "tuned": {"exact_match": tuned["exact_match"], "by_question": tuned["by_question"]},
        "examples": tuned["examples"],
        "trained": sorted(read_tuned(tuned_model).arrays),
        "frozen_parameters_identical": training["frozen_parameters_identical"],
        "seconds": round(seconds, 1),
        "tuned_model": str(tuned_model),
        "gate": read_json(of_tuned / "gate.json", "The decision")["why"],
        "release": outputs.release,
        "reports": {
            "train data": str(records["train records"] / "report.html"),
            "validation data": str(records["validation records"] / "report.html"),
            "training": str(tuned_model / "training.html"),
            "base": str(of_base / "report.html"),
            "base and tuned": str(of_tuned / "report.html"),
        },
    }


def show(summary: dict, file: Path) -> None:
    """Prints base and tuned model side by side, and where to find more."""
    table = Table(title=f"Exact match on {summary['examples']} held-out questions")
    table.add_column("question")
    for name in ("base", "tuned"):
        table.add_column(name, justify="right")
    base = {question["prefix"]: question for question in summary["base"]["by_question"]}
    for question in summary["tuned"]["by_question"]:
        both = (base[question["prefix"]]["exact_match"], question["exact_match"])
        table.add_row(question["prefix"], *(f"{100 * value:.1f} %" for value in both))
    table.add_section()
    table.add_row("all", *(f"{100 * summary[name]['exact_match']:.1f} %" for name in ("base", "tuned")), style="bold")
    show_table(table)
    identical = "bit-identical to the base's" if summary["frozen_parameters_identical"] else "NOT the base's"
    say(f"Frozen parameters: {identical}. {summary['seconds']:.0f} seconds.")
    for name, path in summary["reports"].items():
        say(f"  {name}: {os.path.relpath(path)}")
    say(f"Tuned model: {os.path.relpath(summary['tuned_model'])}")
    say(summary["gate"], lines=True)
    if summary["release"]:
        say(f"Release: {os.path.relpath(summary['release'])}")
    say(f"Summary: {os.path.relpath(file)}")
