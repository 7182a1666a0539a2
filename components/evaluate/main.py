"""Decodes answers to every row of a data set and judges them; beside another evaluation's, if given."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paligemma.command_line import run_command

if TYPE_CHECKING:
    import numpy as np

    from paligemma.evaluation.predict import Prediction
    from paligemma.lineage.record import Input

log = logging.getLogger("paligemma.evaluate")

ARTIFACT_TYPE = "evaluation"
RECORDS_ROLE = "validation records"
REPORT_ROWS = 200


def run(
    checkpoint: Annotated[str, typer.Option(help="Base checkpoint: a file, a folder, gs://, or embedded:tiny.")],
    records: Annotated[str, typer.Option(help="Records to evaluate on, from prepare_data; local or gs://.")],
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write the evaluation to.")],
    tuned: Annotated[
        str,
        typer.Option(help="Tuned model, from finetune; local or gs://.", show_default="none: evaluate the checkpoint itself"),
    ] = "",
    baseline: Annotated[
        str, typer.Option(help="Evaluation of another model on the same records, to show beside.", show_default="none")
    ] = "",
    batch_size: Annotated[int, typer.Option(help="Rows decoded at once; does not change the result.", min=1)] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer, with its eos.", min=1)] = 32,
) -> None:
    """Writes predictions.jsonl, metrics.json and report.html."""
    import json
    import time

    import jax

    from paligemma.checkpoints.open import check_base, open_checkpoint
    from paligemma.checkpoints.tuned import read_tuned
    from paligemma.data.records import open_records
    from paligemma.errors import InputError
    from paligemma.evaluation.metrics import by_question, exact_match
    from paligemma.evaluation.predict import predict
    from paligemma.lineage.artifact import input_of, localize, produce
    from paligemma.model import build_model
    from paligemma.progress import WorkProgress

    base, data = open_checkpoint(checkpoint), open_records(records)
    inputs = [input_of("checkpoint", base.location), input_of(RECORDS_ROLE, records)]
    tuned_model = read_tuned(localize(tuned)) if tuned else None
    if tuned_model is not None:
        inputs.append(input_of("tuned model", tuned))
        check_base(tuned_model, base)
    baseline_folder = localize(baseline) if baseline else None
    if baseline_folder is not None:
        check_baseline(baseline_folder, inputs)
        inputs.append(input_of("baseline", baseline))
    name = "tuned" if tuned else "base"
    parameters = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    with produce(output, ARTIFACT_TYPE, "evaluate", parameters, inputs) as draft:
        model = build_model(base, tuned_model)
        if model.config.img.image_size != data.dataset.image_size:
            raise InputError("The records were prepared for another image size.", where=records, fix="run prepare_data again")
        started = time.monotonic()
        predictions: list[Prediction] = []
        pictures: dict[bool, list[tuple[Prediction, np.ndarray]]] = {False: [], True: []}
        with WorkProgress(f"evaluating {name}", "rows", data.dataset.rows) as progress:
            for prediction, image in predict(model, data, batch_size, max_new_tokens):
                predictions.append(prediction)
                if len(pictures[prediction.exact_match]) < REPORT_ROWS:  # all pictures would not fit in memory
                    pictures[prediction.exact_match].append((prediction, image))
                progress.advance()
        seconds = time.monotonic() - started
        with (draft.folder / "predictions.jsonl").open("w") as file:
            for p in predictions:
                values = {"row_id": p.row_id, "prefix": p.prefix, "target": p.target, "prediction": p.prediction}
                file.write(json.dumps({**values, "exact_match": p.exact_match}) + "\n")
        metrics = {
            "model": name,
            "examples": len(predictions),
            "exact_match": exact_match(predictions),
            "by_question": by_question(predictions),
            "examples_per_second": len(predictions) / seconds,
        }
        (draft.folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        shown = [*pictures[False], *pictures[True]][:REPORT_ROWS]
        (draft.folder / "report.html").write_text(_report(metrics, shown, baseline_folder, records))
        draft.rows, draft.device = len(predictions), f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    log.info("%s: exact match %.1f %% of %d, in %s", name, 100 * metrics["exact_match"], len(predictions), output)


def check_baseline(folder: Path, inputs: list[Input]) -> None:
    """Confirms that a baseline is an evaluation of the same records."""
    from paligemma.errors import InputError
    from paligemma.lineage.record import read_record

    theirs = {entry.sha256 for entry in read_record(folder, ARTIFACT_TYPE).inputs if entry.role == RECORDS_ROLE}
    if theirs != {entry.sha256 for entry in inputs if entry.role == RECORDS_ROLE}:
        raise InputError("The baseline was evaluated on other records.", where=folder, fix="evaluate it on the same records")


def _report(metrics: dict, shown: list[tuple[Prediction, np.ndarray]], baseline: Path | None, records: str) -> str:
    import json

    from paligemma.reports.page import image_uri, render

    other, answers = None, {}
    if baseline is not None:
        other = json.loads((baseline / "metrics.json").read_text())
        with (baseline / "predictions.jsonl").open() as lines:
            answers = {row["row_id"]: row["prediction"] for row in map(json.loads, lines)}
    by_prefix = {question["prefix"]: question["exact_match"] for question in other["by_question"]} if other else {}
    rows = [
        {
            "image": image_uri(image),
            "row_id": p.row_id,
            "prefix": p.prefix,
            "target": p.target,
            "prediction": p.prediction,
            "exact_match": p.exact_match,
            "baseline_prediction": answers.get(p.row_id, ""),
        }
        for p, image in shown
    ]
    return render(
        "evaluation.html",
        name=metrics["model"],
        metrics=metrics,
        source=str(records).rstrip("/").rsplit("/", 1)[-1],
        baseline=other,
        baseline_name=other["model"] if other else "",
        questions=[{**q, "baseline": by_prefix.get(q["prefix"], 0.0)} for q in metrics["by_question"]],
        rows=rows,
    )


def main() -> None:
    """The command line."""
    run_command(run, "evaluate")


if __name__ == "__main__":
    main()
