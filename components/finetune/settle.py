"""Settles a recipe's open settings before a run: by its saved state, preflight's choice, or the default of its devices."""

from __future__ import annotations

import logging
from typing import cast

import jax

from paligemma.artifacts.record import read_record
from paligemma.artifacts.store import localize
from paligemma.choices import ComputeDtype
from paligemma.precision import Precision
from paligemma.preflight.choice import Choice, Platform, default_choice, in_words, read_choice
from paligemma.storage.location import parse_location
from paligemma.training.open_recipe import OpenRecipe
from paligemma.training.resume_check import saved_recipe

log = logging.getLogger("paligemma.finetune")


def settle(asked: OpenRecipe, preflight: str = "", state: str = "") -> Choice | None:
    """A value for every open setting, for the devices of this run; None if nothing is open.

    A run that goes on has to have the settings that it began with. So what the saved state says comes first. What preflight
    chose is taken only on such devices as it chose for: on others it may not fit.

    Args:
        asked: the recipe.
        preflight: folder or `gs://` prefix of a preflight of the same recipe; empty: there is none.
        state: folder or `gs://` prefix where the state of this very run is, if there is one; empty: unknown.

    Raises:
        InputError: there is no preflight at its location.
        DamagedError: the state's or the preflight's file cannot be read.
    """
    if not asked.open:
        return None
    platform, devices = cast(Platform, jax.default_backend()), jax.device_count()
    saved = saved_recipe(parse_location(state)) if state else {}
    settings = {name: value for name in asked.open if isinstance(value := saved.get(name), bool | int | str)}
    if len(settings) == len(asked.open):
        choice = Choice(settings=settings, by="the saved state", platform=platform, devices=devices)
    else:
        choice = _chosen(asked, preflight, platform, devices)
    log.info("chosen by %s: %s", choice.by, in_words(choice.settings))
    return choice


def _chosen(asked: OpenRecipe, preflight: str, platform: Platform, devices: int) -> Choice:
    compute = cast(ComputeDtype, Precision.of(asked.recipe.compute_dtype).products.name)
    if not preflight:
        why = "no preflight was given"
    elif (choice := _read(preflight)) is None:
        why = "preflight was asked about a recipe that left nothing open"
    elif not choice.suits(platform, devices):
        why = f"preflight chose for {choice.devices} x {choice.platform}, and here are {devices} x {platform}"
    else:
        return choice
    if preflight:
        log.warning("What preflight chose is not taken: %s.", why)
    return default_choice(asked.open, platform, devices, compute, why)


def _read(preflight: str) -> Choice | None:
    read_record(localize(preflight), "preflight")  # refuses what is not there, and another step's folder
    return read_choice(preflight)
