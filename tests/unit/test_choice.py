"""The choice of a recipe's open settings: the rule, the few recipes that are compiled for it, and what is taken without."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from components.preflight.main import check
from paligemma.errors import DamagedError, InputError, PaliGemmaError
from paligemma.models.config import VARIANTS
from paligemma.preflight import compiler
from paligemma.preflight.analyze import MEMORY_VARIABLE, DoesNotFitError
from paligemma.preflight.choice import (
    CHOICE_FILE,
    EQUAL,
    RECIPE_FILE,
    Choice,
    Trial,
    default_settings,
    fastest,
    judged,
    read_choice,
)
from paligemma.preflight.choose import SLACK, choose, choose_blindly, walked
from paligemma.preflight.compiler import CompilerMissingError
from paligemma.preflight.search import cost
from paligemma.preflight.targets import GIB, TARGETS, find_target
from paligemma.storage import cache
from paligemma.training.open_recipe import SETTINGS, parse_open_recipe
from paligemma.training.recipe import parse_recipe
from pipelines.cli import app

CONFIG = VARIANTS["paligemma-3b-pt-224"]
AUTO = "execution: auto"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))


def trial(seconds: float | None = 1.0, fits: bool = True, peak: int = 1, **settings: bool | int | str) -> Trial:
    return Trial(settings=settings, fits=fits, seconds=seconds, peak=peak)


trials = st.builds(
    Trial,
    settings=st.fixed_dictionaries(
        {
            "remat": st.sampled_from(("none", "dots", "full")),
            "frozen_dtype": st.sampled_from(("float16", "bfloat16")),
            "accumulate": st.sampled_from((1, 2, 4)),
            "unroll": st.booleans(),
        }
    ),
    fits=st.booleans(),
    peak=st.integers(1, 3),
    seconds=st.none() | st.sampled_from((1.0, 1.005, 1.02, 2.0)),
)


@given(st.lists(trials, max_size=6))
def test_what_is_taken_fits_and_none_that_fits_is_surely_faster(found: list[Trial]) -> None:
    taken = fastest(found)
    fitting = [one for one in found if one.fits]
    assert (taken is None) == (not fitting)
    if taken is None:
        return
    assert taken in fitting
    known = [one.seconds for one in fitting if one.seconds is not None]
    if not known:
        assert taken is fitting[0]
        return
    assert taken.seconds is not None
    assert taken.seconds <= min(known) * (1 + EQUAL)


@given(st.lists(trials.map(lambda one: one.model_copy(update={"fits": True, "seconds": 1.0})), min_size=1, max_size=6))
def test_of_equal_ones_the_documented_order_decides(found: list[Trial]) -> None:
    """Fewer parts, then float16, then a loop, then less memory, then the first."""

    def order(one: Trial) -> tuple:
        settings = one.settings
        return settings["accumulate"], ["float16", "bfloat16"].index(settings["frozen_dtype"]), settings["unroll"], one.peak

    taken = fastest(found)
    assert taken is next(one for one in found if order(one) == min(map(order, found)))


def test_every_trial_says_why_it_was_not_taken() -> None:
    found = [
        trial(1.0, remat="none", fits=False),
        trial(1.2, remat="full"),
        trial(1.0, remat="dots"),
        trial(1.005, remat="attention", unroll=True),
        trial(None, remat="attention"),
    ]
    said = [one.verdict for one in judged(found)]
    assert said == ["does not fit", "slower by 20%", "chosen", "as fast, but less preferred", "its program could not be read"]


def modelled(job: dict) -> dict:
    """A compiler whose memory and time follow formulas: keeping costs memory, recomputing, converting and parts cost time."""
    recipe, devices = job["recipe"], job["devices"]
    kept = {"none": 1.2, "dots": 0.7, "attention": 0.25, "full": 0.15}[recipe["remat"]]
    rows = recipe["batch_size"] / recipe["accumulate"] / devices
    total = 5.8 / (devices / recipe["data_parallel"]) + rows * kept + (0.5 if recipe["frozen_dtype"] == "float16" else 0)
    seconds = {"none": 1.05, "dots": 1.0, "attention": 1.1, "full": 1.3}[recipe["remat"]]
    seconds += 0.3 * (recipe["accumulate"] - 1) + 0.1 * (recipe["frozen_dtype"] == "float16") - 0.05 * recipe["unroll"]
    seconds -= 0.02 * recipe["data_parallel"]
    one = {
        "flops": {"bf16": 10**12},
        "bytes": 10**9,
        "cycles": 0,
        "copied": 0,
        "copies": [],
        "collectives": {},
        "seconds": seconds,
    }
    accounts = {name: one for name in ("step", "prefill", "token")}
    return {"arguments": int(total * GIB), "temporaries": 0, "compile_seconds": 1.0, "accounts": accounts}


def with_compilers(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """As if the accelerators' compilers were installed, or were not; other modules are found as ever."""
    find = importlib.util.find_spec
    wheels = ("libtpu", "jax_cuda12_plugin")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: (there or None) if name in wheels else find(name, *rest)
    )


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Every recipe that the formulas were asked about."""
    asked: list[dict] = []
    monkeypatch.setattr(compiler, "_run", lambda job: asked.append(job["recipe"]) or modelled(job))
    with_compilers(monkeypatch, there=True)
    return asked


@pytest.mark.parametrize(("target", "batch"), [("v5e-1", 8), ("v5e-1", 32), ("v5e-8", 64), ("a100-40-2", 16)])
def test_few_recipes_are_compiled_and_none_of_all_would_be_faster(target: str, batch: int, compiled: list[dict]) -> None:
    asked = parse_open_recipe(AUTO, [f"batch_size={batch}"])
    choice, report = choose(CONFIG, asked, target, 128, {})
    place = find_target(target)
    assert report.fits
    assert (choice.platform, choice.devices) == ("gpu" if place.platform == "cuda" else "tpu", place.devices)
    assert len(compiled) <= 10
    assert [one.settings for one in choice.trials if one.verdict == "chosen"] == [choice.settings]
    least = cost(CONFIG, walked(CONFIG, asked, place, 128)[0], place, 128)
    everything = itertools.product(
        ("none", "dots", "attention", "full"), ("float16", "bfloat16"), (1, 2, 4, 8), (1, 2, 4, 8), (False, True)
    )
    for values in everything:
        other = asked.recipe.model_copy(update=dict(zip(SETTINGS, values, strict=True)))
        if place.devices % other.data_parallel or batch % (place.devices * other.accumulate):
            continue
        found = modelled({"recipe": other.model_dump(), "devices": place.devices})
        within = cost(CONFIG, other, place, 128) <= (1 + SLACK) * least
        if found["arguments"] < report.limit and within:
            assert report.seconds <= found["accounts"]["step"]["seconds"] * (1 + EQUAL)


def test_where_keeping_is_dear_every_policy_is_compiled(compiled: list[dict]) -> None:
    """A T4 computes in float16, and keeps float32."""
    choose(CONFIG, parse_open_recipe("remat: auto\nbatch_size: 8"), "t4-2", 128, {})
    choose(CONFIG, parse_open_recipe("remat: auto\nbatch_size: 8"), "l4-2", 128, {})
    assert {recipe["remat"] for recipe in compiled[:4]} == {"none", "dots", "attention", "full"}
    assert {recipe["remat"] for recipe in compiled[4:]} == {"none", "dots"}


def test_what_the_recipe_says_itself_stays(compiled: list[dict]) -> None:
    choice, report = choose(CONFIG, parse_open_recipe(AUTO, ["remat=full", "unroll=false"]), "v5e-1", 128, {})
    assert list(choice.settings) == ["frozen_dtype", "accumulate", "data_parallel"]
    assert {(recipe["remat"], recipe["unroll"], recipe["batch_size"]) for recipe in compiled} == {("full", False, 8)}
    assert report.seconds == pytest.approx(1.28)


def test_a_gain_too_small_to_be_sure_of_changes_no_numbers(compiled: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    def alike(job: dict) -> dict:
        found = modelled(job)
        found["accounts"]["step"]["seconds"] = 1.0 if job["recipe"]["frozen_dtype"] == "bfloat16" else 1.009
        return found

    monkeypatch.setattr(compiler, "_run", alike)
    choice, _ = choose(CONFIG, parse_open_recipe("frozen_dtype: auto\nremat: full"), "v5e-1", 128, {})
    assert choice.settings == {"frozen_dtype": "float16"}


def test_a_recipe_that_the_compiler_fails_on_is_left_out(compiled: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(job: dict) -> dict:
        if job["recipe"]["remat"] == "dots":
            raise PaliGemmaError("The compiler failed.")
        return modelled(job)

    monkeypatch.setattr(compiler, "_run", breaks)
    choice, _ = choose(CONFIG, parse_open_recipe("remat: auto"), "a100-40", 128, {})
    assert choice.settings == {"remat": "none"}
    assert "the compiler failed" in {one.verdict for one in choice.trials}


def test_if_none_fits_the_default_is_judged(compiled: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "v5e-1", dataclasses.replace(TARGETS["v5e-1"], memory=5 * GIB))
    choice, report = choose(CONFIG, parse_open_recipe(AUTO), "v5e-1", 128, {})
    assert not report.fits
    assert choice.settings == default_settings("bfloat16")
    assert choice.by == "the default for tpu: no recipe that was compiled fits"
    assert choice.trials


def test_on_a_cpu_it_is_the_first_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"none": 1.2, "dots": 0.7, "attention": 0.25, "full": 0.15}

    def formula(job: dict) -> dict:
        found = modelled(job) | {"arguments": int((5 + 8 * kept[job["recipe"]["remat"]]) * GIB)}
        found["accounts"]["step"]["seconds"] = None
        return found

    monkeypatch.setattr(compiler, "_run", formula)
    for gib, remat in ((24, "none"), (15, "dots")):
        monkeypatch.setenv(MEMORY_VARIABLE, str(gib * GIB))
        choice, report = choose(CONFIG, parse_open_recipe("remat: auto\nunroll: auto\nfrozen_dtype: auto"), "cpu", 128, {})
        assert report.fits
        assert choice.settings == {"remat": remat, "frozen_dtype": "float16", "unroll": False}
        assert choice.by == "preflight for cpu: the first that fits, as its seconds are unknown"


def test_without_a_compiler_the_step_takes_the_default_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_compilers(monkeypatch, there=False)
    asked = parse_open_recipe(AUTO)
    with pytest.raises(CompilerMissingError, match="compiler for v5e-1 is not installed"):
        choose(CONFIG, asked, "v5e-1", 128, {})
    with pytest.raises(CompilerMissingError):  # what leaves nothing open is refused, as ever
        check("embedded:tiny", str(tmp_path / "a"), parse_open_recipe(), "v5e-1", 16, False)
    check("embedded:tiny", str(tmp_path / "b"), asked, "v5e-1", 16, False)
    assert read_choice(str(tmp_path / "b")) == choose_blindly(asked, "v5e-1")
    assert read_choice(str(tmp_path / "b")).settings == default_settings("bfloat16")
    assert choose_blindly(asked, "t4").settings["frozen_dtype"] == "float16"
    assert "Whether the job fits v5e-1 is not known" in caplog.text
    assert "the compiler for v5e-1 is not installed" in (tmp_path / "b/preflight.html").read_text()


def test_the_step_writes_what_it_chose(tmp_path: Path, compiled: list[dict]) -> None:
    check("embedded:tiny", str(tmp_path / "out"), parse_open_recipe(AUTO, ["steps=3"]), "v5e-1", 16, False)
    choice = read_choice(str(tmp_path / "out"))
    assert choice.settings["remat"] == "dots"
    chosen = [f"{name}={json.dumps(value)}" for name, value in choice.settings.items()]
    assert parse_recipe((tmp_path / "out" / RECIPE_FILE).read_text()) == parse_recipe("steps: 3", chosen)
    page = (tmp_path / "out/preflight.html").read_text()
    assert "slower by" in page
    assert "the fastest of" in page
    record = json.loads((tmp_path / "out/lineage.json").read_text())
    assert record["producer"]["parameters"]["recipe"]["remat"] == "auto"
    check("embedded:tiny", str(tmp_path / "closed"), parse_open_recipe("steps: 3"), "v5e-1", 16, False)
    assert not (tmp_path / "closed" / CHOICE_FILE).exists()
    assert read_choice(str(tmp_path / "closed")) is None


def test_the_step_fails_if_nothing_fits(tmp_path: Path, compiled: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "v5e-1", dataclasses.replace(TARGETS["v5e-1"], memory=GIB))
    with pytest.raises(DoesNotFitError, match="no recipe was found that fits"):
        check("embedded:tiny", str(tmp_path / "out"), parse_open_recipe(AUTO), "v5e-1", 16, False)


def test_the_command_shows_what_was_compiled_and_the_overrides(tmp_path: Path, compiled: list[dict]) -> None:
    command = ["preflight", "--variant", "paligemma-3b-pt-224", "--target", "v5e-1", "--recipe", "auto"]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "out")], env={"COLUMNS": "200"})
    assert result.exception is None, result.output
    assert "slower by" in result.stdout
    overrides = result.stdout.splitlines()[-1].replace("--set", "").split()
    assert parse_recipe("steps: 64", overrides) == parse_recipe((tmp_path / "out" / RECIPE_FILE).read_text())
    result = CliRunner().invoke(app, [*command, "--sweep", "--markdown"])
    assert result.exception is None, result.output
    assert "remat=dots" in result.stdout.splitlines()[2]


def test_a_sweep_goes_on_past_a_compiler_that_fails(compiled: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(job: dict) -> dict:
        if job["target"] == "l4":
            raise PaliGemmaError("The compiler failed.")
        return modelled(job)

    monkeypatch.setattr(compiler, "_run", breaks)
    command = ["preflight", "--sweep", "--variant", "paligemma-3b-pt-224", "--target", "l4,v5e-1", "--markdown"]
    result = CliRunner().invoke(app, command)
    assert result.exception is None, result.output
    assert [line.split(" | ")[4] for line in result.stdout.splitlines()[2:]] == ["the compiler failed", "7.50"]


def test_a_choice_that_was_altered_is_refused(tmp_path: Path) -> None:
    good = Choice(settings={"remat": "dots"}, by="somebody", platform="tpu", devices=1)
    (tmp_path / CHOICE_FILE).write_text(good.model_dump_json())
    assert read_choice(str(tmp_path)) == good
    for text in ("{", '{"settings": {}}', good.model_dump_json().replace('"devices":1', '"devices":0')):
        (tmp_path / CHOICE_FILE).write_text(text)
        with pytest.raises(DamagedError, match="What preflight chose"):
            read_choice(str(tmp_path))
    with pytest.raises(InputError):
        choose(CONFIG, parse_open_recipe("remat: auto"), "v5e-0", 128, {})
