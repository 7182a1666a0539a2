"""Renders a preflight as a table, Markdown, JSON and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from paligemma.artifacts.pages import neighbours
from paligemma.artifacts.recording import about_attempt
from paligemma.preflight.analyze import Decoding, Report, in_gib, needed_memory
from paligemma.preflight.choice import CHOICE_FILE, RECIPE_FILE, Choice, in_words
from paligemma.preflight.disk import Disk
from paligemma.reports.page import render, write_page
from paligemma.storage.atomic import write_file
from paligemma.training.recipe import Recipe
from paligemma.yaml_text import dump_yaml

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


Job = tuple[str, str, int, str]
"""Target, model, batch and dtype of frozen parameters, as a table names them."""


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


OF_A_SWEEP = (
    "target",
    "model",
    "batch",
    "frozen",
    "GiB",
    "limit",
    "fits",
    "TFLOP",
    "GB",
    "GB received",
    "s/step at best",
    "MFU",
    "GB a token",
    "chosen",
)


def sweep_row(job: Job, report: Report | None, choice: Choice | None = None) -> tuple[str, ...]:
    """A row of the table of a sweep, by `OF_A_SWEEP`: GiB and GB of a device, TFLOP of all devices; GB of a token if asked for.

    Args:
        job: see `Job`.
        report: what was found; None if the compiler failed.
        choice: what was chosen for open settings.
    """
    target, model, batch, frozen = job
    named = (target, model, str(batch), frozen)
    if report is None:
        return (*named, "the compiler failed", *("",) * (len(OF_A_SWEEP) - len(named) - 1))
    return (
        *named,
        "out of memory" if "out_of_memory" in report.found else in_gib(report.peak),
        in_gib(report.limit),
        "yes" if report.fits else "no",
        "" if report.flops_done is None else f"{sum(report.flops_done.values()) / 1e12:.1f}",
        _number(report.bytes_moved, 1e9, ".1f"),
        _number(report.bytes_received, 1e9, ".1f"),
        _number(report.seconds, form=".3f"),
        _number(report.share_of_peak, form=".0%"),
        _number(report.decoding.token_bytes, 1e9, ".2f") if report.decoding else "",
        in_words(choice.settings) if choice else "",
    )


def sweep_table(rows: Sequence[Sequence[str]]) -> Table:
    """Rows of `sweep_row` for a terminal, without empty columns."""
    kept = [number for number, column in enumerate(zip(*rows, strict=True)) if any(column)]
    return _table([OF_A_SWEEP[number] for number in kept], [[row[number] for number in kept] for row in rows])


def markdown_line(cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def write(
    folder: Path,
    reports: Sequence[Report],
    title: str,
    prices_of: str,
    override: str,
    disk: Disk | None = None,
    model: str = "",
    choice: Choice | None = None,
) -> None:
    """Writes `preflight.json` and `preflight.html` into an existing folder, with disk, model and choice if given."""
    values = {"reports": [report.as_json() for report in reports], "prices_of": prices_of, "override": override}
    values |= {"disk": disk.as_json()} if disk else {}
    values |= {"choice": choice.model_dump(mode="json")} if choice else {}
    write_file(folder / "preflight.json", json.dumps(values, indent=2) + "\n")

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
            choice=choice,
            trials=trial_rows(choice) if choice else [],
            trial_columns=OF_A_TRIAL,
            about=about_attempt(),
            links=neighbours(),
        )

    write_page(folder / "preflight.html", page)


def write_choice(folder: Path, choice: Choice, recipe: Recipe) -> None:
    """Writes `choice.json`, which `finetune` reads, and the whole recipe as `recipe.yaml`, which every `--recipe` takes."""
    write_file(folder / CHOICE_FILE, choice.model_dump_json(indent=2) + "\n")
    write_file(folder / RECIPE_FILE, dump_yaml(recipe.model_dump(mode="json", exclude_none=True)))


OF_A_TRIAL = ("candidate", "GiB", "s/step at best", "fits", "verdict")


def trial_rows(choice: Choice) -> list[tuple[str, ...]]:
    """A row for every recipe that was compiled for a choice, by `OF_A_TRIAL`."""
    return [
        (
            in_words(trial.settings),
            "out of memory" if trial.peak is None else in_gib(trial.peak),
            _number(trial.seconds, form=".3f"),
            "yes" if trial.fits else "no",
            trial.verdict,
        )
        for trial in choice.trials
    ]


def trial_table(choice: Choice) -> Table:
    """`trial_rows` for a terminal."""
    return _table(OF_A_TRIAL, trial_rows(choice))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    made = Table()
    for number, column in enumerate(header):
        made.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
