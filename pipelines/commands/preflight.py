"""`paligemma preflight`: examines the command line's jobs one by one, or as a table of batch size by target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from components.presets import read_recipe
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.errors import InputError, PaliGemmaError
from paligemma.models.config import PaliGemmaConfig
from paligemma.preflight.analyze import PRICES_FILE, DoesNotFitError, Report, examine, read_prices
from paligemma.preflight.choice import Choice
from paligemma.preflight.choose import choose
from paligemma.preflight.render import (
    OF_A_SWEEP,
    markdown_line,
    sweep_row,
    sweep_table,
    tables,
    trial_table,
    write,
    write_choice,
)
from paligemma.preflight.search import find_fitting
from paligemma.preflight.targets import find_target, find_variant
from paligemma.progress import WorkProgress
from paligemma.storage.atomic import write_file
from paligemma.terminal import say, show_table, table_width
from paligemma.training.open_recipe import OpenRecipe

ONE_OF_EACH = "t4,l4,a10g,a100-40,h100-80,v5e-1,v5e-4,v5e-8,v6e-1"
"""Default targets of a sweep."""

EACH_MODEL = ",".join(
    f"{model}-pt-{size}" for model in ("paligemma-3b", "paligemma2-3b", "paligemma2-10b") for size in (224, 448, 896)
)
"""Default architectures of a sweep."""


@dataclass(frozen=True)
class Question:
    """The command line's arguments; see `paligemma preflight --help`."""

    variant: str
    checkpoint: str
    target: str
    recipe: str
    overrides: tuple[str, ...]
    batch_size: str
    frozen_dtype: str
    max_text_tokens: int
    rows: int | None
    prices: Path | None
    fresh: bool
    full_effort: bool
    decoding: int

    def architectures(self, otherwise: str = "") -> dict[str, PaliGemmaConfig]:
        """Architectures by name; `otherwise` if neither a variant nor a checkpoint is given.

        Raises:
            InputError: not exactly one of variant and checkpoint is given, or one cannot be found.
        """
        variants = self.variant or ("" if self.checkpoint else otherwise)
        if bool(variants) == bool(self.checkpoint):
            raise InputError("Give one of the two.", where="--variant, --checkpoint")
        if self.checkpoint:
            return {self.checkpoint: open_checkpoint(self.checkpoint).config}
        return {name: find_variant(name) for name in _listed(variants)}

    def targets(self, otherwise: str) -> list[str]:
        """Names of the targets; `otherwise` if none is given.

        Raises:
            InputError: a target is unknown.
        """
        names = _listed(self.target or otherwise)
        for name in names:
            find_target(name)
        return names

    def recipes(self) -> list[OpenRecipe]:
        """One recipe for each batch size and dtype of frozen parameters.

        Raises:
            InputError: the recipe or an override is wrong.
        """
        dtypes = [[f"frozen_dtype={dtype}"] for dtype in _listed(self.frozen_dtype)] or [[]]
        sizes = [[f"batch_size={size}"] for size in _listed(self.batch_size)] or [[]]
        return [read_recipe(self.recipe, [*self.overrides, *dtype, *size]) for dtype in dtypes for size in sizes]

    def examine(self, config: PaliGemmaConfig, recipe: OpenRecipe, target: str) -> tuple[Report, Choice | None]:
        """Compiles and judges one job; if settings are open, after choosing them."""
        _, prices = read_prices(self.prices or PRICES_FILE)
        how = {"fresh": self.fresh, "rows": self.rows, "full_effort": self.full_effort, "decoding": self.decoding}
        if not recipe.open:
            return examine(config, recipe.recipe, target, self.max_text_tokens, prices, **how), None
        choice, report = choose(config, recipe, target, self.max_text_tokens, prices, **how)
        return report, choice


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
    found = [question.examine(config, recipe, target) for recipe, target in jobs]
    reports = [report for report, _ in found]
    title = f"{name}: one step, GiB a device (prices of {as_of})"
    _print(title, *tables(reports, table_width()))
    for (recipe, target), (_, choice) in zip(jobs, found, strict=True):
        if choice is not None:
            say_choice(choice, f"{target}, batch {recipe.recipe.batch_size}")
    override, choice = "", found[0][1] if len(jobs) == 1 else None
    taken = jobs[0][0].settled(choice.settings) if choice else jobs[0][0].recipe
    if len(jobs) == 1 and not reports[0].fits:
        say("It does not fit. Looking for the cheapest change that does; each trial is compiled.", error=True)
        fitting = find_fitting(config, taken, jobs[0][1], question.max_text_tokens, prices)
        override = " ".join(f"--set {change}" for change in fitting[1]) if fitting else ""
    _write(output, reports, title, as_of, override, choice)
    if output is not None and choice is not None:
        write_choice(output, choice, taken)
    if len(jobs) == 1 and not reports[0].fits:
        fix = f"what fits: {override}" if override else "no recipe was found that fits: choose a larger target"
        error = DoesNotFitError(f"The job does not fit {jobs[0][1]}.", fix=fix)
        if not warn_only:
            raise error
        say(error, lines=True, error=True)


