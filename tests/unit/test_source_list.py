"""How the sources of a data set are named on a command line and in a pipeline's parameter."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.data.source_list import MOST_SOURCES, Source, parse_flags, parse_sources, short_names, sources_text
from paligemma.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jsonl", Source("a.jsonl")),
        ("a,b.jsonl", Source("a,b.jsonl")),
        ("a,b=c.jsonl", Source("a,b=c.jsonl")),
        ("a.jsonl,weight=3", Source("a.jsonl", weight=3.0)),
        ("gs://b/a.jsonl,images=gs://b/x,y,weight=1e-3", Source("gs://b/a.jsonl", "gs://b/x,y", 0.001)),
        ("a b.jsonl,weight=.5,images=p q", Source("a b.jsonl", "p q", 0.5)),
    ],
)
def test_a_flag_names_a_source(text: str, expected: Source) -> None:
    assert parse_flags([text], "--data") == (expected,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gs://b/a.jsonl", [Source("gs://b/a.jsonl")]),
        ("- a.jsonl\n- b.jsonl", [Source("a.jsonl"), Source("b.jsonl")]),
        ('["a.jsonl,weight=1", {data: b.jsonl, weight: 2}]', [Source("a.jsonl", weight=1), Source("b.jsonl", weight=2)]),
        ("- data: a.jsonl\n  images: gs://b/x\n", [Source("a.jsonl", "gs://b/x")]),
    ],
)
def test_a_parameter_names_sources(text: str, expected: list[Source]) -> None:
    assert list(parse_sources(text, "train_data")) == expected


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["a,weight=0"], "The weight '0' of a,weight=0 is no share"),
        (["a,weight=-1"], "'-1'"),
        (["a,weight=nan"], "'nan'"),
        (["a,weight=inf"], "'inf'"),
        (["a,weight=1e300"], "'1e300'"),
        (["a,weight="], "The weight ''"),
        (["a,weight=three"], "'three'"),
        (["a,weight=1,weight=2"], "has weight or images twice"),
        ([",weight=1"], "has no location"),
        (["a,weight=1", "b"], "b has no weight, but other sources have"),
        (["a", "./a"], r"\./a is named twice"),
        (["gs://b/x", "gs://b/x"], "named twice"),
        ([str(number) for number in range(MOST_SOURCES + 1)], "There are 1001 sources"),
    ],
)
def test_a_wrong_source_is_refused_in_words(texts: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_flags(texts, "--data")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "There are 0 sources"),
        ("- {data: a, wieght: 3}", "did you mean 'weight'"),
        ("- {weight: 3}", "A source has no data"),
        ("- {data: a, images: [b]}", "are no texts"),
        ("- {data: a, weight: true}", "The weight True"),
        ("- {data: a, weight: [1]}", r"The weight \[1\]"),
        ("- 7", "is neither a text nor a mapping"),
        ("[a", "is not YAML"),
        ("[a]: b", "is wrong|are no list"),
        ("- {data: a, weight: .nan}", "not a finite number"),
    ],
)
def test_a_wrong_parameter_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_sources(text, "train_data")


def test_rows_that_are_looked_at_once_have_no_weight() -> None:
    with pytest.raises(InputError, match="a has a weight, but each of these rows is looked at once"):
        parse_flags(["a,weight=2"], "--validation-data", weights=False)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8).filter(
    lambda name: ",weight=" not in name and ",images=" not in name
)


@given(st.lists(NAMES, min_size=1, max_size=5, unique=True), st.booleans(), st.data())
def test_a_text_of_sources_is_read_as_the_same(names: list[str], weighted: bool, data: st.DataObject) -> None:
    weight = st.floats(1e-6, 1e6) if weighted else st.none()
    images = st.sampled_from(["", "gs://b/x", "a b"])
    sources = tuple(Source(f"/{name}", data.draw(images), data.draw(weight)) for name in names)
    try:
        expected = parse_flags([source.data for source in sources], "--data")  # some of these are one place, or no place
    except InputError:
        return
    assert [source.data for source in expected] == [source.data for source in sources]
    assert parse_sources(sources_text(sources), "train_data") == sources


def test_one_source_without_more_is_its_location_as_it_always_was() -> None:
    assert sources_text([Source("gs://b/a.jsonl")]) == "gs://b/a.jsonl"
    assert parse_sources(sources_text([Source("[a].jsonl")]), "") == (Source("[a].jsonl"),)
    assert math.isclose(parse_sources(sources_text([Source("a", weight=1 / 3)]), "")[0].weight or 0, 1 / 3, rel_tol=0)


@pytest.mark.parametrize(
    ("locations", "names"),
    [
        (["/x/a.jsonl"], [""]),
        (["/x/a.jsonl", "/y/b.jsonl"], ["a.jsonl", "b.jsonl"]),
        (["/x/a.jsonl", "/y/a.jsonl", "/y/b.jsonl"], ["x/a.jsonl", "y/a.jsonl", "y/b.jsonl"]),
        (["gs://b/x/a.jsonl", "gs://c/x/a.jsonl"], ["b/x/a.jsonl", "c/x/a.jsonl"]),
        (["/a", "/a/a"], ["1", "2"]),
        (["/x/../a.jsonl", "/x/a.jsonl"], ["1", "2"]),
        (["/", "/x"], ["1", "2"]),
    ],
)
def test_names_tell_locations_apart(locations: list[str], names: list[str]) -> None:
    assert short_names(locations) == names
