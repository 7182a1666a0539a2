"""Runs made of records alone, as steps would leave them, for tests of what is asked of lineage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from paligemma.artifacts import recording
from paligemma.artifacts.store import input_of, produce


@contextmanager
def at_place(run: str, task: str, root: str) -> Iterator[None]:
    """Makes this process a task of a run for the length of a `with`; what runs one task only is that from its beginning."""
    token = recording._place.set(recording.Place(run, task, root))
    try:
        yield
    finally:
        recording._place.reset(token)


def row_entry(image: str, text: str, line: int) -> dict:
    """A line of rows.jsonl."""
    image_sha256 = hashlib.sha256(image.encode()).hexdigest()
    row_id = hashlib.sha256(f"{image}{text}".encode()).hexdigest()
    return {"row_id": row_id, "image_sha256": image_sha256, "image_file": image, "line": line}


def make_step(root: str | Path, run: str, task: str, component: str, type: str, inputs: Iterable[tuple[str, object]] = (),
              rows: Iterable[tuple[str, str]] = (), parameters: dict | None = None, metrics: dict | None = None,
              text: str = "") -> str:  # fmt: skip
    """Makes an artifact of a run; `rows` are images and texts, `inputs` roles and locations. Returns where it is."""
    output = f"{root}/{run}/{task}/{type}"
    with at_place(run, task, str(root)):
        found = [input_of(role, where) for role, where in inputs]
        with produce(output, type, component, parameters or {}, found) as draft:
            (draft.folder / "file").write_text(text or f"{run} {task}")
            if rows:
                entries = [row_entry(image, words, line) for line, (image, words) in enumerate(rows, start=1)]
                (draft.folder / "rows.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
                draft.rows = len(entries)
            draft.metrics = metrics or {}
    return output


def make_run(root: str | Path, run: str, rows: list[tuple[str, str]], data: Path, steps: int = 1, release: bool = False,
             validation: Iterable[tuple[str, str]] = (("v.png", "v"),)) -> dict[str, str]:  # fmt: skip
    """A whole run; returns where its artifacts are, by task."""
    made = {}
    made["fetch"] = make_step(root, run, "fetch", "fetch_checkpoint", "checkpoint", text="weights")
    base = ("checkpoint", made["fetch"])
    made["train"] = make_step(root, run, "train", "prepare_data", "records", [("data", data), base], rows, {"split": "train"})
    made["validation"] = make_step(
        root, run, "validation", "prepare_data", "records", [base, ("against", made["train"])], validation, text="same"
    )
    judged = ("validation records", made["validation"])
    made["finetune"] = make_step(
        root, run, "finetune", "finetune", "tuned-model", [base, ("train records", made["train"]), judged],
        parameters={"steps": steps, "optimizer": {"name": "sgd"}}, metrics={"final_loss": 1 / steps},
    )  # fmt: skip
    tuned = ("tuned model", made["finetune"])
    made["evaluate"] = make_step(
        root, run, "evaluate", "evaluate", "evaluation", [base, judged, tuned], metrics={"exact_match": 0.1 * steps}
    )
    if release:
        made["publish"] = make_step(root, run, "publish", "publish", "release", [tuned, ("evaluation", made["evaluate"])])
    return made
