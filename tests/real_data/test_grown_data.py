"""A data set that grew, in two runs of a pipeline: what is taken over from the first gives the bytes of a run from nothing."""

from __future__ import annotations

import contextvars
import random
from pathlib import Path

from components.evaluate.__main__ import run as evaluate
from components.prepare_data.__main__ import run as prepare
from paligemma.artifacts.record import MadeRecord, read_record
from paligemma.artifacts.recording import set_place
from real_data.conftest import Published


def in_a_run(root: Path, run: str, task: str, fresh: bool, **arguments: object) -> Path:
    """What a task of a pipeline's run makes; `fresh` makes everything anew."""
    output = root / run / task / "made"

    def step() -> None:
        set_place(run, task, str(root), reuse=not fresh)
        {"prepare": prepare, "evaluate": evaluate}[task](checkpoint="embedded:tiny", output=str(output), **arguments)

    contextvars.copy_context().run(step)
    return output


def test_rows_that_are_appended_deleted_and_moved_change_nothing_else(published: Published, tmp_path: Path) -> None:
    lines = published.rows("vqa", "train").read_text(encoding="utf-8").splitlines(keepends=True)
    few = max(1, len(lines) // 100)
    moved = lines[few:]
    random.Random(0).shuffle(moved)
    root, data, images = tmp_path / "root", tmp_path / "rows.jsonl", str(published.images("vqa", "train"))

    def prepared(run: str, rows: list[str], fresh: bool = False) -> tuple[Path, MadeRecord]:
        data.write_text("".join(rows), encoding="utf-8")
        made = in_a_run(root, run, "prepare", fresh, data=data, images=images, max_reject_fraction=0.5, rows_per_shard=64)
        return made, read_record(made)

    first, _ = prepared("first", lines[:-few])
    in_a_run(root, "first", "evaluate", False, records=str(first), max_new_tokens=4)
    for name, rows in (("grown", lines), ("moved", moved)):
        (again, record), (anew, expected) = prepared(name, rows), prepared(f"{name}, anew", rows, fresh=True)
        assert record.artifact.tree_sha256 == expected.artifact.tree_sha256
        assert record.metrics["rows_taken_over"] > 0.8 * len(rows)
        assert "rows_taken_over" not in expected.metrics
        judged = in_a_run(root, name, "evaluate", False, records=str(again), max_new_tokens=4)
        from_nothing = in_a_run(root, f"{name}, anew", "evaluate", True, records=str(anew), max_new_tokens=4)
        assert (judged / "predictions.jsonl").read_bytes() == (from_nothing / "predictions.jsonl").read_bytes()
        assert read_record(judged).metrics["rows_taken_over"] > 0.8 * record.artifact.rows
