"""KFP interface of `preflight`."""

# KFP reads an output as `OutputPath(str)`, which is no type to Python.
# pyright: reportInvalidTypeForm=false

from kfp import dsl

from components.kfp_component import kfp_component


@kfp_component
def preflight(
    checkpoint: dsl.Input[dsl.Model],
    preflight: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    tree_sha256: dsl.OutputPath(str),
    recipe: str = "",
    target: str = "cpu",
    max_text_tokens: int = 128,
    warn_only: bool = False,
    decode_batch: int = 0,
    images_per_example: int = 0,
    checkpoint_sha256: str = "",
    fresh: bool = False,
    artifact_root: str = "",
    run: str = "",
    run_task: str = "",
):
    """Compiles the training step for its hardware, chooses settings that are auto, and fails if it does not fit.

    Args:
        recipe: Training recipe, as YAML text; empty: the reference recipe.
        target: Hardware: cpu, t4, l4, a100-40, h100-80, v5e-1, v5e-4, v6e-1, ...
        max_text_tokens: Maximum tokens of a row's prefix and suffix.
        warn_only: Go on when it does not fit.
        decode_batch: Prompts decoded at once; above 0, decoding is compiled too.
        images_per_example: Images in every row of the records, which the recipe has to agree with; 0: the recipe's.
    """
    from components.artifacts import copy_file, input_location, mirror_record, output_location
    from components.preflight.main import check
    from paligemma.training.open_recipe import parse_open_recipe

    output = output_location(preflight, artifact_root, run, run_task, fresh)
    base = input_location(checkpoint, checkpoint_sha256)
    settings = (target, max_text_tokens, warn_only, decode_batch, images_per_example)
    made = check(base, output, parse_open_recipe(recipe), *settings)
    mirror_record(preflight, made, tree_sha256)
    copy_file(made, "preflight.html", report.path)
