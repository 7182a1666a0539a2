"""JSONL rows and an image folder to validated, tokenized TFRecord shards with a report."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

import typer

from paligemma.artifacts.recording import recorded
from paligemma.command_line import run_command

log = logging.getLogger("paligemma.prepare_data")


@recorded("prepare_data")
def run(
    data: Annotated[
        str,
        typer.Option(
            help='JSONL file of {"image", "prefix", "suffix"} rows, plain or gzip, local or gs://; {date}: the run\'s UTC day.'
        ),
    ],
    checkpoint: Annotated[str, typer.Option(help="Checkpoint whose tokenizer and image size to prepare for.")],
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write the records to.")],
    images: Annotated[
        str,
        typer.Option(help="Folder or gs:// prefix that image paths are relative to.", show_default="the JSONL file's folder"),
    ] = "",
    split: Annotated[str, typer.Option(help="Name of the split; begins the shards' names.")] = "train",
    max_text_tokens: Annotated[
        int, typer.Option(help="Most tokens of prefix and suffix, with bos, separator and eos.", min=4)
    ] = 128,
    over_long: Annotated[
        Literal["reject", "truncate"], typer.Option(help="Over-long rows: reject, or cut the suffix before its eos.")
    ] = "reject",
    max_reject_fraction: Annotated[
        float, typer.Option(help="Fail when a larger share of the rows is rejected.", min=0, max=1)
    ] = 0.1,
    rows_per_shard: Annotated[int, typer.Option(help="Lines of the JSONL file that make up a shard.", min=1)] = 2000,
    compression: Annotated[Literal["none", "gzip"], typer.Option(help="Compression of the shards.")] = "none",
    against: Annotated[
        str,
        typer.Option(
            help="Another split, records or JSONL: rows and images found there too are warned of.", show_default="none"
        ),
    ] = "",
    workers: Annotated[int, typer.Option(help="Processes; 0 is one for each core.", min=0)] = 0,
    grey_range: Annotated[
        str,
        typer.Option(
            help="Samples that are black and white in grey pictures, LOW,HIGH, e.g. 0,4095 for 12 bits.",
            show_default="as each file states",
        ),
    ] = "",
) -> None:
    """Prepares one split of a data set. Bad rows are counted by reason and listed in rejected.jsonl."""
    import shutil

    from components.prepare_data.stages import (
        check_room,
        checked_settings,
        finish,
        job_of,
        open_inputs,
        parameters_of,
        work_folder,
    )
    from paligemma.artifacts.run_date import with_run_date
    from paligemma.artifacts.store import produce
    from paligemma.data.balance import FINDINGS
    from paligemma.data.rows import split_lines
    from paligemma.data.workers import core_count, prepare_parts
    from paligemma.progress import WorkProgress

    settings = checked_settings({
        "max_text_tokens": max_text_tokens,
        "over_long": over_long,
        "rows_per_shard": rows_per_shard,
        "compression": compression,
        "grey_range": grey_range,
    })  # fmt: skip
    data, images, against = (with_run_date(place) for place in (data, images, against))
    inputs = open_inputs(data, checkpoint, images, split, against)
    parameters = parameters_of(inputs, split, settings, max_reject_fraction)
    with produce(output, "records", "prepare_data", parameters, inputs.records()) as draft:
        folder = work_folder(output, inputs, settings)
        job = job_of(inputs, settings, folder)
        parts = split_lines(job.data, rows_per_shard)
        check_room(folder, draft.folder, job, parts)
        with WorkProgress(f"preparing {split}", "rows", sum(part.lines for part in parts)) as progress:
            prepare_parts(job, parts, folder, workers or core_count(), progress)
        dataset = finish(inputs, job, parts, folder, draft, split, max_reject_fraction, output)
    shutil.rmtree(folder)
    rejected, warned = sum(dataset.rejected.values()), sum(dataset.warnings.values())
    for code, particulars in dataset.findings.items():
        log.warning("%s: %s (%s)", code, FINDINGS[code], particulars)
    log.info("%d rows kept, %d rejected, %d warnings, in %s", dataset.rows, rejected, warned, output)


def main() -> None:
    """The command line."""
    run_command(run, "prepare_data")


if __name__ == "__main__":
    main()
