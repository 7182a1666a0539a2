"""Compiles a few recipes that differ in open settings only, and takes the fastest that fits.

First come recipes that differ in `remat`, `accumulate` and `data_parallel`, in the order of the estimate `search.cost`, with
frozen parameters in the dtype that the target computes in, and the layers in a loop. Not compiled is one

- whose parameters and saved activations alone do not fit,
- that needs at least the memory of one that did not fit,
- that cannot be faster than one that fits: it has more parts of a batch, or fewer copies of the parameters, or in bfloat16
  recomputes more, and nothing else is different,
- whose estimate is more than `SLACK` above that of the first that fits. The list ends there.

Then the fastest of these is compiled with frozen parameters in float16, and the fastest of all with layers one by one.
`choice.fastest` decides.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence

from paligemma.choices import ComputeDtype
from paligemma.errors import InputError, PaliGemmaError
from paligemma.models.config import PaliGemmaConfig
from paligemma.preflight.analyze import Report, device_memory, examine
from paligemma.preflight.choice import Choice, Platform, Trial, default_choice, default_settings, fastest, in_words, judged
from paligemma.preflight.search import POLICIES, cost, least, needs_at_least
from paligemma.preflight.targets import Target, find_target
from paligemma.progress import WorkProgress
from paligemma.training.open_recipe import OpenRecipe, Setting
from paligemma.training.recipe import Recipe

log = logging.getLogger("paligemma.preflight")

SLACK = 0.15
"""Share by which the estimate of one recipe may be wrong beside that of another with equal training."""

SLACK_OF_FLOAT16 = 0.5
"""The same where products are not in bfloat16: the estimate takes keeping for free, see `_no_faster`."""

MOST = 12
"""Most recipes that differ in `remat`, `accumulate` and `data_parallel` and are compiled."""

_WALKED = ("remat", "accumulate", "data_parallel")

_TRIED_LAST: dict[str, Setting] = {"frozen_dtype": "float16", "unroll": True}


def choose(
    config: PaliGemmaConfig,
    asked: OpenRecipe,
    target: str,
    text_tokens: int,
    prices: Mapping[str, float],
    fresh: bool = False,
    rows: int | None = None,
    full_effort: bool = False,
    decoding: int = 0,
) -> tuple[Choice, Report]:
    """Chooses the open settings of a recipe, and judges the recipe that they make.

    If none fits, the choice is the default, and so is the recipe that is judged.

    Args:
        asked: the recipe, of which at least one setting is open.
        config, target, text_tokens, prices, fresh, rows, full_effort, decoding: see `examine`.

    Raises:
        CompilerMissingError: the target's compiler is not installed; see `choose_blindly`.
        InputError, PaliGemmaError: see `examine`.
    """
    place = find_target(target)

    def judge(recipe: Recipe, decoding: int = 0) -> Report:
        return examine(config, recipe, target, text_tokens, prices, fresh, rows, full_effort, decoding)

    trials: list[Trial] = []
    reports: list[tuple[Recipe, Report]] = []
    with WorkProgress("compiling", "recipes") as progress:

        def attempt(recipe: Recipe) -> bool | None:
            """Whether a recipe fits; None if the compiler failed for another reason than memory."""
            settings = {name: getattr(recipe, name) for name in asked.open}
            try:
                report = judge(recipe)
            except InputError:
                raise
            except PaliGemmaError as error:  # of one recipe; others may compile
                log.warning("%s: %s", in_words(settings), error)
                trials.append(Trial(settings=settings, fits=False, verdict="the compiler failed"))
                return None
            finally:
                progress.advance(facts=f"{target}, {in_words(settings)}")
            trials.append(Trial(settings=settings, fits=report.fits, peak=report.peak or None, seconds=report.seconds))
            reports.append((recipe, report))
            return report.fits

        _walk(walked(config, asked, place, text_tokens), place, config, text_tokens, attempt)
        for name, value in _TRIED_LAST.items():
            best = fastest(trials)
            if name in asked.open and best and best.seconds is not None and best.settings[name] != value:
                attempt(asked.settled(best.settings | {name: value}))
    best = fastest(trials)
    if best is None:
        choice = _default(asked, place, "no recipe that was compiled fits")
        return choice.model_copy(update={"trials": tuple(judged(trials))}), judge(asked.settled(choice.settings), decoding)
    recipe = asked.settled(best.settings)
    report = next(report for tried, report in reports if tried == recipe)
    by = f"preflight for {target}: the fastest of {len(trials)} that were compiled"
    if best.seconds is None:
        by = f"preflight for {target}: the first that fits, as its seconds are unknown"
    choice = Choice(
        settings=best.settings, by=by, platform=_platform(place), devices=place.devices, trials=tuple(judged(trials))
    )
    return choice, judge(recipe, decoding) if decoding else report


def choose_blindly(asked: OpenRecipe, target: str) -> Choice:
    """The default for a target whose compiler is not installed."""
    return _default(asked, find_target(target), f"the compiler for {target} is not installed")


def walked(config: PaliGemmaConfig, asked: OpenRecipe, place: Target, text_tokens: int) -> list[Recipe]:
    """The recipes that differ in `remat`, `accumulate` and `data_parallel`, and may fit, in the order of their estimates."""
    batch_size, devices = asked.recipe.batch_size, place.devices
    values: dict[str, Sequence[Setting]] = {
        "remat": POLICIES,
        "accumulate": [n for n in range(1, batch_size // devices + 1) if batch_size % (n * devices) == 0] or [1],
        "data_parallel": [n for n in range(1, devices + 1) if devices % n == 0],
    }
    others = default_settings(_compute(asked, place))
    names = [name for name in _WALKED if name in asked.open]
    made = [
        asked.settled(others | dict(zip(names, chosen, strict=True)))
        for chosen in itertools.product(*(values[name] for name in names))
    ]
    limit = device_memory(place) * (1 - place.margin)
    needed = {id(recipe): least(config, recipe, place, text_tokens) for recipe in made}
    may_fit = [recipe for recipe in made if needed[id(recipe)] < limit] or [min(made, key=lambda recipe: needed[id(recipe)])]
    return sorted(may_fit, key=lambda recipe: cost(config, recipe, place, text_tokens))


def _walk(
    recipes: Sequence[Recipe],
    place: Target,
    config: PaliGemmaConfig,
    text_tokens: int,
    attempt: Callable[[Recipe], bool | None],
) -> None:
    """Compiles recipes in their order, until none can win."""
    fitted: list[Recipe] = []
    too_large: list[Recipe] = []
    tried, keeping_is_cheap = 0, place.compute == "bfloat16"
    slack = SLACK if keeping_is_cheap else SLACK_OF_FLOAT16
    for recipe in recipes:
        estimate = cost(config, recipe, place, text_tokens)
        if fitted and (not place.tflops or estimate > (1 + slack) * cost(config, fitted[0], place, text_tokens)):
            break
        if any(needs_at_least(recipe, other) for other in too_large):
            continue
        if any(_no_faster(recipe, other, keeping_is_cheap) for other in fitted):
            continue
        if tried == MOST:
            break
        tried += 1
        if (fits := attempt(recipe)) is not None:
            (fitted if fits else too_large).append(recipe)


def _no_faster(recipe: Recipe, other: Recipe, keeping_is_cheap: bool) -> bool:
    """Whether a recipe does everything that another one does, and more.

    In bfloat16, computing a product over a width D again takes 2 D operations for an element that would take 4 bytes of traffic
    to keep. Gemma's least width is 2048, so that is 1024 operations a byte. The fastest card for its memory does 560 (v6e), so
    keeping it is faster, unless what is kept has no product (`none` beside `dots`). In float16, what is kept is float32 and is
    scaled again for its next product: on a T4, `dots` takes 16 % longer than `attention`.
    """
    policy, others = POLICIES.index(recipe.remat), POLICIES.index(other.remat)
    more = policy == others or (keeping_is_cheap and policy > others >= POLICIES.index("dots"))
    return more and recipe.accumulate >= other.accumulate and recipe.data_parallel <= other.data_parallel


def _default(asked: OpenRecipe, place: Target, why: str) -> Choice:
    return default_choice(asked.open, _platform(place), place.devices, _compute(asked, place), why)


def _compute(asked: OpenRecipe, place: Target) -> ComputeDtype:
    told = asked.recipe.compute_dtype
    return place.compute if told == "auto" else told


def _platform(place: Target) -> Platform:
    return "gpu" if place.platform == "cuda" else place.platform
