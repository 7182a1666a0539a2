"""KFP interface of `fetch_checkpoint`."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def fetch_checkpoint(
    checkpoint: dsl.Output[dsl.Model],
    source: str = "embedded:tiny",
    sha256: str = "",
    tokenizer: str = "",
):
    """Brings a checkpoint into the pipeline: weights byte for byte, its architecture, its tokenizer.

    Args:
        source: A big_vision .npz file, a folder with one, or embedded:tiny.
        sha256: Expected sha256 of the weight file; empty: recorded, not checked.
        tokenizer: SentencePiece model, when it is not beside the weights.
    """
    from pathlib import Path

    from components.artifact_metadata import mirror_record
    from components.fetch_checkpoint.main import run

    run(output=Path(checkpoint.path), source=source, sha256=sha256, tokenizer=tokenizer)
    mirror_record(checkpoint)
