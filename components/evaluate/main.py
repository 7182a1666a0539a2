"""Decodes answers to every row of a data set and judges them; beside another evaluation's, if given."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paligemma.command_line import run_command
from paligemma.lineage.attempt import recorded

if TYPE_CHECKING:
    import numpy as np

    from paligemma.data.records import Records
    from paligemma.evaluation.gate import Decision
    from paligemma.evaluation.metrics import Scores
    from paligemma.evaluation.predict import Prediction
    from paligemma.lineage.record import Input
    from paligemma.registry import Release

log = logging.getLogger("paligemma.evaluate")

ARTIFACT_TYPE = "evaluation"
RECORDS_ROLE = "validation records"
REPORT_ROWS = 5000
"""Rows in the report, the worst ones: with a picture each, a page of 5,000 has about 30 MB."""

TaskName = Literal["", "vqa", "caption", "docvqa", "chartqa", "detect", "segment", "classify", "ocr"]


@recorded("evaluate")
def run(
    checkpoint: Annotated[str, typer.Option(help="Base checkpoint: a file, a folder, gs://, or embedded:tiny.")],
    records: Annotated[str, typer.Option(help="Records to evaluate on, from prepare_data; local or gs://.")],
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write the evaluation to.")],
    tuned: Annotated[
        str,
        typer.Option(help="Tuned model, from finetune; local or gs://.", show_default="none: evaluate the checkpoint itself"),
    ] = "",
    baseline: Annotated[
        str,
        typer.Option(
            help="Evaluation of the base on the same records, to show beside and to be better than.", show_default="none"
        ),
    ] = "",
    champion: Annotated[
        str,
        typer.Option(help="Evaluation of the model in use on the same records, to be better than too.", show_default="none"),
    ] = "",
    registry: Annotated[
        str,
        typer.Option(
            help="Registry of releases: its champion is evaluated on the same records, to be better than too.",
            show_default="none",
        ),
    ] = "",
    margin: Annotated[float, typer.Option(help="By how much the first metric must surely be better.", min=0)] = 0.0,
    task: Annotated[
        TaskName,
        typer.Option(help="What the rows ask, which selects the metrics.", show_default="exact match of any text"),
    ] = "",
    metrics: Annotated[
        str,
        typer.Option(
            help="Metrics in place of the task's, the deciding one first: names, or module:function, with commas.",
            show_default="the task's",
        ),
    ] = "",
    mask_decoder: Annotated[
        str,
        typer.Option(help="File with the weights that turn <seg> symbols into masks, for --task segment.", show_default="none"),
    ] = "",
    batch_size: Annotated[int, typer.Option(help="Rows decoded at once; does not change the result.", min=1)] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer, with its eos.", min=1)] = 32,
    beams: Annotated[int, typer.Option(help="Sequences that a beam search keeps; 1 decodes greedily.", min=1)] = 1,
    temperature: Annotated[float, typer.Option(help="Above 0, tokens are drawn at this temperature.", min=0)] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw among this many most likely tokens; 0 for all.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the most likely tokens that reach this probability.", max=1)] = 1.0,
    best_of: Annotated[int, typer.Option(help="Samples of each row, the most likely of which is its answer.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="What samples are drawn from, together with the row's identity.")] = 0,
) -> None:
    """Writes predictions.jsonl, metrics.json and report.html; gate.json when there is a model to be better than."""
    import dataclasses
    import json
    import math
    import time

    import jax

    from paligemma.checkpoints.open import check_base, open_checkpoint
    from paligemma.checkpoints.tuned import read_tuned
    from paligemma.data.records import open_records
    from paligemma.decoding.settings import DecodeSettings
    from paligemma.errors import InputError
    from paligemma.evaluation.metrics import by_group, confusion, find_metric, question_type
    from paligemma.evaluation.predict import predict
    from paligemma.evaluation.tasks import TASKS
    from paligemma.lineage.artifact import input_of, localize, produce
    from paligemma.model import build_model
    from paligemma.progress import WorkProgress
    from paligemma.sharding import make_mesh

    judged_as = TASKS[task]
    settings = DecodeSettings(max_new_tokens, temperature, top_k, top_p, best_of, beams)
    decoder = str(localize(mask_decoder)) if mask_decoder else ""
    judges = {name.strip(): find_metric(name.strip(), decoder) for name in metrics.split(",") if name.strip()}
    judges = judges or {name: find_metric(name, decoder) for name in judged_as.metrics}
    first = next(iter(judges))
    base, data = open_checkpoint(checkpoint), open_records(records)
    inputs = [input_of("checkpoint", base.location), input_of(RECORDS_ROLE, records)]
    tuned_model = read_tuned(localize(tuned)) if tuned else None
    if tuned_model is not None:
        inputs.append(input_of("tuned model", tuned))
        check_base(tuned_model, base)
    others = {}
    for role, location in (("baseline", baseline), ("champion", champion)):
        if location:
            others[role] = Evaluation(localize(location), first, inputs)
            inputs.append(input_of(role, location))
    release = find_champion(registry) if registry and not champion else None
    if release is not None:
        arguments = {"task": task, "metrics": metrics, "mask_decoder": mask_decoder, "batch_size": batch_size, "seed": seed}
        others["champion"] = evaluate_release(release, records, first, inputs, {**arguments, **dataclasses.asdict(settings)})
        inputs.append(input_of("champion", release.location))
    if mask_decoder:
        inputs.append(input_of("mask decoder", mask_decoder))
    name = "tuned" if tuned else "base"
    parameters = {**dataclasses.asdict(settings), "batch_size": batch_size, "task": task, "metrics": list(judges), "seed": seed}
    parameters["margin"] = margin
    with produce(output, ARTIFACT_TYPE, "evaluate", parameters, inputs) as draft:
        model = build_model(base, tuned_model)
        if jax.device_count() > 1:
            model.mesh = make_mesh(copies=jax.device_count())  # decoding reads every weight for every token: whole on each
        if model.config.img.image_size != data.dataset.image_size:
            raise InputError("The records were prepared for another image size.", where=records, fix="run prepare_data again")
        started = time.monotonic()
        found: dict[int, Prediction] = {}
        with WorkProgress(f"evaluating {name}", "rows", data.dataset.rows) as progress:
            for batch in predict(model, data, batch_size, settings, seed):
                found.update(batch)
                progress.advance(len(batch))
        seconds = time.monotonic() - started
        predictions = [found[number] for number in sorted(found)]
        judged = judged_as.cleaned(predictions)
        matches = find_metric("exact_match")(judged)
        scores = {metric: judge(judged) for metric, judge in judges.items()}
        loss, loss_interval = suffix_loss(predictions)
        summary = {
            "model": name,
            "task": task,
            "examples": len(predictions),
            "exact_match": matches.value,
            "primary": first,
            "metrics": {metric: {"value": s.value, "low": s.low, "high": s.high} for metric, s in scores.items()},
            "loss": loss,
            "loss_interval": loss_interval,
            "perplexity": math.exp(min(loss, 700.0)),
            "by_question": by_group(predictions, matches.rows, str, "exact_match"),
            "by_type": by_group(predictions, scores[first].rows, question_type, first),
            "examples_per_second": len(predictions) / seconds,
        }
        table = confusion(judged)
        summary["confusion"] = None if table is None else {"labels": table[0], "counts": table[1]}
        with (draft.folder / "predictions.jsonl").open("w") as file:
            for number, p in enumerate(predictions):
                row = {"row_id": p.row_id, "prefix": p.prefix, "target": p.target, "prediction": p.prediction}
                if p.references != (p.target,):
                    row["answers"] = list(p.references)
                row |= {"exact_match": bool(matches.rows[number]), "logprob": round(p.logprob, 4)}
                row["target_logprob"] = round(p.target_logprob, 4)
                row["metrics"] = {metric: float(s.rows[number]) for metric, s in scores.items()}
                file.write(json.dumps(row) + "\n")
        (draft.folder / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
        decision = judge_against(others, scores[first], first, margin)
        if decision is not None:
            (draft.folder / "gate.json").write_text(json.dumps(dataclasses.asdict(decision), indent=2) + "\n")
        page = write_report(summary, predictions, scores, others.get("baseline"), decision, data, records)
        (draft.folder / "report.html").write_text(page)
        draft.metrics = {metric: s.value for metric, s in scores.items()} | {"exact_match": matches.value, "loss": loss}
        draft.rows, draft.device = len(predictions), f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    shown = ", ".join(f"{metric} {s.value:.4g}" for metric, s in scores.items())
    log.info("%s: exact match %.1f %% of %d (%s), in %s", name, 100 * matches.value, len(predictions), shown, output)
    if decision is not None:
        log.info("%s", decision.why)


def suffix_loss(predictions: list[Prediction]) -> tuple[float, tuple[float, float] | None]:
    """Loss of the targets, in nats a token, and its 95 % bootstrap interval; None without rows."""
    import numpy as np

    from paligemma.evaluation.statistics import bootstrap_interval

    if not predictions:
        return 0.0, None
    losses, tokens = np.array([(-p.target_logprob, p.target_tokens) for p in predictions]).T
    interval = bootstrap_interval(len(losses), lambda rows: losses[rows].sum(axis=1) / tokens[rows].sum(axis=1))
    return float(losses.sum() / tokens.sum()), interval


def find_champion(registry: str) -> Release | None:
    """The release in use; None if there is none yet."""
    from paligemma.registry import read_champion, read_release

    champion = read_champion(registry)
    return read_release(registry, champion.release) if champion else None


def evaluate_release(release: Release, records: str, metric: str, inputs: list[Input], arguments: dict) -> Evaluation:
    """The evaluation of a released model on these records: the one it was released with, if that was of them, else a new one.

    Args:
        release: the champion.
        records: to evaluate on.
        metric: the deciding one.
        inputs: of the candidate's evaluation.
        arguments: of `run`: how to decode and to judge.
    """
    import tempfile

    from paligemma.errors import InputError
    from paligemma.lineage.artifact import localize
    from paligemma.lineage.record import read_record
    from paligemma.registry import EVALUATION_FOLDER

    made = localize(release.location) / EVALUATION_FOLDER
    compared = ("max_new_tokens", "temperature", "top_k", "top_p", "best_of", "beams", "seed", "task")
    try:
        before = read_record(made, ARTIFACT_TYPE).producer.parameters
        if all(before.get(name) == arguments[name] for name in compared):
            return Evaluation(made, metric, inputs)
    except InputError:
        pass  # of other records, or not judged by this metric
    log.info("evaluating the champion, release %s, on the same rows", release.version)
    with tempfile.TemporaryDirectory(prefix="paligemma-") as folder:
        run(checkpoint=str(release.model), records=records, output=f"{folder}/champion", **arguments)
        return Evaluation(Path(folder) / "champion", metric, inputs)


class Evaluation:
    """Another evaluation of the same rows.

    Attributes:
        summary: its metrics.json.
        answers: by row, in order.
        scores: of the deciding metric, by row, in order.
    """

    def __init__(self, folder: Path, metric: str, inputs: list[Input]) -> None:
        """Reads it.

        Raises:
            InputError: it is of other records, or was not judged by this metric.
        """
        import json

        import numpy as np

        from paligemma.errors import InputError
        from paligemma.lineage.record import read_record

        theirs = {entry.sha256 for entry in read_record(folder, ARTIFACT_TYPE).inputs if entry.role == RECORDS_ROLE}
        if theirs != {entry.sha256 for entry in inputs if entry.role == RECORDS_ROLE}:
            raise InputError(
                "The baseline was evaluated on other records.", where=folder, fix="evaluate it on the same records"
            )
        self.summary = json.loads((folder / "metrics.json").read_text())
        with (folder / "predictions.jsonl").open() as lines:
            rows = [json.loads(line) for line in lines]
        if any(metric not in row.get("metrics", {}) for row in rows):
            raise InputError(
                f"The evaluation to be better than was not judged by {metric}.",
                where=folder,
                fix="evaluate it with the same --task and --metrics",
            )
        self.answers = [row["prediction"] for row in rows]
        self.scores = np.array([row["metrics"][metric] for row in rows])


def judge_against(others: dict[str, Evaluation], scores: Scores, metric: str, margin: float) -> Decision | None:
    """The gate's decision; None without another evaluation or without rows."""
    from paligemma.evaluation.gate import compare, decide

    if not others or not len(scores.rows):
        return None
    names, name = {"baseline": "base", "champion": "champion"}, scores.of_rows or metric
    return decide([compare(names[role], name, scores.rows, o.scores, margin) for role, o in others.items()], margin)


