"""KFP interface of `evaluate`."""

# KFP reads these annotations and defaults otherwise than Python does: an output is `OutputPath(str)`, an input that may be left
# out is `= None`, and a parameter is a text, which the step checks.
# pyright: reportInvalidTypeForm=false, reportArgumentType=false

from kfp import dsl

from components.kfp_component import kfp_component


@kfp_component
def evaluate(
    checkpoint: dsl.Input[dsl.Model],
    records: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    tree_sha256: dsl.OutputPath(str),
    tuned: dsl.Input[dsl.Model] = None,
    baseline: dsl.Input[dsl.Artifact] = None,
    champion: dsl.Input[dsl.Artifact] = None,
    registry: str = "",
    margin: float = 0.0,
    task: str = "",
    metrics: str = "",
    mask_decoder: str = "",
    batch_size: int = 32,
    decoding: str = "",
    checkpoint_sha256: str = "",
    records_sha256: str = "",
    tuned_sha256: str = "",
    baseline_sha256: str = "",
    fresh: bool = False,
    artifact_root: str = "",
    run: str = "",
    run_task: str = "",
) -> bool:
    """Decodes answers to every row and judges them, also against other evaluations if given; says whether to promote.

    The result is the output named `Output`: KFP's local runner supports no other in a condition.

    Args:
        registry: Registry of releases; its champion is evaluated on the same records, and must be beaten too.
        margin: By how much the first metric must surely be better than that of baseline and champion.
        task: What the rows ask, which selects the metrics: vqa, caption, docvqa, chartqa, detect, segment, classify, ocr.
        metrics: Metrics in place of the task's, with commas, the deciding one first.
        mask_decoder: File with the weights that turn <seg> symbols into masks, for segment.
        batch_size: Rows decoded at once; does not change the result.
        decoding: Decoding settings, as YAML text: max_new_tokens, temperature, top_k, top_p, best_of, beams, seed, weights;
            empty: the defaults.
    """
    import dataclasses
    import json
    import math
    import tempfile
    from pathlib import Path

    from components.artifacts import copy_file, input_location, mirror_record, output_location, state_location
    from components.evaluate.main import evaluate as run_step
    from paligemma.decoding.settings_yaml import parse_settings
    from paligemma.foreign_json import read_json
    from paligemma.launch.watch import launched, run_elsewhere

    settings = parse_settings(decoding, "the parameter decoding")
    output = output_location(evaluation, artifact_root, run, run_task, fresh)
    arguments = {
        "checkpoint": input_location(checkpoint, checkpoint_sha256),
        "records": input_location(records, records_sha256),
        "output": output,
        "tuned": input_location(tuned, tuned_sha256),
        "baseline": input_location(baseline, baseline_sha256),
        "champion": input_location(champion),
        "registry": registry,
        "margin": margin,
        "task": task,
        "metrics": metrics,
        "mask_decoder": mask_decoder,
        "batch_size": batch_size,
        "state_root": state_location(artifact_root),
    }
    if machines := launched():
        flags = {name.replace("_", "-"): value for name, value in (arguments | dataclasses.asdict(settings)).items()}
        run_elsewhere(machines, "components.evaluate", flags, output)
        made = output
    else:
        made = run_step(**arguments, settings=settings)
    mirror_record(evaluation, made, tree_sha256)
    copy_file(made, "report.html", report.path)
    # A Metrics artifact with only logged values has no file, and stores that expect a file report it as missing.
    copy_file(made, "metrics.json", summary.path)
    values = read_json(summary.path, "The metrics", nonfinite=True)
    figures = {key: values[key] for key in ("exact_match", "loss", "perplexity", "examples", "examples_per_second")}
    figures |= {key: score["value"] for key, score in values["metrics"].items()}
    for key, value in figures.items():
        if value is not None and math.isfinite(value):  # KFP's metadata holds no other numbers
            summary.log_metric(key, value)
    table = values["confusion"] or {"labels": [], "counts": []}
    if table["labels"]:
        confusion.log_confusion_matrix(table["labels"], table["counts"])
    Path(confusion.path).write_text(json.dumps(table))
    with tempfile.TemporaryDirectory() as folder:
        gate = f"{folder}/gate.json"
        return copy_file(made, "gate.json", gate) and read_json(gate, "The decision")["promote"]
