"""Metrics against what official evaluation codes said (`tests/parity/record_metrics.py`), and against cases by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import REPOSITORY
from paligemma.evaluation.answers import anls, edit_distance, exact_match, multiple_choice, relaxed_accuracy
from paligemma.evaluation.boxes import Box, box_f1, iou, mean_average_precision, parse_boxes
from paligemma.evaluation.captions import Caption, bleu, bleu_counts, bleu_of, cider, rouge_l, words
from paligemma.evaluation.statistics import bootstrap_interval, paired_p_value
from paligemma.evaluation.vqa import vqa_accuracy

ORACLE = json.loads((REPOSITORY / "tests/parity/golden/metrics.json").read_text())


@pytest.mark.parametrize(("name", "ours"), [("vqa", vqa_accuracy), ("anls", anls), ("relaxed", relaxed_accuracy)])
def test_scores_of_an_answer_are_the_official_codes(name: str, ours) -> None:
    cases = ORACLE[name]
    assert len(cases) >= 300
    assert len({case["score"] for case in cases}) > 1
    for case in cases:
        assert ours(case["answer"], case["references"]) == pytest.approx(case["score"], abs=1e-9), case


def test_caption_scores_are_the_official_codes() -> None:
    recorded = ORACLE["captions"]
    cases = recorded["cases"]
    captions = [Caption(case["answer"].split(), [text.split() for text in case["references"]]) for case in cases]
    assert len(cases) >= 200
    np.testing.assert_allclose(cider(captions), [case["cider"] for case in cases], atol=1e-9)
    np.testing.assert_allclose([rouge_l(caption) for caption in captions], [case["rouge_l"] for case in cases], atol=1e-9)
    own = [bleu_of(bleu_counts(caption)) for caption in captions]
    np.testing.assert_allclose(own, [case["bleu"] for case in cases], atol=1e-9)
    assert bleu(captions) == pytest.approx(recorded["bleu"], abs=1e-9)


def test_words_of_a_caption() -> None:
    assert words("A man's dog, isn't it?  Two black-and-white cats.") == (
        ["a", "man", "'s", "dog", "is", "n't", "it", "two", "black-and-white", "cats"]
    )  # fmt: skip
    assert words("日本の駅 — café") == ["日本の駅", "café"]
    assert words("!!! ...") == []


@given(st.text(max_size=12), st.text(max_size=12))
def test_edit_distance_is_that_of_its_recurrence(left: str, right: str) -> None:
    table = [[max(i, j) if not i or not j else 0 for j in range(len(right) + 1)] for i in range(len(left) + 1)]
    for i, a in enumerate(left, start=1):
        for j, b in enumerate(right, start=1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a != b))
    assert edit_distance(left, right) == table[-1][-1]


def test_exact_match_and_choices() -> None:
    assert exact_match(" two\n", ["2", "two"]) == 1
    assert exact_match("Two", ["two"]) == 0
    for answer, right in (("(B)", 1), ("b.", 1), ("B: a cat", 1), ("a", 0), ("bees", 0), ("", 0)):
        assert multiple_choice(answer, ["B"]) == right
    assert multiple_choice("A cat.", ["a cat"]) == 1


def test_boxes_are_read_and_the_rest_is_passed_over() -> None:
    text = "<loc0000><loc0010><loc0100><loc0200> cat ; <loc0001><loc0002> half; <loc9999><loc0000><loc0000><loc0000> x"
    assert parse_boxes(text) == [Box(0, 10, 100, 200, "cat")]
    assert parse_boxes("<loc0000><loc0010><loc0100><loc0200> a;<loc0001><loc0010><loc0100><loc0200> b")[1].label == "b"
    assert parse_boxes("") == []


@given(st.text(alphabet="<loc0123456789> ;catx", max_size=80))
def test_any_text_can_be_read_for_boxes(text: str) -> None:
    for box in parse_boxes(text):
        assert 0 <= min(box[:4]) <= max(box[:4]) < 1024


def test_overlap_and_f1() -> None:
    assert iou(Box(0, 0, 10, 10, ""), Box(0, 5, 10, 15, "")) == pytest.approx(50 / 150)
    assert iou(Box(5, 5, 5, 5, ""), Box(5, 5, 5, 5, "")) == 0
    box, other = "<loc0000><loc0000><loc0100><loc0100>", "<loc0500><loc0500><loc0600><loc0600>"
    assert box_f1(f"{box} cat", f"{box} cat ; {other} cat") == pytest.approx(2 / 3)
    assert box_f1(f"{box} dog", f"{box} cat") == 0
    assert box_f1("", "") == 1


def test_mean_average_precision_by_hand() -> None:
    box, other = "<loc0000><loc0000><loc0100><loc0100>", "<loc0500><loc0500><loc0600><loc0600>"
    assert mean_average_precision([f"{box} cat"], [f"{box} cat"], [0.0]) == pytest.approx(1.0)
    assert mean_average_precision([f"{other} cat"], [f"{box} cat"], [0.0]) == 0
    # Half of the boxes are found: precision 1 up to recall 0.5, which is 51 of COCO's 101 points.
    assert mean_average_precision([f"{box} cat"], [f"{box} cat ; {other} cat"], [0.0]) == pytest.approx(51 / 101)
    # IoU 0.8 counts at 0.50 to 0.80: 7 of 10 thresholds.
    near = "<loc0000><loc0000><loc0100><loc0080> cat"
    assert mean_average_precision([near], [f"{box} cat"], [0.0]) == pytest.approx(0.7)
    assert mean_average_precision(["nothing"], [f"{box} cat"], [0.0]) == 0
    assert mean_average_precision(["nothing"], [""], [0.0]) == -1


def test_intervals_cover_and_are_the_same_again() -> None:
    values = np.random.default_rng(1).random(400)
    low, high = bootstrap_interval(400, lambda rows: values[rows].mean(axis=1))
    assert low < values.mean() < high
    error = values.std() / 20
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert bootstrap_interval(400, lambda rows: values[rows].mean(axis=1)) == (low, high)


def test_paired_test_tells_a_difference_from_none() -> None:
    noise = np.random.default_rng(2).choice([-1.0, 0.0, 1.0], 300, p=[0.1, 0.8, 0.1])
    assert paired_p_value(noise - noise.mean() + 0.1) < 0.01
    assert paired_p_value(np.tile([1.0, -1.0], 50)) > 0.5
    assert paired_p_value(np.zeros(10)) == 1
    assert paired_p_value(np.array([1.0, 1.0])) == pytest.approx(0.5, abs=0.05)
