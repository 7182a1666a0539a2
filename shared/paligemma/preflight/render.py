"""Renders a preflight as a table, Markdown, JSON and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from paligemma.artifacts.pages import neighbours
from paligemma.artifacts.recording import about_attempt
from paligemma.preflight.analyze import Decoding, Report, in_gib, needed_memory
from paligemma.preflight.disk import Disk
from paligemma.reports.page import render, write_page

COLUMNS = (
    "target",
    "batch",
    "arguments",
    "temporaries",
    "peak",
    "limit",
    "fits",
    "TFLOP needed",
    "TFLOP done",
    "in float32",
    "GB moved",
    "GB received",
    "s/step at best",
    "of peak speed",
    "hours",
    "$",
    "compiled in s",
)
OF_DECODING = (
    "prompts decoded",
    "peak of decoding",
    "s to prefill at best",
    "GB a token",
    "to 16-bit weights",
    "s/token at best",
)


def columns(reports: Sequence[Report]) -> tuple[str, ...]:
    """The names of what `cells` gives."""
    return COLUMNS + (OF_DECODING if any(report.decoding for report in reports) else ())


def cells(report: Report) -> tuple[str, ...]:
    """A row of the table, as long as the report has figures; memory is in GiB per device."""
    found, done = report.found, report.flops_done
    given_up = "out_of_memory" in found
    return (
        report.target,
        str(report.batch_size),
        "" if given_up else in_gib(found["arguments"]),
        "" if given_up else in_gib(found["temporaries"]),
        "out of memory" if given_up else in_gib(report.peak),
        in_gib(report.limit),
        "yes" if report.fits else "no",
        _number(report.flops, 1e12),
        "" if done is None else _number(sum(done.values()), 1e12),
        "" if done is None else _number(done.get("f32", 0), 1e12),
        _number(report.bytes_moved, 1e9),
        _number(report.bytes_received, 1e9),
        _number(report.seconds, form=".3f"),
        _number(report.share_of_peak, form=".0%"),
        _number(report.hours),
        _number(report.dollars, form=".2f"),
        _number(found.get("compile_seconds"), form=".0f"),
        *(_cells_of_decoding(report.decoding) if report.decoding else ()),
    )


def _cells_of_decoding(decoding: Decoding) -> tuple[str, ...]:
    moved = decoding.token_bytes
    return (
        str(decoding.rows),
        "out of memory" if "out_of_memory" in decoding.found else in_gib(needed_memory(decoding.found)),
        _number(decoding.prefill_seconds),
        _number(moved, 1e9),
        _number(moved, decoding.parameter_bytes, ".2f"),
        _number(decoding.token_seconds),
    )


def _number(value: float | None, scale: float = 1.0, form: str = ".3g") -> str:
    return "" if value is None else f"{value / scale:{form}}"


def tables(reports: Sequence[Report], width: int) -> list[Table]:
    """Tables for a terminal of `width` characters: a row per figure, a column per job, as many columns as fit."""
    names, filled = _filled(reports)
    job = max(len(cell) for column in filled for cell in column) + len(" │ ")
    at_once = max(1, (width - max(map(len, names)) - len("│ ") - len(" │")) // job)
    made = []
    for start in range(0, len(filled), at_once):
        header, *rows = zip(names, *filled[start : start + at_once], strict=True)
        made.append(_table(header, rows))
    return made


def _filled(reports: Sequence[Report]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Names of columns, and a row of cells for every report; cells of what was not asked for are empty."""
    names = columns(reports)
    return names, [(one := cells(report)) + ("",) * (len(names) - len(one)) for report in reports]


def grid(by_job: Mapping[str, Sequence[Report]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of targets by jobs: the peak in GiB per device, a step's seconds at best, and of decoding GB.

    Args:
        by_job: reports by job name, all for the same targets.
    """
    header = ["target", "limit"]
    for name in by_job:
        header += [f"{name}: peak", "s/step at best"]
        header += ["GB a token"] if by_job[name][0].decoding else []
    rows = []
    for reports in zip(*by_job.values(), strict=True):
        row = [reports[0].target, in_gib(reports[0].limit)]
        for report in reports:
            size = "out of memory" if "out_of_memory" in report.found else in_gib(report.peak)
            row += [
                size if report.fits or not report.peak else f"{size} (no)",
                "" if report.seconds is None else f"{report.seconds:.3f}",
            ]
            row += [_number(report.decoding.token_bytes, 1e9)] if report.decoding else []
        rows.append(row)
    return header, rows


def grid_table(by_job: Mapping[str, Sequence[Report]]) -> Table:
    """`grid` for a terminal."""
    return _table(*grid(by_job))


def grid_markdown(by_job: Mapping[str, Sequence[Report]]) -> str:
    """`grid` for a page of documentation."""
    header, rows = grid(by_job)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(
    folder: Path,
    reports: Sequence[Report],
    title: str,
    prices_of: str,
    override: str,
    disk: Disk | None = None,
    model: str = "",
) -> None:
    """Writes `preflight.json` and `preflight.html` into an existing folder, with the disk and model if given."""
    values = {"reports": [report.as_json() for report in reports], "prices_of": prices_of, "override": override}
    values |= {"disk": disk.as_json()} if disk else {}
    (folder / "preflight.json").write_text(json.dumps(values, indent=2) + "\n")

    def page() -> str:
        names, filled = _filled(reports)
        kept = [number for number, column in enumerate(zip(*filled, strict=True)) if any(column)]
        rows = [([line[number] for number in kept], report) for line, report in zip(filled, reports, strict=True)]
        return render(
            "preflight.html",
            model=model,
            title=title,
            columns=[names[number] for number in kept],
            rows=rows,
            prices_of=prices_of,
            override=override,
            disk=disk,
            about=about_attempt(),
            links=neighbours(),
        )

    write_page(folder / "preflight.html", page)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    made = Table()
    for number, column in enumerate(header):
        made.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
