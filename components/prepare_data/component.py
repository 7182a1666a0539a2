"""KFP interface of `prepare_data`."""

# KFP reads these annotations and defaults otherwise than Python does: an output is `OutputPath(str)`, an input that may be left
# out is `= None`, and a parameter is a text, which the step checks.
# pyright: reportInvalidTypeForm=false, reportArgumentType=false

from kfp import dsl

from components.kfp_component import kfp_component


@kfp_component
def prepare_data(
    data: str,
    checkpoint: dsl.Input[dsl.Model],
    records: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    tree_sha256: dsl.OutputPath(str),
    images: str = "",
    split: str = "train",
    max_text_tokens: int = 128,
    over_long: str = "reject",
    max_reject_fraction: float = 0.1,
    rows_per_shard: int = 2000,
    compression: str = "webp",
    against: str = "",
    workers: int = 0,
    grey_range: str = "",
    images_per_example: int = 1,
    checkpoint_sha256: str = "",
    fresh: bool = False,
    artifact_root: str = "",
    run: str = "",
    run_task: str = "",
):
    """Turns JSONL rows and an image folder into validated, tokenized TFRecord shards with a report.

    Args:
        data: JSONL file of {"image", "prefix", "suffix"} rows; or a mixture, as YAML text: a list of data, weight and images.
        images: Folder that image paths are relative to; empty: the JSONL file's folder.
        split: Name of the split; begins the shards' names.
        max_text_tokens: Maximum tokens of prefix and suffix, including bos, separator and eos.
        over_long: Over-long rows: reject, or truncate the suffix before its eos.
        max_reject_fraction: Fail when a larger share of the rows is rejected.
        rows_per_shard: Lines of the JSONL file that make up a shard.
        compression: How records store pictures: webp (losslessly packed), none (raw), or gzip (raw, in packed shards).
        against: Another split, records or JSONL: rows and images found there too are warned of; empty: none.
        workers: Processes; 0 is one for each core.
        grey_range: Samples that are black and white in grey pictures, LOW,HIGH; empty: as each file states.
        images_per_example: Images in every row; rows with another number are rejected.
    """
    from components.artifacts import copy_file, input_location, mirror_record, output_location
    from components.prepare_data.main import prepare_data as run_step

    output = output_location(records, artifact_root, run, run_task, fresh)
    made = run_step(
        data=data,
        checkpoint=input_location(checkpoint, checkpoint_sha256),
        output=output,
        images=images,
        split=split,
        max_text_tokens=max_text_tokens,
        over_long=over_long,
        max_reject_fraction=max_reject_fraction,
        rows_per_shard=rows_per_shard,
        compression=compression,
        against=against,
        workers=workers,
        grey_range=grey_range,
        images_per_example=images_per_example,
    )
    mirror_record(records, made, tree_sha256)
    copy_file(made, "report.html", report.path)
