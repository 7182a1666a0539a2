"""Decoding settings as YAML text."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.choices import DecodingWeights
from paligemma.decoding.settings import DecodeSettings
from paligemma.decoding.settings_yaml import parse_settings, settings_yaml
from paligemma.errors import InputError

NUMBERS = st.floats(0.01, 1e6)
SETTINGS = st.builds(
    DecodeSettings,
    max_new_tokens=st.integers(1, 10**9),
    temperature=NUMBERS,
    top_k=st.integers(0, 10**6),
    top_p=st.floats(0, 1, exclude_min=True),
    best_of=st.integers(1, 100),
    seed=st.integers(0, (1 << 32) - 1),
) | st.builds(DecodeSettings, beams=st.integers(1, 100), weights=st.sampled_from(get_args(DecodingWeights)))


@given(SETTINGS)
def test_settings_come_back_from_their_text(settings: DecodeSettings) -> None:
    assert parse_settings(settings_yaml(settings)) == settings


def test_what_is_left_out_is_the_default() -> None:
    assert parse_settings("") == parse_settings("{}") == parse_settings("# nothing") == DecodeSettings()
    assert parse_settings("max_new_tokens: 8") == DecodeSettings(max_new_tokens=8)
    assert parse_settings("{temperature: 1, top_p: 1}") == DecodeSettings(temperature=1.0)


def test_a_whole_number_for_a_fraction_is_stored_as_one() -> None:
    """Else equal settings would have two hashes in lineage records."""
    assert settings_yaml(parse_settings("temperature: 1")) == settings_yaml(DecodeSettings(temperature=1.0))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_new_token: 8", "There is no decoding setting 'max_new_token'.\n  where:    here\n"
                             "  to do:    did you mean 'max_new_tokens'?"),
        ("8: 8", "There is no decoding setting 8.\n  where:    here\n"
                 "  to do:    one of: beams, best_of, max_new_tokens, seed, temperature, top_k, top_p, weights"),
        ("max_new_tokens: 8.0", "max_new_tokens is 8.0.\n  where:    here\n  expected: a whole number"),
        ("beams: true", "beams is True.\n  where:    here\n  expected: a whole number"),
        ("seed: null", "seed is None.\n  where:    here\n  expected: a whole number"),
        ("temperature: hot", "temperature is 'hot'.\n  where:    here\n  expected: a number"),
        ("weights: 8", "weights is 8.\n  where:    here\n  expected: stored, int8, nf4"),
        ("weights: int4", "'int4' is not taken.\n  where:    here\n  expected: did you mean 'int8'?"),
        ("top_p: 0", "top_p is 0.0.\n  where:    here\n  expected: more than 0 and at most 1"),
        ("seed: -1", "seed is -1.\n  where:    here\n  expected: 0 or more, and less than 2^32"),
        ("best_of: 4", "top_k, top_p and best_of need samples.\n  where:    here\n  to do:    set a temperature above 0"),
        ("- beams", "The value of decoding is not a mapping.\n  where:    here\n  expected: lines like `max_new_tokens: 8`"),
        ("beams: 2\nbeams: 3", "The value of decoding is wrong: the key 'beams' is there twice, first in line 1.\n"
                               "  where:    here, line 2, column 1\n  expected: YAML\n  to do:    keep one of the two"),
    ],
)  # fmt: skip
def test_wrong_settings_say_what_is_wrong_and_what_was_expected(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_settings(text, "here")
    assert str(caught.value) == says
