"""Writes a run's results: the trained parameters, the facts needed to use them, and how they were trained."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from paligemma.artifacts.pages import neighbours
from paligemma.artifacts.recording import about_attempt
from paligemma.checkpoints.describe import describe_opened
from paligemma.checkpoints.open_checkpoint import Checkpoint
from paligemma.checkpoints.tokenizer_file import TOKENIZER_FILE
from paligemma.checkpoints.tuned import Base, TunedDescription, write_tuned
from paligemma.reports.page import render, write_page
from paligemma.training.fit import Progress
from paligemma.training.recipe import Recipe
from paligemma.yaml_text import dump_yaml

SUMMARY_FILE = "summary.json"
REPORT_FILE = "training.html"
_PHASE = "seconds_"


def write_results(
    folder: Path,
    base: Checkpoint,
    recipe: Recipe,
    trained: Mapping[str, np.ndarray],
    entries: list[dict],
    progress: Progress,
    seconds: float,
    device: str,
    frozen_identical: bool,
    grey_range: str = "",
) -> None:
    """Writes a tuned model, `summary.json` and `training.html` into a folder.

    Args:
        folder: an existing folder.
        base: the checkpoint that was trained.
        recipe: how it was trained.
        trained: the trained parameters by name.
        entries: entries of `metrics.jsonl`.
        progress: other facts about the run.
        seconds: time of this process's steps.
        device: number and kind of devices.
        frozen_identical: whether the frozen parameters were compared with the base's and are equal.
        grey_range: the training data's grey range; empty: as stated in each file.
    """
    steps = [entry for entry in entries if "loss" in entry]
    last, values = steps[-1]["step"], recipe.model_dump(mode="json")
    write_tuned(
        folder,
        trained,
        TunedDescription(
            base=Base(uri=base.location, weights_file=base.weights.name, weights_sha256=base.weights_sha256),
            config=base.config,
            recipe=values,
            lora=recipe.lora if recipe.trainable == "lora" else None,
            steps=last,
            grey_range=grey_range,
        ),
    )
    if base.tokenizer is not None:
        (folder / TOKENIZER_FILE).write_bytes(base.tokenizer.read_bytes())
    trained_count = sum(array.size for array in trained.values())
    total = sum(int(np.prod(array.shape)) for array in base.arrays.values())
    summary = {
        "steps": last,
        "first_loss": steps[0]["loss"],
        **final_figures(entries),
        "seconds": seconds,
        "device": device,
        "trained_parameters": trained_count,
        "frozen_parameters": total - sum(array.size for name, array in trained.items() if name in base.arrays),
        "frozen_parameters_identical": frozen_identical,
        "skipped_steps": progress.skipped,
        "validations": progress.validations,
        "best_validation": min(progress.validations, key=lambda one: one[1], default=None),
        "stopped_early": progress.stopped,
    }
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n")
    write_page(folder / REPORT_FILE, lambda: render_training(summary, recipe, trained, entries, describe_opened(base)))


def render_training(
    summary: Mapping, recipe: Recipe, trained: Mapping[str, np.ndarray], entries: list[dict], model: str
) -> str:
    """The page as HTML.

    Args:
        summary: contents of `summary.json`.
        recipe, trained, entries: see `write_results`.
        model: a line that describes the base.
    """
    return render(
        "training.html",
        model=model,
        about=about_attempt(),
        links=neighbours(),
        summary=summary,
        recipe=recipe,
        recipe_text=dump_yaml(recipe.model_dump(mode="json")),
        trained=[
            {"name": name, "shape": list(array.shape), "dtype": str(array.dtype), "bytes": array.nbytes}
            for name, array in trained.items()
        ],
        curve=lambda key: [(entry["step"], entry[key]) for entry in entries if key in entry],
        phases=_seconds_by_phase([entry for entry in entries if "loss" in entry]),
    )


def final_figures(entries: list[dict]) -> dict[str, float]:
    """Figures that compare runs: the mean loss over the last tenth of the steps, and speed."""
    steps = [entry for entry in entries if "loss" in entry]
    tail = [entry["loss"] for entry in steps[-max(1, len(steps) // 10) :]]
    rates = sorted(entry["examples_per_second"] for entry in steps)
    return {"final_loss": sum(tail) / len(tail), "examples_per_second": rates[len(rates) // 2]}


def _seconds_by_phase(steps: list[dict]) -> dict[str, float]:
    """Seconds by phase, summed over all entries."""
    total: Counter[str] = Counter()
    for entry in steps:
        total.update({key.removeprefix(_PHASE): value for key, value in entry.items() if key.startswith(_PHASE)})
    return dict(sorted(total.items()))
