"""What was chosen for the open settings of a recipe, the rule by which it was, and what is taken when nobody can compile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from paligemma.artifacts.store import localize
from paligemma.choices import ComputeDtype
from paligemma.foreign_json import SMALL_BYTES, read_model
from paligemma.training.open_recipe import Setting

EQUAL = 0.01
"""Share of the least seconds within which others count as equal: the account of a program is no finer."""

CHOICE_FILE = "choice.json"
"""File of a preflight's folder with a `Choice`; there is none if the recipe left nothing open."""
RECIPE_FILE = "recipe.yaml"
"""File beside it: the whole recipe with what was chosen, which every `--recipe` takes."""

Platform = Literal["cpu", "gpu", "tpu"]
"""JAX's name of the devices' platform."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(_Part):
    """A recipe that was compiled.

    Attributes:
        settings: its values of the open settings.
        fits: whether the target holds it.
        peak: bytes of one device; None if the compiler gave up.
        seconds: least seconds of a step; None if the target's speed is unknown, or the program could not be read.
        verdict: why it was or was not chosen, for people.
    """

    settings: dict[str, Setting]
    fits: bool
    peak: int | None = None
    seconds: float | None = None
    verdict: str = ""


class Choice(_Part):
    """Values for the open settings of a recipe.

    Attributes:
        settings: the values by key.
        by: who chose them, for people.
        platform: of the devices that they are for.
        devices: number of these.
        trials: what was compiled, in that order; none if it could not be.
    """

    settings: dict[str, Setting]
    by: str
    platform: Platform
    devices: Annotated[int, Field(gt=0)]
    trials: tuple[Trial, ...] = ()

    def suits(self, platform: str, devices: int) -> bool:
        """Whether it was made for such devices."""
        return (self.platform, self.devices) == (platform, devices)


def fastest(trials: Sequence[Trial]) -> Trial | None:
    """The trial to take; None if none fits.

    Of those that fit it is the one with the least seconds. Others within `EQUAL` of that count as equal. Of equal ones it is
    the one that changes numbers least (one part of a batch before several, frozen parameters in float16 before bfloat16), then
    the one that compiles quicker (a loop), then the one that needs less memory, then the first. If no seconds are known, it is
    the first that fits.
    """
    fitting = [trial for trial in trials if trial.fits]
    timed = [(trial.seconds, trial) for trial in fitting if trial.seconds is not None]
    if not timed:
        return fitting[0] if fitting else None
    least = min(seconds for seconds, _ in timed)
    return min((trial for seconds, trial in timed if seconds <= least * (1 + EQUAL)), key=_preference)


def _preference(trial: Trial) -> tuple[Setting, ...]:
    settings = trial.settings
    in_loop = not settings.get("unroll", False)
    return (settings.get("accumulate", 1), settings.get("frozen_dtype", "") == "bfloat16", not in_loop, trial.peak or 0)


def judged(trials: Sequence[Trial]) -> list[Trial]:
    """The trials with their verdicts."""
    taken = fastest(trials)
    return [trial.model_copy(update={"verdict": _verdict(trial, taken)}) for trial in trials]


def _verdict(trial: Trial, taken: Trial | None) -> str:
    if trial is taken:
        return "chosen"
    if not trial.fits:
        return trial.verdict or "does not fit"
    if taken is None or taken.seconds is None:
        return "slower, by the estimate before compiling"
    if trial.seconds is None:
        return "its program could not be read"
    if trial.seconds <= taken.seconds * (1 + EQUAL):
        return "as fast, but less preferred"
    return f"slower by {trial.seconds / taken.seconds - 1:.0%}"


def in_words(settings: Mapping[str, Setting]) -> str:
    """Settings as `--set` takes them, e.g. `remat=dots, unroll=false`."""
    return ", ".join(f"{name}={str(value).lower()}" for name, value in settings.items())


def default_settings(compute: ComputeDtype) -> dict[str, Setting]:
    """What open settings are where no compiler was asked: what needs least memory, as nobody knows whether more fits.

    Args:
        compute: the dtype of products on the devices: frozen parameters are bfloat16 where it is, else float16.
    """
    frozen = "bfloat16" if compute == "bfloat16" else "float16"
    return {"remat": "full", "frozen_dtype": frozen, "accumulate": 1, "data_parallel": 1, "unroll": False}


def default_choice(names: Sequence[str], platform: Platform, devices: int, compute: ComputeDtype, why: str) -> Choice:
    """`default_settings` for the open settings `names`.

    Args:
        names: the open settings.
        platform, devices: where the recipe will run.
        compute: see `default_settings`.
        why: why no compiler was asked, for people.
    """
    values = default_settings(compute)
    return Choice(
        settings={name: values[name] for name in names},
        by=f"the default for {platform}: {why}",
        platform=platform,
        devices=devices,
    )


def read_choice(preflight: str) -> Choice | None:
    """The choice in a preflight's folder or `gs://` prefix; None if its recipe left nothing open.

    Raises:
        InputError: nothing is there.
        DamagedError: the choice cannot be read.
    """
    path = localize(preflight) / CHOICE_FILE
    if not path.is_file():
        return None
    return read_model(path, Choice, "What preflight chose", most=SMALL_BYTES, fix="run preflight again")
