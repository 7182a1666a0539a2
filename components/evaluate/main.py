"""Decodes answers to every row of a data set and judges them; beside another evaluation's, if given."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax

from components.evaluate.candidate import open_candidate
from components.evaluate.contenders import ARTIFACT_TYPE, evaluation_of, find_contenders, judge_against
from components.evaluate.decoding import Decoding, decode, kept_predictions
from components.evaluate.earlier import PREDICTIONS_FILE, EarlierAnswers
from components.evaluate.report import write_report
from components.evaluate.results import Judgement, figures, judge, write_champion, write_results
from paligemma.artifacts.compiled_programs import shared_programs
from paligemma.artifacts.record import Input
from paligemma.artifacts.recording import recorded
from paligemma.artifacts.results import Result
from paligemma.artifacts.store import input_of, localize, produce
from paligemma.checkpoints.open_checkpoint import Checkpoint
from paligemma.command_line import say_moved
from paligemma.decoding.settings import DecodeSettings
from paligemma.errors import one_of
from paligemma.evaluation.gate import Decision
from paligemma.evaluation.kept_predictions import KeptPredictions
from paligemma.evaluation.metrics import Metric, find_metric
from paligemma.evaluation.tasks import TASKS
from paligemma.launch.heartbeat import end_when_abandoned
from paligemma.runtime.accelerator import expect_accelerator
from paligemma.runtime.compile_cache import use_compile_cache

log = logging.getLogger("paligemma.evaluate")

_HERE = Path(__file__).parent


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
    settings: DecodeSettings,
    state_root: str,
) -> str:
    """Decodes every row, judges the answers, and writes the evaluation; see the command line.

    Answers are kept batch by batch: stopped or failed, the same call decodes none of them again. In a pipeline, nor are rows
    that the same model answered in an earlier run.

    Returns:
        Where the evaluation is: OUTPUT, or what an earlier run of a pipeline made of the same model and rows.
    """
    end_when_abandoned()
    expect_accelerator()
    use_compile_cache(shared_programs())
    judges = find_metrics(task, metrics, mask_decoder)
    deciding = next(iter(judges))
    decoding = Decoding(settings, batch_size)
    candidate = open_candidate(checkpoint, records, tuned)
    beside = f"{str(output).rstrip('/')}.predictions"
    kept = kept_predictions(beside, state_root, candidate.base, candidate.inputs, decoding)

    def champion_kept(model: Checkpoint, inputs: list[Input]) -> KeptPredictions:
        return kept_predictions(f"{beside}.champion", state_root, model, inputs, decoding)

    contenders = find_contenders(baseline, champion, registry, candidate, decoding, deciding, task, champion_kept)
    inputs = [*candidate.inputs, *contenders.inputs, *([input_of("mask decoder", mask_decoder)] if mask_decoder else [])]
    asked = {"batch_size": batch_size, "task": task, "metrics": list(judges), "margin": margin}
    parameters = {**dataclasses.asdict(settings), **asked}
    own_code = any(":" in name for name in judges)  # a metric of the user's, whose code is not known here
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    result = Result.none("evaluate") if own_code else Result.of("evaluate", _HERE, parameters, inputs, devices=devices)
    if (made := result.find()) is not None:
        return made
    earlier = EarlierAnswers.of(candidate.base, candidate.model, candidate.data, decoding, PREDICTIONS_FILE)
    with produce(output, ARTIFACT_TYPE, "evaluate", parameters, inputs) as draft:
        answered = decode(candidate.base, candidate.tuned, candidate.data, decoding, kept, earlier.read(), candidate.name)
        compared = dict(contenders.evaluations)
        if (undecided := contenders.undecided) is not None:
            of_champion = undecided.answer(candidate.data, decoding)
            compared["champion"] = evaluation_of(of_champion, judges[deciding], TASKS[task])
            write_champion(draft.folder, of_champion)
        speed = answered.decoded / kept.seconds if kept.seconds else 0.0
        judgement = judge(candidate.name, answered.predictions, task, judges, speed, settings.max_new_tokens)
        decision = judge_against(compared, judgement.scores[deciding], deciding, margin)
        write_results(draft.folder, judgement, decision)
        write_report(draft.folder, judgement, compared.get("baseline"), decision, candidate, mask_decoder)
        draft.metrics, draft.rows = figures(judgement), len(answered.predictions)
        if taken_over := draft.rows - answered.decoded:
            draft.metrics["rows_taken_over"] = taken_over
        draft.device = devices
    result.keep()
    earlier.note.keep()
    kept.remove()
    if undecided is not None:
        undecided.earlier[0].note.keep()
        undecided.kept.remove()
    say_results(judgement, decision, output)
    return output


def find_metrics(task: str, metrics: str, mask_decoder: str) -> dict[str, Metric]:
    """The metrics to judge by, the deciding one first: those that are named, with commas, or the task's."""
    asked = TASKS[one_of(task, list(TASKS), "--task")]
    decoder = str(localize(mask_decoder)) if mask_decoder else ""
    names = [name.strip() for name in metrics.split(",") if name.strip()] or asked.metrics
    return {name: find_metric(name, decoder) for name in names}


def say_results(judgement: Judgement, decision: Decision | None, output: str) -> None:
    """Logs what came out, what to know about it, and the decision."""
    shown = ", ".join(f"{metric} {s.value:.4g}" for metric, s in judgement.scores.items())
    name, matched = judgement.summary["model"], 100 * judgement.matches.value
    log.info("%s: exact match %.1f %% of %d (%s), in %s", name, matched, len(judgement.predictions), shown, output)
    for note in judgement.summary["notes"]:
        log.warning("note: %s", note)
    if decision is not None:
        log.info("%s", decision.why)


if __name__ == "__main__":
    say_moved("components.evaluate")
