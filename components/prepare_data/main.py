"""JSONL rows and an image folder to validated, tokenized TFRecord shards with a report."""

from __future__ import annotations

import logging
import shutil

from components.prepare_data.stages import (
    check_room,
    checked_settings,
    fetch_web_images,
    finish,
    job_of,
    latest_of,
    marks_of,
    open_inputs,
    parameters_of,
    result_of,
    saw,
    take_from_earlier,
    what_changed,
    work_folder,
)
from paligemma.artifacts.recording import recorded
from paligemma.artifacts.run_date import with_run_date
from paligemma.artifacts.store import produce
from paligemma.command_line import say_moved
from paligemma.data.balance import FINDINGS
from paligemma.data.row_sources import read_sources, split_sources
from paligemma.data.workers import core_count, prepare_parts
from paligemma.progress import WorkProgress

log = logging.getLogger("paligemma.prepare_data")


@recorded("prepare_data")
def prepare_data(
    *,
    data: str,
    checkpoint: str,
    output: str,
    images: str,
    split: str,
    max_text_tokens: int,
    over_long: str,
    max_reject_fraction: float,
    rows_per_shard: int,
    compression: str,
    against: str,
    workers: int,
    grey_range: str,
    images_per_example: int = 1,
) -> str:
    """Prepares one split; see the command line. Rejected rows are counted by reason and listed.

    Returns:
        Where the records are: OUTPUT, or what an earlier run of a pipeline made of the same rows and images.
    """
    settings = checked_settings({
        "max_text_tokens": max_text_tokens,
        "over_long": over_long,
        "rows_per_shard": rows_per_shard,
        "compression": compression,
        "grey_range": grey_range,
        "images_per_example": images_per_example,
    })  # fmt: skip
    named, (data, images, against) = str(data), (with_run_date(place) for place in (data, images, against))
    inputs = open_inputs(data, checkpoint, images, split, against)
    parameters = parameters_of(inputs, split, settings, max_reject_fraction)
    web = fetch_web_images(read_sources(inputs.sources, images_per_example))
    marks = marks_of(inputs, web, images_per_example)
    result, latest = result_of(inputs, parameters, marks), latest_of(inputs, split, settings, named)
    if (made := result.find(lambda record: what_changed(record, inputs, marks, images_per_example))) is not None:
        return made
    with produce(output, "records", "prepare_data", parameters, inputs.records()) as draft:
        folder = work_folder(output, inputs, settings)
        job = job_of(inputs, settings, folder, web)
        parts = split_sources(job.sources, rows_per_shard)
        taken = take_from_earlier(latest, job, parts, marks, folder)
        if taken.lines + taken.pictures:
            draft.metrics["rows_taken_over"] = taken.lines + taken.pictures
        check_room(folder, draft.folder, job, parts)
        with WorkProgress(f"preparing {split}", "rows", sum(part.lines for part in parts)) as progress:
            progress.skip(sum(part.lines for part in parts if part.number in taken.parts))
            rest = [part for part in parts if part.number not in taken.parts]
            prepare_parts(job, rest, folder, workers or core_count(), progress, taken.kept)
        dataset = finish(inputs, job, parts, folder, draft, split, max_reject_fraction, output)
        as_marked = saw(rest, folder, marks)
    shutil.rmtree(folder)
    for one in (result, *latest) if as_marked else latest:
        one.keep()
    rejected, warned = sum(dataset.rejected.values()), sum(dataset.warnings.values())
    for code, particulars in dataset.findings.items():
        log.warning("%s: %s (%s)", code, FINDINGS[code], particulars)
    log.info("%d rows kept, %d rejected, %d warnings, in %s", dataset.rows, rejected, warned, output)
    return output


if __name__ == "__main__":
    say_moved("components.prepare_data")
