"""Metrics against what official evaluation codes said (`tests/parity/record_metrics.py`), and against cases by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import REPOSITORY
from paligemma.data.loc_boxes import Box, parse_boxes
from paligemma.data.seg_masks import mean_iou
from paligemma.evaluation.boxes import AveragePrecision, box_f1, iou
from paligemma.evaluation.caption_metrics import Caption, bleu_counts, bleu_of, cider, rouge_l, words
from paligemma.evaluation.masks import reference_overlaps
from paligemma.evaluation.metrics import confusion
from paligemma.evaluation.predict import Prediction
from paligemma.evaluation.significance import bootstrap_interval, paired_p_value
from paligemma.evaluation.text_metrics import anls, edit_distance, exact_match, multiple_choice, relaxed_accuracy
from paligemma.evaluation.vqa_accuracy import vqa_accuracy

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
    assert bleu_of(sum(bleu_counts(caption) for caption in captions)) == pytest.approx(recorded["bleu"], abs=1e-9)


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


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("E. coli", "E. faecalis", 0),
        ("E. coli", "E. coli", 1),
        ("e. coli.", "E. coli", 1),
        ("coli", "E. coli", 0),
        ("J. S. Bach", "J. Brahms", 0),
        ("U.S.", "U.K.", 0),
        ("E.coli", "E.faecalis", 0),
        ("(B) a cat", "B: a cat", 1),
        ("(B) a dog", "B: a cat", 0),
        ("B) a cat", "b. A cat.", 1),
        ("B", "B. a cat", 1),
        ("C", "B. a cat", 0),
        ("a cat", "B: a cat", 1),
        ("a cat", "a cat", 1),
        ("a", "a cat", 0),
        ("A man", "A", 0),
        ("(Б)", "б.", 1),
        ("", "B", 0),
        ("", "", 1),
        ("  b  ", "(B):", 1),
        ("2", "(2)", 0),
    ],
)
def test_a_choice_is_named_by_its_letter_its_words_or_both(answer: str, reference: str, right: int) -> None:
    assert multiple_choice(answer, [reference]) == right
    assert multiple_choice(answer, ["other words", reference]) == right


def test_captions_without_words_take_nobodys_scores_down() -> None:
    with_words = [Caption(["a", "b"], [["a", "b"]]), Caption(["c"], [["c"]])]
    without = [Caption([], [["d"]]), Caption([], [[]]), Caption(["e"], [[]])]
    np.testing.assert_allclose(cider([*with_words, *without])[2:], 0)
    assert cider(without[:1]).tolist() == [0]
    assert [rouge_l(caption) for caption in without] == [0, 1, 0]
    assert cider([]).tolist() == []


def test_texts_that_float_reads_as_no_number_are_compared_as_texts() -> None:
    for text in ("nan", "inf", "Infinity", "-inf"):
        assert relaxed_accuracy(text, [text.upper()]) == 1
        assert relaxed_accuracy("5", [text]) == relaxed_accuracy(text, ["5"]) == 0


def test_a_target_that_is_called_other_is_not_the_column_of_all_others() -> None:
    rows = [Prediction("", "", target, (target,), answer, 0, 0, 1) for target, answer in (("other", "other"), ("other", "x"))]
    assert confusion(rows) == (["other", "any other"], [[1, 1], [0, 0]])
    assert confusion([]) is None


def test_targets_with_places_are_in_no_confusion_matrix() -> None:
    box, mask = "<loc0000><loc0000><loc1023><loc1023>", "<seg001>" * 16
    places = [f"{box} cat", f"{box}{mask} cat", f"{box}{mask}", f"a cat at {box}"]
    rows = [Prediction("", "", target, (target,), "cat", 0, 0, 1) for target in [*places, "yes", "<loc12>"]]
    assert confusion(rows[:4]) is None
    assert confusion(rows) == (["<loc12>", "yes", "other"], [[0, 0, 1], [0, 0, 1], [0, 0, 0]])


def test_boxes_and_masks_without_an_area_equal_themselves() -> None:
    thin = "<loc0100><loc0200><loc0100><loc0300> line"
    assert box_f1(thin, thin) == 1
    assert box_f1(thin, thin.replace("line", "dot")) == 0
    masks = thin.replace("<loc0100><loc0300>", "<loc0300><loc0300>").replace(" line", "<seg000>" * 16 + " line")
    empty = [reference_overlaps(masks, one, lambda codes: np.full((len(codes), 64, 64), -1.0)) for one in (masks, "")]
    assert [mean_iou(one) for one in empty] == [1, 0]


def test_boxes_are_read_and_the_rest_is_passed_over() -> None:
    text = "<loc0000><loc0010><loc0100><loc0200> cat ; <loc0001><loc0002> half; <loc9999><loc0000><loc0000><loc0000> x"
    assert parse_boxes(text) == [Box(0, 10, 100, 200, "cat")]
    assert parse_boxes("<loc0000><loc0010><loc0100><loc0200> a;<loc0001><loc0010><loc0100><loc0200> b")[1].label == "b"
    assert parse_boxes(f"<loc0000><loc0010><loc0100><loc0200>{'<seg001>' * 16} cat") == [Box(0, 10, 100, 200, "cat")]
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
    assert AveragePrecision([f"{box} cat"], [f"{box} cat"], [0.0]).value == pytest.approx(1.0)
    assert AveragePrecision([f"{other} cat"], [f"{box} cat"], [0.0]).value == 0
    # Half of the boxes are found: precision 1 up to recall 0.5, which is 51 of COCO's 101 points.
    assert AveragePrecision([f"{box} cat"], [f"{box} cat ; {other} cat"], [0.0]).value == pytest.approx(51 / 101)
    # IoU 0.8 counts at 0.50 to 0.80: 7 of 10 thresholds.
    near = "<loc0000><loc0000><loc0100><loc0080> cat"
    assert AveragePrecision([near], [f"{box} cat"], [0.0]).value == pytest.approx(0.7)
    assert AveragePrecision(["nothing"], [f"{box} cat"], [0.0]).value == 0
    assert AveragePrecision(["nothing"], [""], [0.0]).value == -1


def test_average_precision_of_a_label_for_every_image() -> None:
    """An open vocabulary: what is counted are boxes, not the four million pairs of an image and a label."""
    boxes = [f"<loc{n % 500:04d}><loc0000><loc{n % 500 + 100:04d}><loc0100> thing {n}" for n in range(2000)]
    answers = [box if number % 4 else "nothing" for number, box in enumerate(boxes)]
    precision = AveragePrecision(answers, boxes, [0.0] * len(boxes))
    assert precision.value == pytest.approx(0.75)
    assert precision(np.array([0, 1, 1, 4, 8])) == pytest.approx(0.25)
    assert AveragePrecision(boxes, boxes, [0.0] * len(boxes)).value == 1


def coco_precision(answers: list[str], references: list[str], scores: list[float]) -> float:
    """The first of `COCOeval.stats`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels = sorted({box.label for text in references for box in parse_boxes(text)})
    images = [{"id": number, "width": 1024, "height": 1024} for number in range(len(answers))]
    truth, found = COCO(), []
    truth.dataset = {
        "info": {}, "images": images, "annotations": [],
        "categories": [{"id": number, "name": label} for number, label in enumerate(labels)],
    }  # fmt: skip
    for texts, entries in ((references, truth.dataset["annotations"]), (answers, found)):
        for image, text in enumerate(texts):
            for place, (y0, x0, y1, x1, label) in enumerate(parse_boxes(text)):
                if label in labels:
                    width, height = max(0, x1 - x0), max(0, y1 - y0)
                    entry = {"image_id": image, "category_id": labels.index(label), "bbox": [x0, y0, width, height]}
                    entry |= {"area": width * height, "score": scores[image] - place * 1e-6}
                    entries.append(entry | {"id": len(entries) + 1, "iscrowd": 0})
    truth.createIndex()
    if not found:
        return 0.0 if labels else -1.0
    evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def test_average_precision_is_the_official_codes_of_any_rows() -> None:
    """200 corpora with wrong labels, missing, doubled and turned-round boxes, equal scores, and rows drawn twice."""
    draw = np.random.default_rng(4)

    def objects(boxes: np.ndarray) -> str:
        return " ; ".join("".join(f"<loc{v:04d}>" for v in box) + draw.choice([" cat", " dog", " Hund"]) for box in boxes)

    seen = set()
    for _ in range(200):
        rows = int(draw.integers(1, 6))
        truth = [draw.integers(0, 1024, (draw.integers(0, 4), 4)) for _ in range(rows)]
        truth = [np.concatenate([np.sort(box.reshape(-1, 2, 2), axis=1).reshape(-1, 4)]) for box in truth]
        near = [np.clip(box[draw.random(len(box)) < 0.9] + draw.integers(-40, 41, 4), 0, 1023) for box in truth]
        references, answers = [objects(box) for box in truth], [objects(np.concatenate([box, box[:1]])) for box in near]
        scores = draw.choice([0.0, -0.5, -1.0], rows).tolist()
        precision = AveragePrecision(answers, references, scores)
        for chosen in (np.arange(rows), np.sort(draw.integers(0, rows, rows))):
            parts = ([part[row] for row in chosen] for part in (answers, references, scores))
            assert precision(chosen) == pytest.approx(coco_precision(*parts), abs=1e-9)
        seen.add(precision.value)
    assert len(seen) > 50


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
