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
):
    """Decodes answers to every row and judges them, beside another evaluation's if one is given.

    Args:
        batch_size: Rows decoded at once; does not change the result.
        max_new_tokens: Most tokens of an answer, with its eos.
    """
    import json
    import shutil
    from pathlib import Path

    from components.artifact_metadata import mirror_record
    from components.evaluate.main import run

    folder = Path(evaluation.path)
    run(
        checkpoint=checkpoint.path,
        records=Path(records.path),
        output=folder,
        tuned=tuned.path if tuned else "",
        baseline=baseline.path if baseline else "",
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    mirror_record(evaluation)
    shutil.copyfile(folder / "report.html", report.path)
    values = json.loads((folder / "metrics.json").read_text())
    for key in ("exact_match", "examples", "examples_per_second"):
        metrics.log_metric(key, values[key])
    # A Metrics artifact that is only logged to has no file, which stores that expect one report as missing.
    Path(metrics.path).write_text(json.dumps(values, indent=2))
