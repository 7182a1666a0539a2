"""Data preparation on many pods: a separate pipeline for data sets that take too long on one machine."""

# Inside a pipeline a call of a component gives a task, and a parameter is a channel: KFP's decorators have the types of the
# functions that they decorate.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from collections.abc import Callable

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.fetch_checkpoint.component import fetch_checkpoint
from components.prepare_data.distributed_component import join_groups, list_groups, prepare_group


def make_prepare_pipeline(place_task: Callable[[str, dsl.PipelineTask], None] = lambda step, task: None) -> BaseComponent:
    """Data preparation on many pods, for one profile's machines.

    Args:
        place_task: see `make_pipeline`.
    """

    @dsl.pipeline(name="paligemma-prepare", description="Prepare a split on many pods.")
    def prepare_pipeline(
        data: str,
        source: str,
        images: str = "",
        split: str = "train",
        pods: int = 8,
        max_text_tokens: int = 128,
        over_long: str = "reject",
        max_reject_fraction: float = 0.1,
        rows_per_shard: int = 2000,
        compression: str = "webp",
        grey_range: str = "",
        images_per_example: int = 1,
        against: str = "",
        artifact_root: str = "",
    ) -> dsl.Dataset:
        """Prepares a split, the same bytes as prepare_data on one machine.

        Args:
            data: JSONL file of {"image", "prefix", "suffix"} rows; or a mixture, as YAML text: a list of data, weight, images.
            source: Checkpoint to prepare for.
            images: Folder that image paths are relative to; empty: the JSONL file's folder.
            split: Name of the split; begins the shards' names.
            pods: Most pods; each prepares whole shards.
            max_text_tokens: Maximum tokens of prefix and suffix, including bos, separator and eos.
            over_long: Over-long rows: reject, or truncate the suffix before its eos.
            max_reject_fraction: Fail when a larger share of the rows is rejected.
            rows_per_shard: Lines of the JSONL file that make up a shard.
            compression: How records store pictures: webp (losslessly packed), none (raw), or gzip (raw, in packed shards).
            grey_range: Samples that are black and white in grey pictures, LOW,HIGH; empty: as each file states.
            images_per_example: Images in every row; rows with another number are rejected.
            against: Another split, records or JSONL: rows and images found there too are warned of; empty: none.
            artifact_root: Folder or gs:// prefix for artifacts; empty: the runner's own location.
        """
        place = {
            "artifact_root": artifact_root,
            # KFP fills in a placeholder only if it is the whole value, and a run's name is not unique there.
            "run": dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            "run_task": dsl.PIPELINE_TASK_NAME_PLACEHOLDER,
        }
        settings = {
            "data": data,
            "images": images,
            "max_text_tokens": max_text_tokens,
            "over_long": over_long,
            "rows_per_shard": rows_per_shard,
            "compression": compression,
            "grey_range": grey_range,
            "images_per_example": images_per_example,
        }
        fetched = fetch_checkpoint(source=source, **place)
        checkpoint = fetched.outputs["checkpoint"]
        groups = list_groups(data=data, rows_per_shard=rows_per_shard, pods=pods)
        with dsl.ParallelFor(groups.output) as group:
            prepared = prepare_group(group=group, checkpoint=checkpoint, **settings)
        joined = join_groups(
            parts=dsl.Collected(prepared.outputs["part"]),
            checkpoint=checkpoint,
            split=split,
            max_reject_fraction=max_reject_fraction,
            against=against,
            **settings,
            **place,
        )
        placed = {"fetch_checkpoint": [fetched], "prepare_data": [groups, prepared, joined]}
        for step, task in ((step, task) for step, of_step in placed.items() for task in of_step):
            task.set_caching_options(False)  # KFP's cache key knows names of inputs, not contents
            place_task(step, task)
        return joined.outputs["records"]

    return prepare_pipeline


prepare_pipeline = make_prepare_pipeline()
