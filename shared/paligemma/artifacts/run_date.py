"""The day on which a run began, from its records: the same for every step and every retry.

A weekly run may name its data by that day. The day of submission is wrong, since a schedule is submitted once for all its runs.
The day of a step is wrong, since a retry after midnight must read the same file as before.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from paligemma.artifacts.recording import FOLDER, attempt_under_way
from paligemma.storage.folders import list_files

DATE = "{date}"
"""Placeholder for the day in a location."""

_ATTEMPT = re.compile(r"(\d{4})(\d\d)(\d\d)T\d{6}\.\d{3}Z-\w+")


def with_run_date(location: str | Path) -> str:
    """Replaces each `{date}` in a location by the UTC day on which this run began, e.g. `2026-03-02`."""
    named = str(location)
    return with_date(named, run_date()) if DATE in named else named


def with_date(location: str, date: str) -> str:
    """Replaces each `{date}` in a location by a day."""
    return location.replace(DATE, date)


def run_date() -> str:
    """The UTC day of this run's earliest attempt, from its records and marks; outside a run, today."""
    current = attempt_under_way()
    if current is None:
        return today()
    names = [current.name, *(path.rpartition("/")[2] for path in list_files(current.root / FOLDER / current.run))]
    return "-".join(min(found.groups() for name in names if (found := _ATTEMPT.match(name))))


def today() -> str:
    """Today in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d}"
