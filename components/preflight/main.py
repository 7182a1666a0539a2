"""Compiles the training step for the hardware that is to run it, and stops when it does not fit."""

from __future__ import annotations

import logging

from paligemma.artifacts.recording import recorded
from paligemma.artifacts.store import input_of, produce
from paligemma.checkpoints.describe import describe_opened
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.command_line import say_moved
from paligemma.preflight.analyze import DoesNotFitError, examine, in_gib, read_prices
from paligemma.preflight.disk import examine_disk
from paligemma.preflight.render import write
from paligemma.preflight.search import find_fitting
from paligemma.training.recipe import Recipe

log = logging.getLogger("paligemma.preflight")

ARTIFACT_TYPE = "preflight"


@recorded("preflight")
def check(
    checkpoint: str, output: str, recipe: Recipe, target: str, max_text_tokens: int, warn_only: bool, decode_batch: int = 0
) -> None:
    """As `run`, with the recipe read.

    Raises:
        DoesNotFitError: the target cannot hold the job; says what it can.
    """
    base, (as_of, prices) = open_checkpoint(checkpoint), read_prices()
    disk = examine_disk(base, recipe)
    parameters = {"recipe": recipe.model_dump(mode="json"), "target": target, "text_tokens": max_text_tokens}
    parameters |= {"decode_batch": decode_batch} if decode_batch else {}
    with produce(output, ARTIFACT_TYPE, "preflight", parameters, [input_of("checkpoint", base.location)]) as draft:
        report = examine(base.config, recipe, target, max_text_tokens, prices, decoding=decode_batch)
        fitting = None if report.fits else find_fitting(base.config, recipe, target, max_text_tokens, prices)
        override = " ".join(f"--set {change}" for change in fitting[1]) if fitting else ""
        write(draft.folder, [report], f"Preflight: {target}", as_of, override, disk, describe_opened(base))
    needs = "more than there is" if "out_of_memory" in report.found else f"{in_gib(report.peak)} GiB"
    said = f"a device of {target} has {in_gib(report.limit)} GiB to give, the job needs {needs}"
    log.info("disk: %s", disk)
    if report.fits and disk.fits:
        log.info("it fits: %s", said)
        return
    if report.fits:
        error = DoesNotFitError(
            f"The job does not fit its machines' disks: {disk}.",
            where="pipelines/profiles.py",
            fix="give the profile's machines a larger disk there, and the nodes",
        )
    else:
        error = DoesNotFitError(
            f"The job does not fit: {said}.",
            where=target,
            fix=f"what fits: {override}" if override else "no recipe was found that fits: choose a larger target",
        )
    if not warn_only:
        raise error
    log.warning("%s", error)


if __name__ == "__main__":
    say_moved("components.preflight")
