"""KFP interface of `finetune`."""

# KFP reads these annotations and defaults otherwise than Python does: an output is `OutputPath(str)`, an input that may be left
# out is `= None`, and a parameter is a text, which the step checks.
# pyright: reportInvalidTypeForm=false, reportArgumentType=false

from kfp import dsl

from components.kfp_component import kfp_component


@kfp_component
def finetune(
    checkpoint: dsl.Input[dsl.Model],
    records: dsl.Input[dsl.Dataset],
    tuned: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    tree_sha256: dsl.OutputPath(str),
    validation: dsl.Input[dsl.Dataset] = None,
    preflight: dsl.Input[dsl.Artifact] = None,
    recipe: str = "",
    state: str = "",
    disk_budget: str = "",
    checkpoint_sha256: str = "",
    records_sha256: str = "",
    validation_sha256: str = "",
    preflight_sha256: str = "",
    fresh: bool = False,
    artifact_root: str = "",
    run: str = "",
    run_task: str = "",
):
    """Trains a part of a checkpoint's parameters on records, and writes that part.

    Args:
        recipe: Training recipe, as YAML text; empty: the reference recipe.
        preflight: A preflight of this recipe, whose choice its auto settings take.
        state: Folder or gs:// prefix for the training state, from which an interrupted task resumes. Empty: a subfolder of
            artifact_root named by a hash of recipe, data and checkpoint; without artifact_root, beside the output.
        disk_budget: Most bytes that records on gs:// may take of the disk, e.g. 1GB; empty: they are fetched as a whole.
    """
    import json

    from components.artifacts import copy_file, input_location, mirror_record, output_location, state_location
    from components.finetune.main import fine_tune
    from paligemma.foreign_json import read_json
    from paligemma.launch.watch import launched, run_elsewhere
    from paligemma.training.open_recipe import parse_open_recipe

    output = output_location(tuned, artifact_root, run, run_task, fresh)
    state_root = state_location(artifact_root)
    trained_on = (input_location(checkpoint, checkpoint_sha256), input_location(records, records_sha256), output)
    asked, chosen = parse_open_recipe(recipe), input_location(preflight, preflight_sha256)
    if machines := launched():
        flags = dict(zip(("checkpoint", "records", "output"), trained_on, strict=True))
        flags |= {"validation": input_location(validation, validation_sha256), "state": state, "state-root": state_root}
        flags |= {"preflight": chosen if asked.open else "", "disk-budget": disk_budget}
        flags["set"] = [f"{key}={json.dumps(value)}" for key, value in asked.values(only_given=True).items()]
        run_elsewhere(machines, "components.finetune", flags, output)
        made = output
    else:
        validated_on = input_location(validation, validation_sha256)
        made = fine_tune(*trained_on, asked, validated_on, state, state_root, chosen, disk_budget)
    mirror_record(tuned, made, tree_sha256)
    copy_file(made, "training.html", report.path)
    # A Metrics artifact with only logged values has no file, and stores that expect a file report it as missing.
    copy_file(made, "summary.json", metrics.path)
    summary = read_json(metrics.path, "The summary of the training", nonfinite=True)
    for key in ("final_loss", "examples_per_second", "seconds"):
        metrics.log_metric(key, summary[key])
