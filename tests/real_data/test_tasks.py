"""Every published form is converted, prepared and judged by its task's metrics."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from mask_weights import random_weights, write_weights

from paligemma.evaluation.tasks import TASKS
from real_data.command_line import CommandLine, parse_summary
from real_data.conftest import Published, Run
from real_data.published import SPLITS
from real_data.sets import SETS

CONVERTED = [(name, split) for name, of in SETS.items() if of.convert for split in SPLITS]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "split"), CONVERTED)
def test_what_is_read_is_written_or_skipped(published: Published, name: str, split: str) -> None:
    summary = parse_summary(published.said[name, split])
    assert summary.read == published.counts[name, split][SETS[name].entries]
    assert summary.used + summary.skipped == summary.read
    rows = lines(published.rows(name, split))
    assert len(rows) == summary.rows
    listed = published.folder / f"{name}_{split}.jsonl.skipped.jsonl"
    reasons = Counter(entry["code"] for entry in lines(listed)) if listed.exists() else Counter()
    assert reasons.total() == summary.skipped
    expected = {"boxes": {"crowd", "box_too_small"}, "capitals": {"suffix_empty"}}  # water, islands of a pixel; no capital
    assert reasons.keys() <= expected.get(name, set())
    assert reasons["crowd"] == published.counts[name, split].get("crowds", 0)
    missing = [row["image"] for row in rows if not (published.images(name, split) / row["image"]).is_file()]
    assert missing == []


def test_there_are_thousands_of_rows_in_dozens_of_languages_and_hundreds_of_classes(published: Published) -> None:
    rows = [row for name in SETS for split in SPLITS for row in lines(published.rows(name, split))]
    assert len(rows) > 10_000
    assert len({row["suffix"] for row in rows}) > 5000
    assert published.counts["scripts", "train"]["languages"] > 50
    assert published.counts["labels", "train"]["labels"] > 300
    scripts = {ord(letter) >> 7 for row in lines(published.rows("scripts", "train")) for letter in row["suffix"]}
    assert len(scripts) > 20  # blocks of 128 characters


@pytest.mark.parametrize("name", [name for name in SETS if name != "vqa"])  # by which the DAG judges
def test_a_task_is_judged(published: Published, command_line: CommandLine, run: Run, name: str, tmp_path: Path) -> None:
    of, source, images = SETS[name], published.rows(name, "val"), published.images(name, "val")
    records, evaluation = tmp_path / "records", tmp_path / "evaluation"
    command_line.step("prepare_data", data=source, checkpoint="embedded:tiny", images=images, split="val", output=records)
    dataset = json.loads((records / "dataset.json").read_text())
    assert dataset["rows"] + sum(dataset["rejected"].values()) == len(lines(source))
    assert dataset["rejected"].keys() <= {"text_too_long"}  # names in scripts that the tiny tokenizer spells byte by byte
    command_line.step(
        "evaluate",
        checkpoint="embedded:tiny",
        tuned=run.tuned,
        records=records,
        task=of.task,
        batch_size=128,
        max_new_tokens=of.max_new_tokens,
        output=evaluation,
        **({"mask_decoder": write_weights(tmp_path / "decoder.npz", random_weights())} if of.task == "segment" else {}),
    )
    check_evaluation(evaluation, dataset["rows"])


def test_every_task_has_a_set() -> None:
    assert {of.task for of in SETS.values()} == TASKS.keys()


def check_evaluation(evaluation: Path, rows: int) -> dict:
    """An evaluation is whole: every row is in it, every figure is a number in its range, the page shows rows."""
    metrics = json.loads((evaluation / "metrics.json").read_text())
    predictions = lines(evaluation / "predictions.jsonl")
    assert metrics["examples"] == len(predictions) == rows
    assert len({row["row_id"] for row in predictions}) == rows
    for name, found in metrics["metrics"].items():
        assert 0 <= found["value"] <= (10 if name == "cider" else 1), (name, found)
        assert found["low"] <= found["value"] + 1e-9, (name, found)
        assert found["value"] - 1e-9 <= found["high"], (name, found)
    assert 0 < metrics["loss"] < 20
    assert all(math.isfinite(value) for row in predictions for value in row["metrics"].values())
    assert all(row["logprob"] <= 0 and row["target_logprob"] <= 0 for row in predictions)
    page = (evaluation / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/") >= min(rows, 5000)
    return metrics
