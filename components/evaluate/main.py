"""Decodes answers to every row of a data set and judges them; beside another evaluation's, if given."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

import typer

from paligemma.artifacts.recording import recorded
from paligemma.command_line import run_command

log = logging.getLogger("paligemma.evaluate")

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
    state_root: Annotated[
        str,
        typer.Option(
            help="Folder or gs:// prefix below which predictions are kept until the evaluation is written.",
            show_default="OUTPUT.predictions",
        ),
    ] = "",
) -> None:
    """Writes predictions.jsonl, metrics.json and report.html; gate.json when there is a model to be better than.

    Every row is decoded and kept before any is judged: stopped or failed, the same command decodes nothing again.
    """
    import dataclasses

    import jax

    from components.evaluate import contenders
    from components.evaluate.decoding import Decoding, check_compatible, decode, kept_predictions
    from components.evaluate.report import render_report
    from components.evaluate.results import judge, write_results
    from paligemma.artifacts.store import input_of, localize, produce
    from paligemma.checkpoints.describe import describe_opened
    from paligemma.checkpoints.open_checkpoint import check_base, open_checkpoint
    from paligemma.checkpoints.tuned import read_tuned
    from paligemma.data.records import open_records
    from paligemma.data.tfrecord import RowReader
    from paligemma.decoding.settings import DecodeSettings
    from paligemma.errors import one_of
    from paligemma.evaluation.metrics import find_metric
    from paligemma.evaluation.tasks import TASKS
    from paligemma.launch.heartbeat import end_when_abandoned
    from paligemma.reports.page import write_page
    from paligemma.runtime.accelerator import expect_accelerator
    from paligemma.runtime.compile_cache import use_compile_cache

    end_when_abandoned()
    expect_accelerator()
    use_compile_cache()
    judged_as = TASKS[one_of(task, list(TASKS), "--task")]
    decoding = Decoding(DecodeSettings(max_new_tokens, temperature, top_k, top_p, best_of, beams), batch_size, seed)
    decoder = str(localize(mask_decoder)) if mask_decoder else ""
    names = [name.strip() for name in metrics.split(",") if name.strip()] or judged_as.metrics
    judges = {name: find_metric(name, decoder) for name in names}
    first = names[0]
    base, data = open_checkpoint(checkpoint), open_records(records)
    check_compatible(base, data)
    inputs = [input_of("checkpoint", base.location), input_of(contenders.RECORDS_ROLE, records)]
    tuned_model = read_tuned(localize(tuned)) if tuned else None
    if tuned_model is not None:
        inputs.append(input_of("tuned model", tuned))
        check_base(tuned_model, base)
    beside = f"{str(output).rstrip('/')}.predictions"
    kept = {"candidate": kept_predictions(beside, state_root, base, inputs, decoding)}
    compared = {}
    for role, location in (("baseline", baseline), ("champion", champion)):
        if location:
            compared[role] = contenders.read_evaluation(localize(location), first, inputs)
            inputs.append(input_of(role, location))
    release, released = contenders.find_champion(registry) if registry and not champion else None, None
    if release is not None:
        same = {**dataclasses.asdict(decoding.settings), "seed": seed, "task": task}
        found = contenders.released_with(release, first, inputs, same)
        if found is not None:
            compared["champion"] = found
        else:
            released = open_checkpoint(str(release.model))
            check_compatible(released, data)
            judged_on = [
                input_of("checkpoint", released.location),
                *(one for one in inputs if one.role == contenders.RECORDS_ROLE),
            ]
            kept["champion"] = kept_predictions(f"{beside}.champion", state_root, released, judged_on, decoding)
        inputs.append(input_of("champion", release.location))
    if mask_decoder:
        inputs.append(input_of("mask decoder", mask_decoder))
    name = "tuned" if tuned else "base"
    parameters = {
        **dataclasses.asdict(decoding.settings),
        "batch_size": batch_size,
        "task": task,
        "metrics": names,
        "seed": seed,
    }
    parameters["margin"] = margin
    with produce(output, contenders.ARTIFACT_TYPE, "evaluate", parameters, inputs) as draft:
        predictions = decode(base, tuned_model, data, decoding, kept["candidate"], name)
        if release is not None and released is not None:
            log.info("evaluating the champion, release %s, on the same rows", release.version)
            answered = decode(released, None, data, decoding, kept["champion"], "champion")
            scored = judges[first].rows(judged_as.cleaned(answered))
            compared["champion"] = contenders.Evaluation({}, [p.prediction for p in answered], scored)
        judgement = judge(name, predictions, task, judges, kept["candidate"].seconds, max_new_tokens)
        scores, summary = judgement.scores, judgement.summary
        decision = contenders.judge_against(compared, scores[first], first, margin)
        write_results(draft.folder, judgement, decision)
        source = str(records).rstrip("/").rsplit("/", 1)[-1]
        reader = RowReader(data)
        write_page(
            draft.folder / "report.html",
            lambda: render_report(
                judgement, compared.get("baseline"), decision, lambda row: reader.read(row).image, source, describe_opened(base)
            ),
        )
        draft.metrics = {metric: s.value for metric, s in scores.items()} | {"exact_match": judgement.matches.value}
        draft.metrics |= {"loss": summary["loss"]} if summary["loss"] is not None else {}
        draft.rows, draft.device = len(predictions), f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    for one in kept.values():
        one.remove()
    shown = ", ".join(f"{metric} {s.value:.4g}" for metric, s in scores.items())
    matched = 100 * judgement.matches.value
    log.info("%s: exact match %.1f %% of %d (%s), in %s", name, matched, len(predictions), shown, output)
    for note in summary["notes"]:
        log.warning("note: %s", note)
    if decision is not None:
        log.info("%s", decision.why)


def main() -> None:
    """The command line."""
    run_command(run, "evaluate")


if __name__ == "__main__":
    main()
