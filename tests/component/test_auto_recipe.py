"""Recipes whose execution is left open, from preflight to a tuned model, on plain paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kfp import dsl

from components.finetune.__main__ import run
from components.finetune.component import finetune
from components.finetune.main import fine_tune
from components.preflight.__main__ import run as preflight
from paligemma.artifacts.record import read_record
from paligemma.artifacts.store import produce
from paligemma.checkpoints.tuned import read_tuned
from paligemma.errors import InputError, StoppedError
from paligemma.launch import watch
from paligemma.preflight.choice import CHOICE_FILE, Choice, read_choice
from paligemma.training.open_recipe import parse_open_recipe
from paligemma.training.preemption import PreemptedError, PreemptionGuard

SETTINGS = ["steps=4", "save_every=1", "execution=auto"]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preflight for as many devices as the tests have."""
    output = tmp_path_factory.mktemp("preflight") / "preflight"
    preflight(checkpoint="embedded:tiny", output=str(output), set_=SETTINGS, target="cpu-8", max_text_tokens=16)
    return output


def tune(records: Path, output: Path, settings: list[str], **places: str) -> Path:
    run(checkpoint="embedded:tiny", records=str(records), output=str(output), set_=settings, **places)
    return output


def rewritten(chosen: Path, folder: Path, **changes: object) -> Path:
    """A preflight that chose otherwise."""
    choice = json.loads((chosen / CHOICE_FILE).read_text()) | changes
    with produce(str(folder), "preflight", "preflight", {}, []) as draft:
        (draft.folder / CHOICE_FILE).write_text(json.dumps(choice))
    return folder


def test_what_preflight_chose_is_trained_and_recorded(records: Path, chosen: Path, tmp_path: Path) -> None:
    choice = read_choice(str(chosen))
    assert (choice.platform, choice.devices, choice.settings["remat"]) == ("cpu", 8, "none")
    tuned = tune(records, tmp_path / "tuned", SETTINGS, preflight=str(chosen))
    record = read_record(tuned, "tuned-model")
    assert record.producer.parameters["chosen"] == choice.settings
    assert record.producer.parameters["chosen_by"] == choice.by
    assert {name: record.producer.parameters[name] for name in choice.settings} == choice.settings
    assert read_tuned(tuned).description.recipe["remat"] == "none"
    (given,) = [entry for entry in record.inputs if entry.role == "preflight"]
    assert given.sha256 == read_record(chosen, "preflight").artifact.tree_sha256


def test_without_open_settings_nothing_is_recorded_but_the_recipe(records: Path, chosen: Path, tmp_path: Path) -> None:
    tuned = tune(records, tmp_path / "tuned", ["steps=1"], preflight=str(chosen))
    record = read_record(tuned, "tuned-model")
    assert "chosen" not in record.producer.parameters
    assert "preflight" not in {entry.role for entry in record.inputs}


def test_alone_it_takes_the_default_of_its_devices(records: Path, tmp_path: Path) -> None:
    parameters = read_record(
        tune(records, tmp_path / "tuned", ["steps=1", "execution=auto", "unroll=true"])
    ).producer.parameters
    assert parameters["chosen"] == {"remat": "full", "frozen_dtype": "float16", "accumulate": 1, "data_parallel": 1}
    assert parameters["chosen_by"] == "the default for cpu: no preflight was given"
    assert parameters["unroll"] is True


@pytest.mark.parametrize("changes", [{"devices": 1}, {"platform": "tpu"}])
def test_a_choice_for_other_devices_is_not_taken(
    records: Path, chosen: Path, tmp_path: Path, changes: dict, caplog: pytest.LogCaptureFixture
) -> None:
    other = rewritten(chosen, tmp_path / "other", **changes)
    tuned = tune(records, tmp_path / "tuned", ["steps=1", "execution=auto"], preflight=str(other))
    assert read_record(tuned).producer.parameters["remat"] == "full"
    assert "and here are 8 x cpu" in caplog.text


