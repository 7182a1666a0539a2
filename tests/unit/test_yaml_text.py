"""The one reader of YAML: what plain values mean, what is refused, and that what we write is read back."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import InputError
from paligemma.training.recipe import parse_recipe
from paligemma.yaml_text import MOST_BYTES, dump_documents, dump_yaml, parse_documents, parse_yaml, read_yaml
from pipelines.backends.job import check_parameters

PARAMETER_TYPES = {"artifact_root": "String", "margin": "Float", "task": "String", "recipe": "String"}


def value_of(text: str | bytes) -> object:
    return parse_yaml(text, "x.yaml", "The file")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-2", 0.01),
        ("1E5", 100_000.0),
        ("-.5e-3", -0.0005),
        ("3.", 3.0),
        ("1.0e-05", 1e-5),
        ("8", 8),
        ("+8", 8),
        ("010", 10),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("FALSE", False),
        ("no", "no"),
        ("NO", "NO"),
        ("on", "on"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("2026-11-26", "2026-11-26"),
        ("1e-2e", "1e-2e"),
        ("'1e-2'", "1e-2"),
        ("~", None),
        ("", None),
        ("# nothing", None),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = value_of(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' is there twice, first in line 1", "line 3, column 1"),
        ("a:\n  b: 1\n  b: 1", "the key 'b' is there twice, first in line 2", "line 3, column 3"),
        ("[{a: 1, 'a': 2}]", "the key 'a' is there twice", "line 1"),
        ("a: .inf", "not a finite number", "line 1, column 4"),
        ("a: 1e999", "not a finite number", "line 1"),
        ("a: " + "9" * 5000, "more than 64 bits", "line 1"),
        ("a: !!python/object:os.system x", "is not taken", "line 1"),
        ("a: !!timestamp 2026-01-01", "is not taken", "line 1"),
        ("? [1]\n: 2", "a key is a list", "line 1"),
        ("&a [*a]", "holds itself", "line 1"),
        ("a: [", "is not YAML", "line 1"),
        ("a: b: c", "in quotes", "line 1"),
        ("a:\n\tb: 1", "indent with spaces", "line 2"),
        ("a: 1\n---\nb: 2", "2 documents", "x.yaml"),
        ("[" * 100_000, "nested too deep", "x.yaml"),
        (b"a: \xff", "not UTF-8 in line 1", "x.yaml"),
        ("a: é".encode("utf-16"), "save it as UTF-8", "x.yaml"),
        ("a: \x07", "unacceptable character", "x.yaml"),
        ("a: " + "b" * MOST_BYTES, "larger than", "x.yaml"),
    ],
    ids=range(19),
)
def test_what_is_refused_is_named_with_its_line(text: str | bytes, message: str, place: str) -> None:
    with pytest.raises(InputError) as caught:
        value_of(text)
    assert message in str(caught.value)
    assert place in str(caught.value)
    assert "The file" in str(caught.value)


def test_aliases_that_grow_are_not_written_out() -> None:
    names = "abcdefghij"
    lines = [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in itertools.pairwise(names)]
    with pytest.raises(InputError, match="more than 200,000 values"):
        value_of("a: &a [1]\n" + "\n".join(lines))


def test_aliases_and_merging_are_taken_and_a_merged_key_may_be_set_again() -> None:
    text = "p: &p {z: 1}\na: {x: {y: &q {<<: *p, z: 3}}}\nb: {<<: *q, w: 4}"
    assert value_of(text) == {"p": {"z": 1}, "a": {"x": {"y": {"z": 3}}}, "b": {"z": 3, "w": 4}}


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["1e-2", "no", "on", "010", "1:30", "2026-11-26", "1_0", "0o7", ".inf", "<<", "=", "1.", "null", "yes "])
)


@settings(max_examples=150)
@given(st.recursive(SCALARS, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text("ab1:.e-", max_size=4), part)))
def test_what_is_written_is_read_back_by_this_reader_and_by_that_of_yaml_1_1(value: object) -> None:
    text = dump_yaml(value)
    assert value_of(text) == value
    assert yaml.safe_load(text) == value


def test_documents_are_written_and_read_in_order() -> None:
    assert parse_documents(dump_documents([{"b": 1, "a": "1e-2"}, ["no"]]), "x", "It") == [{"b": 1, "a": "1e-2"}, ["no"]]


@settings(max_examples=150)
@given(st.binary(max_size=60) | st.text("ab:-{}[]&*!<>|'\"#%\n\t 01.e?,", max_size=40))
def test_any_text_is_a_value_or_an_error_of_ours(text: bytes | str) -> None:
    with contextlib.suppress(InputError):
        value_of(text)


def test_a_file_that_is_not_there_or_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The recipe cannot be read: it is not there"):
        read_yaml(tmp_path / "none.yaml", "The recipe")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="a FIFO, not a file"):
        read_yaml(tmp_path / "pipe", "The recipe")


def test_recipes_and_overrides_mean_the_same_numbers() -> None:
    assert parse_recipe("learning_rate: 1e-2\nunroll: yes").learning_rate == 0.01
    assert parse_recipe("unroll: yes").unroll is True  # where true or false is expected, yes and no say so
    assert parse_recipe("", ["learning_rate=1e-2"]).learning_rate == 0.01
    with pytest.raises(InputError, match=r"is there twice, first in line 1(.|\n)*the recipe, line 2"):
        parse_recipe("steps: 1\nsteps: 2")


def test_a_parameters_file_takes_the_numbers_that_a_recipe_takes(tmp_path: Path) -> None:
    declared = {name: SimpleNamespace(type=kind, optional=True) for name, kind in PARAMETER_TYPES.items()}
    text = "artifact_root: gs://b/x\nmargin: 1e-2\ntask: no\nrecipe:\n  learning_rate: 1e-5\n  weight_decay_on: '1e-5'\n"
    (tmp_path / "x.yaml").write_text(text)
    found = check_parameters(tmp_path / "x.yaml", declared)
    assert (found["margin"], found["task"]) == (0.01, "no")
    recipe = parse_recipe(found["recipe"])
    assert (recipe.learning_rate, recipe.weight_decay_on) == (1e-5, "1e-5")
    (tmp_path / "x.yaml").write_text(text + "margin: 2\n")
    with pytest.raises(InputError, match=r"'margin' is there twice, first in line 2(.|\n)*x\.yaml, line 7"):
        check_parameters(tmp_path / "x.yaml", declared)
