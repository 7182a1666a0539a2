"""KFP interface of `fetch_checkpoint`."""

# KFP reads these annotations and defaults otherwise than Python does: an output is `OutputPath(str)`, an input that may be left
# out is `= None`, and a parameter is a text, which the step checks.
# pyright: reportInvalidTypeForm=false, reportArgumentType=false

from kfp import dsl

from components.kfp_component import kfp_component


@kfp_component
def fetch_checkpoint(
    checkpoint: dsl.Output[dsl.Model],
    tree_sha256: dsl.OutputPath(str),
    source: str = "embedded:tiny",
    sha256: str = "",
    tokenizer: str = "",
    precision: str = "float16",
    image_size: int = 0,
    fresh: bool = False,
    artifact_root: str = "",
    run: str = "",
    run_task: str = "",
):
    """Brings a checkpoint into the pipeline: weights byte for byte, its architecture, its tokenizer.

    Args:
        source: A kaggle://, https://, hf:// or gs:// address, a path, or embedded:tiny; several, by commas, are tried in turn.
        sha256: Expected sha256 of the weight file; empty: recorded, not checked. https:// needs it.
        tokenizer: SentencePiece model, when it is not beside the weights.
        precision: Which file of a Kaggle model: by the dtype of its weights.
        image_size: Side of the checkpoint's input images, in pixels; 0: its own.
    """
    from components.artifacts import mirror_record, output_location
    from components.fetch_checkpoint.main import fetch_checkpoint as run_step

    output = output_location(checkpoint, artifact_root, run, run_task, fresh)
    asked = {"source": source, "sha256": sha256, "tokenizer": tokenizer, "precision": precision, "image_size": image_size}
    made = run_step(output=output, **asked)
    mirror_record(checkpoint, made, tree_sha256)
