"""Prepares a split on many machines: lists, prepares and joins groups of line ranges. Same bytes as `main.run`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from components.prepare_data.stages import (
    FINGERPRINT_FILE,
    checked_settings,
    fetch_web_images,
    fingerprint,
    finish,
    job_of,
    open_inputs,
    parameters_of,
    unpacked,
)
from paligemma.artifacts.recording import recorded
from paligemma.artifacts.store import produce
from paligemma.data.merge_shards import link
from paligemma.data.row_sources import open_sources, read_part, split_sources
from paligemma.data.workers import core_count, prepare_parts
from paligemma.errors import InputError
from paligemma.progress import WorkProgress
from paligemma.storage.disk_space import explain_full_disk
from paligemma.storage.files import write_file


def list_groups(data: str, rows_per_shard: int, pods: int) -> list[str]:
    """Groups of consecutive line ranges, about equal, one per pod: `FIRST:STOP`, in shard numbers."""
    with tempfile.TemporaryDirectory() as folder:
        count = len(split_sources(unpacked(open_sources(data, ""), Path(folder)), rows_per_shard))
    pods = max(1, min(pods, count))
    bounds = [count * pod // pods for pod in range(pods + 1)]
    return [f"{first}:{stop}" for first, stop in pairwise(bounds)]


def prepare_group(
    group: str, data: str, checkpoint: str, images: str, output: Path, settings: Mapping[str, Any], workers: int
) -> None:
    """Prepares one group into `output`. This is not an artifact yet: `join_groups` makes one from all groups."""
    inputs, settings = open_inputs(data, checkpoint, images, "group", ""), checked_settings(settings)
    output.mkdir(parents=True, exist_ok=True)
    first, stop = map(int, group.split(":"))
    with explain_full_disk(output), tempfile.TemporaryDirectory() as folder:
        job = job_of(inputs, settings, Path(folder))
        parts = split_sources(job.sources, settings["rows_per_shard"])[first:stop]
        lines = (line for part in parts for line in read_part(job.sources, part, job.images_per_example))
        job = replace(job, web=fetch_web_images(lines))
        with WorkProgress(f"preparing shards {group}", "rows", sum(part.lines for part in parts)) as progress:
            prepare_parts(job, parts, output, workers or core_count(), progress)
    write_file(output / FINGERPRINT_FILE, fingerprint(inputs, settings).encode())


@recorded("prepare_data")
def join_groups(
    groups: Sequence[Path],
    data: str,
    checkpoint: str,
    images: str,
    output: str,
    settings: Mapping[str, Any],
    split: str,
    max_reject_fraction: float,
    against: str,
) -> None:
    """Makes a split's records from all groups.

    Raises:
        InputError: a group has other inputs or settings, or too many rows were rejected.
        DamagedError: a range is missing.
    """
    inputs, settings = open_inputs(data, checkpoint, images, split, against), checked_settings(settings)
    wanted = fingerprint(inputs, settings)
    for group in groups:
        if (group / FINGERPRINT_FILE).read_text() != wanted:
            raise InputError(
                "A part was prepared from other data, or with other settings.", where=group, fix="prepare all parts again"
            )
    parameters = parameters_of(inputs, split, settings, max_reject_fraction)
    with (
        tempfile.TemporaryDirectory() as folder,
        produce(output, "records", "prepare_data", parameters, inputs.records()) as draft,
    ):
        parts_folder = Path(folder) / "parts"
        parts_folder.mkdir()
        for file in (file for group in groups for file in group.iterdir() if file.name != FINGERPRINT_FILE):
            link(file, parts_folder / file.name)
        job = job_of(inputs, settings, Path(folder))
        parts = split_sources(job.sources, settings["rows_per_shard"])
        finish(inputs, job, parts, parts_folder, draft, split, max_reject_fraction, output)
