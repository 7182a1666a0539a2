"""What `paligemma convert` draws: a widget's box as TensorFlow draws it in the reference, and letters over labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow
from PIL import Image

from paligemma.data.convert.drawn import with_box, with_letters
from paligemma.data.convert.outcomes import EntryError
from paligemma.data.images import load_image


def test_a_widgets_box_has_the_pixels_that_the_reference_draws(tmp_path: Path) -> None:
    """google-research/big_vision at commit 0127fb6, big_vision/pp/proj/paligemma/widgetcap.py:21-36."""
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (96, 64, 3), np.uint8)).save(tmp_path / "1.png")
    with_box(tmp_path, "1.png", (2, 2, 3, 3), "plain", 48)
    plain = load_image(tmp_path / "images/box-plain-48.png").astype(np.float32)  # a box outside, of which nothing is drawn
    corners = np.sort(random.uniform(-0.2, 1.2, (200, 2, 2)).astype(np.float32), axis=1).reshape(200, 4)
    for x1, y1, x2, y2 in corners:
        drawn = load_image(tmp_path / with_box(tmp_path, "1.png", (x1, y1, x2, y2), "a", 48))
        boxes = np.array([[[y1, x1, y2, x2]]])
        expected = tensorflow.image.draw_bounding_boxes(plain[None], boxes, np.array([[255, 0, 0]], np.float32))
        assert (drawn == expected[0].numpy()).all(), (x1, y1, x2, y2)


def test_letters_cover_labels_and_nothing_else_changes(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100), (10, 200, 30)).save(tmp_path / "d.png")
    labels = {"text": {"T0": {"rectangle": [[60, 40], [20, 10]], "replacementText": "C", "value": "stem"}}}
    drawn = load_image(tmp_path / with_letters(tmp_path, "d.png", labels)).copy()
    assert (drawn[11:40, 21:60].min(-1) > 200).mean() > 0.5
    assert drawn[11:40, 21:60].min() < 60
    drawn[10:41, 20:61] = (10, 200, 30)
    assert (drawn == (10, 200, 30)).all()


ODD_LABELS = [
    ([], "not_an_object"),
    ({}, "labels_wrong"),
    ({"text": []}, "labels_wrong"),
    ({"text": {"a": 1}}, "not_an_object"),
    ({"text": {"a": {"rectangle": [[1, 2]], "replacementText": "A"}}}, "labels_wrong"),
    ({"text": {"a": {"rectangle": [[1, 2], [float("nan"), 4]], "replacementText": "A"}}}, "labels_wrong"),
    ({"text": {"a": {"rectangle": [[1, 2], [3, 1e300]], "replacementText": "A"}}}, "labels_wrong"),
    ({"text": {"a": {"rectangle": [[1, 2], [3, 4]], "replacementText": "A" * 9999}}}, "labels_wrong"),
    ({"text": {"a": {"rectangle": [[1, 2], [3, 4]], "replacementText": None}}}, "labels_wrong"),
    ({"text": {str(n): {"rectangle": [[1, 2], [3, 4]], "replacementText": "A"} for n in range(9999)}}, "labels_wrong"),
]


@pytest.mark.parametrize(("labels", "code"), ODD_LABELS, ids=range(len(ODD_LABELS)))
def test_labels_that_are_none_are_skipped(tmp_path: Path, labels: object, code: str) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "d.png")
    with pytest.raises(EntryError) as caught:
        with_letters(tmp_path, "d.png", labels)
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["no.png", "../d.png", "text.png"])
def test_a_picture_that_is_none_or_outside_is_not_drawn_on(tmp_path: Path, name: str) -> None:
    (tmp_path / "set").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "d.png")
    (tmp_path / "set/text.png").write_text("no picture")
    for draw in (
        lambda: with_letters(tmp_path / "set", name, {"text": {}}),
        lambda: with_box(tmp_path / "set", name, (0, 0, 1, 1), "a", 8),
    ):
        with pytest.raises(EntryError) as caught:
            draw()
        assert caught.value.code == "picture_unreadable"