def write_report(
    summary: dict,
    predictions: list[Prediction],
    scores: dict[str, Scores],
    baseline: Evaluation | None,
    decision: Decision | None,
    data: Records,
    records: str,
) -> str:
    """The page: every row up to `REPORT_ROWS`, worst first, with its picture and boxes."""
    import numpy as np

    from paligemma.data.tfrecord import RowReader
    from paligemma.evaluation.boxes import parse_boxes
    from paligemma.reports.page import image_uri, render

    reader, first = RowReader(data), summary["primary"]
    rows = []
    for number in np.argsort(scores[first].rows, kind="stable")[:REPORT_ROWS].tolist():
        p = predictions[number]
        row = {"image": image_uri(thumbnail(reader.read(number).image)), "id": p.row_id, "prompt": p.prefix}
        row |= {"target": p.target, "answers": list(p.references), "prediction": p.prediction, "logprob": p.logprob}
        row["scores"] = {metric: float(s.rows[number]) for metric, s in scores.items()}
        row["baseline"] = baseline.answers[number] if baseline else None
        boxes = {
            key: [list(box) for box in parse_boxes(text)] for key, text in (("true", p.target), ("predicted", p.prediction))
        }
        if any(boxes.values()):
            row["boxes"] = boxes
        rows.append(row)
    other = baseline.summary if baseline else None
    by_prefix = {question["prefix"]: question["exact_match"] for question in other["by_question"]} if other else {}
    return render(
        "evaluation.html",
        name=summary["model"],
        metrics=summary,
        source=str(records).rstrip("/").rsplit("/", 1)[-1],
        baseline=other,
        baseline_name=other["model"] if other else "",
        questions=[{**q, "baseline": by_prefix.get(q["prefix"], 0.0)} for q in summary["by_question"]],
        decision=decision,
        rows=rows,
    )


def thumbnail(image: np.ndarray, side: int = 192) -> np.ndarray:
    """An image no larger than is shown."""
    import numpy as np
    from PIL import Image

    return image if len(image) <= side else np.asarray(Image.fromarray(image).resize((side, side)))


def main() -> None:
    """The command line."""
    run_command(run, "evaluate")


if __name__ == "__main__":
    main()
