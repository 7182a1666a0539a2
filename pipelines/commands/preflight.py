"""`paligemma preflight`: examines the command line's jobs one by one, or as a table of batch size by target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from components.presets import read_recipe
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.errors import InputError
from paligemma.models.config import PaliGemmaConfig
from paligemma.preflight.analyze import PRICES_FILE, DoesNotFitError, Report, examine, read_prices
from paligemma.preflight.render import grid_markdown, grid_table, tables, write
from paligemma.preflight.search import find_fitting
from paligemma.preflight.targets import find_target, find_variant
from paligemma.progress import WorkProgress
from paligemma.terminal import say, show_table, table_width
from paligemma.training.recipe import Recipe

ONE_OF_EACH = "t4,l4,a10g,a100-40,h100-80,v5e-1,v5e-4,v5e-8,v6e-1"
"""Default targets of a sweep."""


@dataclass(frozen=True)
class Question:
    """The command line's arguments; see `paligemma preflight --help`."""

    variant: str
    checkpoint: str
    target: str
    recipe: str
    overrides: tuple[str, ...]
    batch_size: str
    max_text_tokens: int
    rows: int | None
    prices: Path | None
    fresh: bool
    full_effort: bool
    decoding: int

    def architectures(self) -> dict[str, PaliGemmaConfig]:
        """Architectures by name.

        Raises:
            InputError: not exactly one of variant and checkpoint is given, or one cannot be found.
        """
        if bool(self.variant) == bool(self.checkpoint):
            raise InputError("Give one of the two.", where="--variant, --checkpoint")
        if self.checkpoint:
            return {self.checkpoint: open_checkpoint(self.checkpoint).config}
        return {name: find_variant(name) for name in _listed(self.variant)}

    def targets(self, otherwise: str) -> list[str]:
        """Names of the targets; `otherwise` if none is given.

        Raises:
            InputError: a target is unknown.
        """
        names = _listed(self.target or otherwise)
        for name in names:
            find_target(name)
        return names

    def recipes(self) -> list[Recipe]:
        """One recipe for each batch size.

        Raises:
            InputError: the recipe or an override is wrong.
        """
        sizes = [[f"batch_size={size}"] for size in _listed(self.batch_size)] or [[]]
        return [read_recipe(self.recipe, [*self.overrides, *size]) for size in sizes]

    def examine(self, config: PaliGemmaConfig, recipe: Recipe, target: str) -> Report:
        """Compiles and judges one job."""
        _, prices = read_prices(self.prices or PRICES_FILE)
        how = {"fresh": self.fresh, "rows": self.rows, "full_effort": self.full_effort, "decoding": self.decoding}
        return examine(config, recipe, target, self.max_text_tokens, prices, **how)


def ask(question: Question, output: Path | None, warn_only: bool) -> None:
    """Examines every job. For a single job that does not fit, searches for a recipe that does.

    Raises:
        DoesNotFitError: the only job does not fit.
    """
    architectures = question.architectures()
    if len(architectures) > 1:
        raise InputError("Several architectures make a table.", where="--variant", fix="add --sweep, or name one")
    ((name, config),) = architectures.items()
    as_of, prices = read_prices(question.prices or PRICES_FILE)
    jobs = [(recipe, target) for recipe in question.recipes() for target in question.targets("cpu")]
    reports = [question.examine(config, recipe, target) for recipe, target in jobs]
    title = f"{name}: one step, GiB a device (prices of {as_of})"
    _print(title, *tables(reports, table_width()))
    override = ""
    if len(jobs) == 1 and not reports[0].fits:
        say("It does not fit. Looking for the cheapest change that does; each trial is compiled.", error=True)
        fitting = find_fitting(config, *jobs[0], question.max_text_tokens, prices)
        override = " ".join(f"--set {change}" for change in fitting[1]) if fitting else ""
    _write(output, reports, title, as_of, override)
    if len(jobs) == 1 and not reports[0].fits:
        fix = f"what fits: {override}" if override else "no recipe was found that fits: choose a larger target"
        error = DoesNotFitError(f"The job does not fit {jobs[0][1]}.", fix=fix)
        if not warn_only:
            raise error
        say(error, lines=True, error=True)


def tabulate(question: Question, output: Path | None, markdown: bool) -> None:
    """Examines every target with every architecture and batch size, and prints them as one table."""
    as_of, _ = read_prices(question.prices or PRICES_FILE)
    targets = question.targets(ONE_OF_EACH if question.variant else "cpu")
    jobs = {
        f"{name}, batch {recipe.batch_size}": (config, recipe)
        for name, config in question.architectures().items()
        for recipe in question.recipes()
    }
    pairs = [(name, target) for name in jobs for target in targets]
    reports: dict[str, list[Report]] = {name: [] for name in jobs}
    with WorkProgress("compiling", "jobs", len(pairs)) as progress:
        for name, target in pairs:
            reports[name].append(question.examine(*jobs[name], target))
            progress.advance(facts=f"{name}, {target}")
    title = f"Peak of one step, GiB a device (prices of {as_of})"
    if markdown:
        say(grid_markdown(reports), lines=True)
    else:
        _print(title, grid_table(reports))
    _write(output, [report for several in reports.values() for report in several], title, as_of, "")


def _print(title: str, *tables: Table) -> None:
    say(title)
    for table in tables:
        show_table(table)


def _write(output: Path | None, reports: list[Report], title: str, as_of: str, override: str) -> None:
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write(output, reports, title, as_of, override)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
