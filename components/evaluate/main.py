"""Decodes answers to every row of a data set and judges them; beside another evaluation's, if given."""

from __future__ import annotations

import dataclasses
import logging

import jax

from components.evaluate import contenders
from components.evaluate.decoding import Decoding, check_compatible, decode, kept_predictions
from components.evaluate.report import render_report
from components.evaluate.results import judge, write_results
from paligemma.artifacts.recording import recorded
from paligemma.artifacts.store import input_of, localize, produce
from paligemma.checkpoints.describe import describe_opened
from paligemma.checkpoints.open_checkpoint import check_base, open_checkpoint
from paligemma.checkpoints.tuned import read_tuned
from paligemma.data.records import open_records
from paligemma.data.tfrecord import RowReader
from paligemma.decoding.settings import DecodeSettings
from paligemma.evaluation.metrics import find_metric
from paligemma.evaluation.tasks import TASKS
from paligemma.launch.heartbeat import end_when_abandoned
from paligemma.reports.page import write_page
from paligemma.runtime.accelerator import expect_accelerator
from paligemma.runtime.compile_cache import use_compile_cache

log = logging.getLogger("paligemma.evaluate")


@recorded("evaluate")
def evaluate(
    *,
    checkpoint: str,
    records: str,
    output: str,
    tuned: str,
    baseline: str,
    champion: str,
    registry: str,
    margin: float,
    task: str,
    metrics: str,
    mask_decoder: str,
    batch_size: int,
    max_new_tokens: int,
    beams: int,
    temperature: float,
    top_k: int,
    top_p: float,
    best_of: int,
    seed: int,
    state_root: str,
) -> None:
    """Decodes, judges, and writes the evaluation; see the command line."""
    end_when_abandoned()
    expect_accelerator()
    use_compile_cache()
    judged_as = TASKS[task]
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
        if released is not None:
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