def test_an_attempt_that_fails_is_recorded_with_the_recipe_as_it_was_asked_for(records: Path, tmp_path: Path) -> None:
    for text in ("batch_size: 9", "batch_size: 9\nremat: auto"):
        with pytest.raises(InputError, match="A batch of 9 does not split"):
            fine_tune("embedded:tiny", str(records), str(tmp_path / "tuned"), parse_open_recipe(text))
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("lineage/**/*.json"))]
    recipes = [record["producer"]["parameters"]["recipe"] for record in found if record["status"] == "failed"]
    assert [(recipe["remat"], recipe["batch_size"]) for recipe in recipes] == [("full", 9), ("auto", 9)]


def test_a_choice_for_another_recipe_is_refused(records: Path, chosen: Path, tmp_path: Path) -> None:
    other = rewritten(chosen, tmp_path / "other", settings={"remat": "dots"})
    with pytest.raises(InputError, match="Nothing was chosen for frozen_dtype"):
        tune(records, tmp_path / "tuned", SETTINGS, preflight=str(other))


def test_a_preflight_that_is_none_is_refused(records: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "none", records):
        with pytest.raises(InputError) as caught:
            tune(records, tmp_path / "tuned", SETTINGS, preflight=str(place))
        assert str(place) in str(caught.value)


def test_a_run_that_goes_on_keeps_the_settings_that_it_began_with(
    records: Path, chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(records, tmp_path / "whole", SETTINGS, preflight=str(chosen))
    with monkeypatch.context() as patched:
        patched.setattr(PreemptionGuard, "should_stop", lambda self, step: step == 2)
        with pytest.raises(PreemptedError):
            tune(records, tmp_path / "tuned", SETTINGS, preflight=str(chosen))
    state = json.loads((tmp_path / "tuned.state/fingerprint.json").read_text())
    assert state["recipe"]["remat"] == "none"
    assert "auto" not in [state["recipe"][name] for name in read_choice(str(chosen)).settings]
    settings = read_choice(str(chosen)).settings | {"remat": "full", "accumulate": 1}
    tuned = tune(records, tmp_path / "tuned", SETTINGS, preflight=str(rewritten(chosen, tmp_path / "other", settings=settings)))
    assert (tuned / "trained.safetensors").read_bytes() == (whole / "trained.safetensors").read_bytes()
    parameters = read_record(tuned).producer.parameters
    assert (parameters["remat"], parameters["chosen_by"]) == ("none", "the saved state")


def test_another_choice_is_another_run_below_a_root(
    records: Path, chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "states"
    other = rewritten(chosen, tmp_path / "other", settings=read_choice(str(chosen)).settings | {"remat": "dots"})
    for stop, asked, states in ((2, chosen, 1), (3, chosen, 1), (2, other, 2)):
        monkeypatch.setattr(PreemptionGuard, "should_stop", lambda self, step, stop=stop: step == stop)
        with pytest.raises(PreemptedError):
            tune(records, tmp_path / f"{stop}", SETTINGS, preflight=str(asked), state_root=str(root))
        assert len(list(root.iterdir())) == states


def test_a_choice_is_for_devices_by_jaxs_name() -> None:
    choice = Choice(settings={}, by="", platform="gpu", devices=2)
    assert choice.suits("gpu", 2)
    assert not choice.suits("gpu", 1)
    assert not choice.suits("cpu", 2)


@pytest.mark.parametrize(("recipe", "told"), [("execution: auto\nremat: dots", "gs://b/preflight"), ("steps: 3", "")])
def test_a_separate_job_is_told_what_is_auto_and_where_the_choice_is(
    recipe: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}

    def launch(machines: dict, module: str, flags: dict, output: str) -> None:
        given.update(flags)
        raise StoppedError("the job is another test's subject")

    monkeypatch.setenv(watch.LAUNCH_VARIABLE, '{"image": "x"}')
    monkeypatch.setattr(watch, "run_elsewhere", launch)
    places = {name: dsl.Artifact(uri=f"gs://b/{name}") for name in ("checkpoint", "records", "preflight", "metrics", "report")}
    with pytest.raises(StoppedError):
        finetune.python_func(
            **places, tuned=dsl.Model(name="tuned", uri="gs://b/tuned"), tree_sha256="", recipe=recipe, run="r"
        )
    assert given["preflight"] == told
    assert parse_open_recipe("", given["set"]) == parse_open_recipe(recipe)
