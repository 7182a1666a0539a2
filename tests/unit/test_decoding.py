"""Greedy decoding against a cache-free loop, and its independence of batch composition."""

from __future__ import annotations

import numpy as np
import pytest

import paligemma
from paligemma.errors import InputError

PROMPTS = ["ocr", "caption en", "answer en is the number of dots odd or even?", "answer en which shape is it?"]


@pytest.fixture(scope="module")
def model() -> paligemma.Model:
    return paligemma.load("embedded:tiny")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (len(PROMPTS), 32, 32, 3)).astype(np.float32)


def prompts(model: paligemma.Model, texts: list[str], width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    ids = [model.tokenizer.prefix_ids(text) for text in texts]
    tokens = np.array([row + [0] * (width - len(row)) for row in ids], np.int32)
    return tokens, np.array([[True] * len(row) + [False] * (width - len(row)) for row in ids])


def without_cache(model: paligemma.Model, image: np.ndarray, text: str, count: int) -> list[int]:
    """One forward pass over everything for each token, of one prompt without padding."""
    tokens = model.tokenizer.prefix_ids(text)
    prefix = len(tokens)
    for _ in range(count):
        mask_ar = np.array([[0] * prefix + [1] * (len(tokens) - prefix)])
        logits = model.logits(image[None], np.array([tokens]), mask_ar)
        tokens.append(int(np.argmax(logits[0, -1])))
    return tokens[prefix:]


def test_unequal_prompts_decode_as_a_cache_free_loop_does_alone(model, images) -> None:
    tokens, mask = prompts(model, PROMPTS)
    together = model.decode(images, tokens, mask, np.zeros_like(tokens), 5)
    for row, text in enumerate(PROMPTS):
        assert together[row].tolist() == without_cache(model, images[row], text, 5)


def test_stops_when_every_row_has_ended(model, images) -> None:
    tokens, mask = prompts(model, PROMPTS)
    free = model.decode(images, tokens, mask, np.zeros_like(tokens), 6)
    eos = int(free[0, 2])
    rows = np.arange(len(PROMPTS)) == 0
    stopped = model.decode(images, tokens, mask, np.zeros_like(tokens), 6, eos, rows)
    first = int(np.flatnonzero(free[0] == eos)[0])
    np.testing.assert_array_equal(stopped[:, : first + 1], free[:, : first + 1])
    assert (stopped[:, first + 1 :] == 0).all()


def test_generate_answers_in_order_for_files_pictures_and_arrays(model, tmp_path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    answers = model.generate([tmp_path / "x.png", Image.fromarray(pixels), pixels], "caption en", max_new_tokens=8)
    assert len(answers) == 3
    assert len(set(answers)) == 1


def test_generate_composites_a_transparent_picture_as_a_file_would(model, tmp_path) -> None:
    from PIL import Image

    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (4, 4, 12, 12))
    picture.save(tmp_path / "x.png")
    answers = model.generate([tmp_path / "x.png", picture], "caption en", max_new_tokens=8)
    assert answers[0] == answers[1]


def test_wrong_image_size_is_refused(model) -> None:
    with pytest.raises(InputError, match="images have shape"):
        model.logits(np.zeros((1, 16, 16, 3)), np.zeros((1, 4), np.int32), np.zeros((1, 4), np.int32))


def test_prompts_and_images_must_match(model) -> None:
    with pytest.raises(InputError, match="1 images and 2 prompts"):
        model.generate([np.zeros((4, 4, 3), np.uint8)], ["a", "b"])
