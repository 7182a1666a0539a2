"""KFP interface of `prepare_data` over many pods: list groups of line ranges, prepare each in a pod, join them."""

from typing import List  # noqa: UP035  (KFP reads this one)

from kfp import dsl

from components.kfp_component import kfp_component


@kfp_component
def list_groups(data: str, rows_per_shard: int, pods: int) -> List[str]:  # noqa: UP006
    """Cuts a JSONL file, or each of a mixture, into groups of line ranges, one for each pod.

    Args:
        data: JSONL file of rows.
        rows_per_shard: Lines of the JSONL file that make up a shard.
        pods: Most groups.
    """
    from components.prepare_data.distributed import list_groups

    return list_groups(data, rows_per_shard, pods)


@kfp_component
def prepare_group(
    group: str,
    data: str,
    checkpoint: dsl.Input[dsl.Model],
    part: dsl.Output[dsl.Dataset],
    images: str = "",
    max_text_tokens: int = 128,
    over_long: str = "reject",
    rows_per_shard: int = 2000,
    compression: str = "webp",
    grey_range: str = "",
    images_per_example: int = 1,
    workers: int = 0,
):
    """Prepares one group of line ranges, with as many processes as the pod has cores.

    Args:
        group: A group from list_groups.
        data: JSONL file of rows.
        images: Folder that image paths are relative to; empty: the JSONL file's folder.
        max_text_tokens: Maximum tokens of prefix and suffix, including bos, separator and eos.
        over_long: Over-long rows: reject, or truncate the suffix before its eos.
        rows_per_shard: Lines of the JSONL file that make up a shard.
        compression: How records store pictures: webp (losslessly packed), none (raw), or gzip (raw, in packed shards).
        grey_range: Samples that are black and white in grey pictures, LOW,HIGH; empty: as each file states.
        images_per_example: Images in every row; rows with another number are rejected.
        workers: Processes; 0 is one for each core.
    """
    from pathlib import Path

    from components.artifacts import input_location
    from components.prepare_data.distributed import prepare_group

    settings = {"max_text_tokens": max_text_tokens, "over_long": over_long, "rows_per_shard": rows_per_shard,
                "compression": compression, "grey_range": grey_range, "images_per_example": images_per_example}  # fmt: skip
    prepare_group(group, data, input_location(checkpoint), images, Path(part.path), settings, workers)


@kfp_component
def join_groups(
    parts: dsl.Input[List[dsl.Dataset]],  # noqa: UP006
    data: str,
    checkpoint: dsl.Input[dsl.Model],
    records: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    images: str = "",
    split: str = "train",
    max_text_tokens: int = 128,
    over_long: str = "reject",
    max_reject_fraction: float = 0.1,
    rows_per_shard: int = 2000,
    compression: str = "webp",
    grey_range: str = "",
    images_per_example: int = 1,
    against: str = "",
    artifact_root: str = "",
    run: str = "",
    run_task: str = "",
):
    """Joins all groups of a split to records: the same bytes as prepare_data gives on one machine.

    Args:
        parts: Outputs of prepare_group for every group.
        data: JSONL file of rows.
        images: Folder that image paths are relative to; empty: the JSONL file's folder.
        split: Name of the split; begins the shards' names.
        max_text_tokens: Maximum tokens of prefix and suffix, including bos, separator and eos.
        over_long: Over-long rows: reject, or truncate the suffix before its eos.
        max_reject_fraction: Fail when a larger share of the rows is rejected.
        rows_per_shard: Lines of the JSONL file that make up a shard.
        compression: How records store pictures: webp (losslessly packed), none (raw), or gzip (raw, in packed shards).
        grey_range: Samples that are black and white in grey pictures, LOW,HIGH; empty: as each file states.
        images_per_example: Images in every row; rows with another number are rejected.
        against: Another split, records or JSONL: rows and images found there too are warned of; empty: none.
    """
    from pathlib import Path

    from components.artifacts import copy_file, input_location, mirror_record, output_location
    from components.prepare_data.distributed import join_groups

    settings = {"max_text_tokens": max_text_tokens, "over_long": over_long, "rows_per_shard": rows_per_shard,
                "compression": compression, "grey_range": grey_range, "images_per_example": images_per_example}  # fmt: skip
    output = output_location(records, artifact_root, run, run_task)
    join_groups([Path(part.path) for part in parts], data, input_location(checkpoint), images, output, settings, split,
                max_reject_fraction, against)  # fmt: skip
    mirror_record(records, output)
    copy_file(output, "report.html", report.path)