def say_choice(choice: Choice, job: str) -> None:
    """Prints what was chosen, why the others were not, and the overrides that say the same."""
    say(f"{job}: chosen by {choice.by}")
    if choice.trials:
        show_table(trial_table(choice))
    say("  " + " ".join(f"--set {name}={str(value).lower()}" for name, value in choice.settings.items()), lines=True)


def tabulate(question: Question, output: Path | None, markdown: bool) -> None:
    """Examines every target with every architecture and batch size, and prints them as one table.

    A job whose compiler fails does not end the table. What was compiled is kept, so a table that is stopped goes on.
    """
    as_of, _ = read_prices(question.prices or PRICES_FILE)
    targets = question.targets(ONE_OF_EACH if not question.checkpoint else "cpu")
    architectures = question.architectures(EACH_MODEL)
    jobs = [
        (target, name, config, recipe)
        for name, config in architectures.items()
        for recipe in question.recipes()
        for target in targets
    ]
    title = f"One step by the compilers: GiB and GB of a device, TFLOP of all (prices of {as_of})"
    if markdown:
        say(markdown_line(OF_A_SWEEP), lines=True)
        say(markdown_line(["---"] * len(OF_A_SWEEP)), lines=True)
    rows, reports = [], []
    with WorkProgress("compiling", "jobs", len(jobs)) as progress:
        for target, name, config, recipe in jobs:
            report, choice = _examined(question, config, recipe, target)
            rows.append(
                sweep_row((target, name, recipe.recipe.batch_size, str(recipe.values()["frozen_dtype"])), report, choice)
            )
            reports += [report] if report else []
            if markdown:
                say(markdown_line(rows[-1]), lines=True)
            progress.advance(facts=f"{name}, {target}")
    if not markdown:
        _print(title, sweep_table(rows))
    _write(output, reports, title, as_of, "", None)
    if output is not None:
        lines = [OF_A_SWEEP, ["---"] * len(OF_A_SWEEP), *rows]
        write_file(output / "table.md", "".join(f"{markdown_line(line)}\n" for line in lines))


def _examined(
    question: Question, config: PaliGemmaConfig, recipe: OpenRecipe, target: str
) -> tuple[Report | None, Choice | None]:
    try:
        return question.examine(config, recipe, target)
    except InputError:
        raise
    except PaliGemmaError as error:
        say(error, lines=True, error=True)
        return None, None


def _print(title: str, *tables: Table) -> None:
    say(title)
    for table in tables:
        show_table(table)


def _write(output: Path | None, reports: list[Report], title: str, as_of: str, override: str, choice: Choice | None) -> None:
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write(output, reports, title, as_of, override, choice=choice)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
