"""The day on which a run began, by its records: the same for each of its steps, and however often one is tried again.

A weekly run may name its data by that day. Neither the day of submission nor that of a step will do: a schedule is submitted
once for all its runs, and a step that is tried again after midnight must read the file that it read before.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from paligemma.artifacts.recording import FOLDER, attempt_under_way
from paligemma.storage.folders import list_files

DATE = "{date}"
"""What stands for the day in a location."""

_ATTEMPT = re.compile(r"(\d{4})(\d\d)(\d\d)T\d{6}\.\d{3}Z-\w+")


def with_run_date(location: str | Path) -> str:
    """A location with the UTC day that this run began on, as `2026-03-02`, in place of each `{date}`."""
    named = str(location)
    return with_date(named, run_date()) if DATE in named else named


def with_date(location: str, date: str) -> str:
    """A location with a day in place of each `{date}`."""
    return location.replace(DATE, date)


def run_date() -> str:
    """The UTC day of the earliest attempt that this run has left a record or a mark of; outside a run, today."""
    current = attempt_under_way()
    if current is None:
        return today()
    names = [current.name, *(path.rpartition("/")[2] for path in list_files(current.root / FOLDER / current.run))]
    return "-".join(min(found.groups() for name in names if (found := _ATTEMPT.match(name))))


def today() -> str:
    """The UTC day of a run that begins now."""
    return f"{datetime.now(UTC):%Y-%m-%d}"
