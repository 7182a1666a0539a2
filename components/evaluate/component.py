"""KFP interface of `evaluate`."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def evaluate(
    checkpoint: dsl.Input[dsl.Model],
    records: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    tuned: dsl.Input[dsl.Model] = None,
    baseline: dsl.Input[dsl.Artifact] = None,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    artifact_root: str = "",
    task: str = "",
):
    """Decodes answers to every row and judges them, beside another evaluation's if one is given.

    Args:
        batch_size: Rows decoded at once; does not change the result.
        max_new_tokens: Most tokens of an answer, with its eos.
        artifact_root: Folder or gs:// prefix that artifacts go to; empty: where the runner puts them.
        task: Name of the run and of the task in it; with artifact_root, where the artifact goes below it.
    """
    import json
    import shutil
    from pathlib import Path

    from components.artifacts import input_location, mirror_record, output_location
    from components.evaluate.main import run
    from paligemma.lineage.artifact import localize

    output = output_location(evaluation, artifact_root, task)
    run(
        checkpoint=input_location(checkpoint),
        records=input_location(records),
        output=output,
        tuned=input_location(tuned),
        baseline=input_location(baseline),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    mirror_record(evaluation, output)
    folder = localize(output)
    shutil.copyfile(folder / "report.html", report.path)
    values = json.loads((folder / "metrics.json").read_text())
    for key in ("exact_match", "examples", "examples_per_second"):
        metrics.log_metric(key, values[key])
    # A Metrics artifact that is only logged to has no file, which stores that expect one report as missing.
    Path(metrics.path).write_text(json.dumps(values, indent=2))
