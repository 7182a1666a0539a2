"""Compiles the training step for the hardware that is to run it, and stops when it does not fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from paligemma.artifacts.recording import recorded
from paligemma.artifacts.results import Result
from paligemma.artifacts.store import input_of, produce
from paligemma.checkpoints.describe import describe_opened
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.command_line import say_moved
from paligemma.models.config import PaliGemmaConfig
from paligemma.preflight.analyze import DoesNotFitError, Report, device_memory, examine, in_gib, read_prices
from paligemma.preflight.choice import Choice, in_words
from paligemma.preflight.choose import choose, choose_blindly
from paligemma.preflight.compiler import CompilerMissingError, compiler_version
from paligemma.preflight.disk import Disk, examine_disk
from paligemma.preflight.render import write, write_choice
from paligemma.preflight.search import find_fitting
from paligemma.preflight.targets import find_target
from paligemma.training.open_recipe import OpenRecipe
from paligemma.training.recipe import check_images

log = logging.getLogger("paligemma.preflight")

ARTIFACT_TYPE = "preflight"


@recorded("preflight")
def check(
    checkpoint: str,
    output: str,
    recipe: OpenRecipe,
    target: str,
    max_text_tokens: int,
    warn_only: bool,
    decode_batch: int = 0,
    images_per_example: int = 0,
) -> str:
    """As `run`, with the recipe read.

    Returns:
        Where the artifact is: OUTPUT, or what an earlier run of a pipeline made for the same job.

    Raises:
        DoesNotFitError: the target cannot hold the job; says what it can.
        InputError: the records will have other numbers of images than the recipe.
    """
    if images_per_example:
        check_images(recipe.recipe, images_per_example, "--images-per-example")
    base, (as_of, prices) = open_checkpoint(checkpoint), read_prices()
    disk = examine_disk(base, recipe.recipe)
    parameters = {"recipe": recipe.values(), "target": target, "text_tokens": max_text_tokens}
    parameters |= {"decode_batch": decode_batch} if decode_batch else {}
    result = Result.of(
        "preflight",
        Path(__file__).parent,
        parameters,
        [input_of("checkpoint", base.location)],
        compiler=compiler_version(target),
        memory=device_memory(find_target(target)),
        prices=[as_of, prices],
    )
    if (made := result.find()) is not None:
        return made
    with produce(output, ARTIFACT_TYPE, "preflight", parameters, [input_of("checkpoint", base.location)]) as draft:
        job = (base.config, target, max_text_tokens, prices)
        choice, report = _judge(job, recipe, decode_batch)
        taken = recipe.settled(choice.settings) if choice else recipe.recipe
        fitting = find_fitting(base.config, taken, target, max_text_tokens, prices) if report and not report.fits else None
        override = " ".join(f"--set {change}" for change in fitting[1]) if fitting else ""
        reports = [report] if report else []
        write(draft.folder, reports, f"Preflight: {target}", as_of, override, disk, describe_opened(base), choice)
        if choice:
            write_choice(draft.folder, choice, taken)
    if choice:
        log.info("chosen by %s: %s", choice.by, in_words(choice.settings))
    log.info("disk: %s", disk)
    if report is None:
        log.warning("Whether the job fits %s is not known: its compiler is not installed.", target)
    if error := _why_not(report, disk, target, override):
        if not warn_only:
            raise error
        log.warning("%s", error)
    elif report is not None:
        result.keep()
    return output


def _judge(
    job: tuple[PaliGemmaConfig, str, int, Mapping[str, float]], recipe: OpenRecipe, decode_batch: int
) -> tuple[Choice | None, Report | None]:
    """What was chosen for open settings, if there are any, and the report; none if there is no compiler for one."""
    config, target, text_tokens, prices = job
    if not recipe.open:
        return None, examine(config, recipe.recipe, target, text_tokens, prices, decoding=decode_batch)
    try:
        return choose(config, recipe, target, text_tokens, prices, decoding=decode_batch)
    except CompilerMissingError as error:
        log.warning("%s", error)
        return choose_blindly(recipe, target), None


def _why_not(report: Report | None, disk: Disk, target: str, override: str) -> DoesNotFitError | None:
    """The error of a job that does not fit; None if it does, or nobody knows."""
    if report is not None:
        needs = "more than there is" if "out_of_memory" in report.found else f"{in_gib(report.peak)} GiB"
        said = f"a device of {target} has {in_gib(report.limit)} GiB to give, the job needs {needs}"
        if not report.fits:
            return DoesNotFitError(
                f"The job does not fit: {said}.",
                where=target,
                fix=f"what fits: {override}" if override else "no recipe was found that fits: choose a larger target",
            )
        if disk.fits:
            log.info("it fits: %s", said)
    if not disk.fits:
        return DoesNotFitError(
            f"The job does not fit its machines' disks: {disk}.",
            where="pipelines/profiles.py",
            fix="give the profile's machines a larger disk there, and the nodes",
        )
    return None


if __name__ == "__main__":
    say_moved("components.preflight")
