"""Findings on the answers of a whole split."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.data.balance import FINDINGS, balance_findings


@pytest.mark.parametrize(
    ("suffixes", "codes"),
    [
        ({"yes": 10, "no": 10}, set()),
        ({"yes": 90, "no": 10}, set()),
        ({"yes": 91, "no": 9}, {"answer_dominant", "classes_unequal"}),
        ({"cat": 60, "dog": 50, "bird": 6}, {"classes_unequal"}),
        ({"cat": 60, "dog": 50, "bird": 7}, set()),
        ({"cat": 40}, {"answer_constant"}),
        ({"cat": 19}, set()),  # too few rows to say
        ({str(number): 1 for number in range(50)} | {"0": 30}, set()),  # texts, one of which recurs
        ({str(number): 10 + 990 * (number == 0) for number in range(101)}, set()),  # too many to be classes
        ({}, set()),
    ],
)
def test_codes(suffixes, codes):
    assert set(balance_findings(sum(suffixes.values()), suffixes)) == codes


def test_counts_that_are_not_all_known_make_no_classes():
    assert balance_findings(1000, {"cat": 100, "dog": 5}) == {}


def test_names_the_answers():
    found = balance_findings(100, {"yes": 95, "no": 5})
    assert found == {
        "answer_dominant": "'yes' has 95 of 100 rows",
        "classes_unequal": "'yes' has 95 rows, 'no' 5, of 2 classes",
    }


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 500), max_size=8), st.integers(0, 50))
def test_codes_are_documented_and_order_does_not_matter(suffixes, unknown):
    rows = sum(suffixes.values()) + unknown
    found = balance_findings(rows, suffixes)
    assert found.keys() <= FINDINGS.keys()
    assert found == balance_findings(rows, Counter(dict(reversed(suffixes.items()))))
