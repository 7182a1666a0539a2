"""A pipeline's parameters are texts: where a command line refuses a wrong choice, a step that KFP starts does too."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.evaluate.__main__ import run as evaluate
from components.prepare_data.stages import checked_settings
from components.publish.release import read_candidate
from paligemma.checkpoints.sources.kaggle import parse_source
from paligemma.errors import InputError, one_of

SOURCE = "kaggle://google/paligemma/jax/paligemma-3b-pt-224/1"


def test_a_choice_is_given_back() -> None:
    assert one_of("b", ["a", "b"], "--letter") == "b"


def test_what_is_no_choice_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(InputError) as caught:
        one_of("truncat", ["reject", "truncate"], "--over-long")
    assert "'truncat' is not taken." in str(caught.value)
    assert "where:    --over-long" in str(caught.value)
    assert "did you mean 'truncate'?" in str(caught.value)


def test_an_empty_choice_is_not_among_those_that_are_named() -> None:
    with pytest.raises(InputError, match="one of: caption, vqa"):
        one_of("translate", ["", "vqa", "caption"], "--task")


@pytest.mark.parametrize(("key", "value"), [("over_long", "cut"), ("compression", "zip")])
def test_settings_of_records_are_choices(key: str, value: str) -> None:
    settings = {"over_long": "reject", "compression": "none"}
    assert checked_settings(settings) == settings
    with pytest.raises(InputError, match=f"{value!r} is not taken"):
        checked_settings({**settings, key: value})


def test_the_precision_of_a_kaggle_file_is_a_choice() -> None:
    assert parse_source(SOURCE, "bfloat16")[1] == "paligemma-3b-pt-224.bf16.npz"
    with pytest.raises(InputError, match="'fp16' is not taken"):
        parse_source(SOURCE, "fp16")


def test_the_dtype_of_a_release_is_a_choice() -> None:
    with pytest.raises(InputError, match="'int8' is not taken"):
        read_candidate("checkpoint", "tuned", "evaluation", "registry", "big_vision", "int8")


def test_the_task_of_an_evaluation_is_a_choice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'vqq' is not taken"):
        evaluate("embedded:tiny", "records", str(tmp_path / "evaluation"), task="vqq")
