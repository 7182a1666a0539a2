"""A preflight as a table, as JSON, and as a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from paligemma.preflight.examine import Report, in_gib
from paligemma.reports.page import render

COLUMNS = ("target", "batch", "arguments", "temporaries", "sum", "limit", "fits", "at best, s/step", "$/h")


def cells(report: Report) -> tuple[str, ...]:
    """A row of the table; sizes in GiB of one device."""
    found = report.found
    given_up = "out_of_memory" in found
    return (
        report.target,
        str(report.batch_size),
        "" if given_up else in_gib(found["arguments"]),
        "" if given_up else in_gib(found["temporaries"]),
        "out of memory" if given_up else in_gib(report.total),
        in_gib(report.limit),
        "yes" if report.fits else "no",
        "" if report.seconds is None else f"{report.seconds:.3f}",
        "" if report.dollars_per_hour is None else f"{report.dollars_per_hour:.2f}",
    )


def table(reports: Sequence[Report], title: str) -> Table:
    """For a terminal."""
    made = Table(title=title)
    for number, column in enumerate(COLUMNS):
        made.add_column(column, justify="left" if number == 0 else "right")
    for report in reports:
        made.add_row(*cells(report))
    return made


def as_json(reports: Sequence[Report], steps: int | None, prices_of: str, override: str) -> dict:
    """What `preflight.json` holds."""
    return {
        "reports": [dataclasses.asdict(report) | {"hours": report.hours(steps) if steps else None} for report in reports],
        "steps": steps,
        "prices_of": prices_of,
        "override": override,
    }


def write(folder: Path, reports: Sequence[Report], title: str, steps: int | None, prices_of: str, override: str) -> None:
    """Writes `preflight.json` and `preflight.html` into an existing folder."""
    values = as_json(reports, steps, prices_of, override)
    (folder / "preflight.json").write_text(json.dumps(values, indent=2) + "\n")
    rows = [(cells(report), report) for report in reports]
    page = render(
        "preflight.html", title=title, columns=COLUMNS, rows=rows, steps=steps, prices_of=prices_of, override=override
    )
    (folder / "preflight.html").write_text(page, encoding="utf-8")
