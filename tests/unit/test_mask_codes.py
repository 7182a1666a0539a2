"""The VQ-VAE of masks: codes as TensorFlow's, in the order that big_vision states, and masks that come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mask_weights import Weights, random_weights, square_weights, write_weights
from PIL import Image, ImageDraw

from paligemma.data import mask_codes
from paligemma.data.mask_codes import SIDE, fit_mask, read_decoder, read_encoder
from paligemma.errors import DamagedError, InputError

MASKS = 1000


def drawn_masks(count: int, seed: int = 0) -> list[np.ndarray]:
    """Masks of objects in their boxes: ellipses and polygons, with holes and without, of 3 to 700 pixels a side."""
    draw = np.random.default_rng(seed)
    masks = []
    for _ in range(count):
        width, height = (int(side) for side in np.exp(draw.uniform(np.log(3), np.log(700), 2)))
        picture = Image.new("L", (width, height))
        pen = ImageDraw.Draw(picture)
        for shade in (255, 255, 0)[: draw.integers(1, 4)]:
            corners = [tuple(point) for point in draw.uniform(0, 1, (draw.integers(3, 9), 2)) * (width, height)]
            if draw.random() < 0.5:
                pen.polygon(corners, fill=shade)
            else:
                (x1, x2), (y1, y2) = (sorted(values[:2]) for values in zip(*corners, strict=True))
                pen.ellipse((x1, y1, x2, y2), fill=shade)
        masks.append(np.asarray(picture) > 0)
    return masks


def tensorflow_features(weights: Weights, masks: list[np.ndarray], dtype: str) -> np.ndarray:
    """What the encoder makes of masks before it looks up the codebook, as TensorFlow computes it: [masks, 16, 512]."""
    import tensorflow as tf

    x = tf.concat(
        [
            tf.image.resize(mask[None, ..., None].astype(np.uint8) * 255, [SIDE, SIDE], "bilinear", antialias=True)
            for mask in masks
        ],
        axis=0,
    )
    x = 2 * (tf.cast(x, dtype) / 255 - 0.5)

    def convolve(x: tf.Tensor, name: str, stride: int = 1) -> tf.Tensor:
        kernel = tf.cast(weights[f"{name}.weight"].transpose(2, 3, 1, 0), dtype)
        return tf.nn.conv2d(x, kernel, stride, "SAME") + tf.cast(weights[f"{name}.bias"], dtype)

    for number in (0, 2, 4, 6):
        x = tf.nn.relu(convolve(x, f"encoder.{number}", 2))
    for number in (8, 9):
        inner = tf.nn.relu(convolve(x, f"encoder.{number}.net.0"))
        x += convolve(tf.nn.relu(convolve(inner, f"encoder.{number}.net.2")), f"encoder.{number}.net.4")
    return convolve(x, "encoder.10").numpy().reshape(len(masks), 16, -1)


def distances(features: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Squared distances of every grid vector to every entry: [masks, 16, 128]."""
    return (features**2).sum(-1, keepdims=True) - 2 * features @ vectors.T + (vectors**2).sum(1)


def test_a_thousand_masks_have_tensorflows_codes(tmp_path: Path) -> None:
    """Where they differ, the two entries are as near as float32 can tell."""
    weights, masks = random_weights(), drawn_masks(MASKS)
    draw = np.random.default_rng(1)
    seen = tensorflow_features(weights, masks[:200], "float32").reshape(-1, 512)
    # A codebook such as training makes: of what the encoder says, so that many codes are used, and neighbours are near.
    weights["_vq_vae._embedding"] = seen[draw.choice(len(seen), 128, replace=False)]
    codes = read_encoder(write_weights(tmp_path / "vae.npz", weights))(np.stack([fit_mask(mask) for mask in masks]))
    assert codes.shape == (MASKS, 16)
    assert len(np.unique(codes)) > 100

    features = np.concatenate(
        [tensorflow_features(weights, masks[start : start + 100], "float32") for start in range(0, MASKS, 100)]
    )
    exact = distances(features.astype(np.float64), weights["_vq_vae._embedding"].astype(np.float64))
    chosen = np.take_along_axis(exact, codes[..., None].astype(np.int64), 2)[..., 0]
    rounding = 1e-5 * (features.astype(np.float64) ** 2).sum(-1)
    assert (chosen - exact.min(-1) <= rounding).all()
    assert (codes != exact.argmin(-1)).mean() < 0.001
    in_float32 = distances(features, weights["_vq_vae._embedding"]).argmin(-1)
    assert (codes != in_float32).mean() < 0.001


def test_of_two_entries_at_the_same_distance_the_first_is_taken(tmp_path: Path) -> None:
    weights = square_weights()
    weights["_vq_vae._embedding"] = weights["_vq_vae._embedding"][[80, 5, 5, *range(3, 128)]]
    weights["_vq_vae._embedding"][2] = weights["_vq_vae._embedding"][1] = weights["_vq_vae._embedding"][3:].min(0)
    encode = read_encoder(write_weights(tmp_path / "vae.npz", weights))
    assert encode(np.zeros((1, SIDE, SIDE))).tolist() == [[1] * 16]


@pytest.mark.parametrize("strip", [mask_codes.STRIP_PIXELS, 1000])
def test_a_mask_is_resized_as_tensorflow_resizes_it(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    monkeypatch.setattr(mask_codes, "STRIP_PIXELS", strip)
    for mask in drawn_masks(50, seed=2):
        theirs = tf.image.resize(mask[..., None].astype(np.uint8) * 255, [SIDE, SIDE], "bilinear", antialias=True) / 255
        np.testing.assert_allclose(fit_mask(mask), theirs[..., 0], atol=1e-5)


def test_codes_of_squares_by_hand_and_back(tmp_path: Path) -> None:
    """An unsymmetrical mask, so that a grid that is turned or mirrored gives another one."""
    path = write_weights(tmp_path / "vae.npz", square_weights())
    squares = np.random.default_rng(0).random((40, 8, 8)) < 0.5
    masks = squares.repeat(8, axis=1).repeat(8, axis=2)
    codes = read_encoder(path)(masks)
    quarters = squares.reshape(40, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(40, 16, 4)
    assert codes.tolist() == (2 * quarters @ [27, 9, 3, 1]).tolist()
    assert ((read_decoder(path)(codes) > 0) == masks).all()


def test_batches_of_any_size_have_the_codes_of_single_masks(tmp_path: Path) -> None:
    encode = read_encoder(write_weights(tmp_path / "vae.npz", square_weights()))
    masks = np.stack([fit_mask(mask) for mask in drawn_masks(67)])
    alone = np.concatenate([encode(mask[None]) for mask in masks])
    for count in (0, 1, 3, 32, 33, 67):
        assert encode(masks[:count]).tolist() == alone[:count].tolist()


@pytest.mark.parametrize("read", [read_encoder, read_decoder])
def test_weights_that_cannot_be_used_are_said_to_be_so(tmp_path: Path, read) -> None:
    path, weights = tmp_path / "vae.npz", square_weights()
    with pytest.raises(InputError, match="There is no mask"):
        read(path)
    path.write_bytes(b"half a file")
    with pytest.raises(DamagedError, match=r"cannot be used[\s\S]*vae-oid.npz"):
        read(path)
    missing = {name: values for name, values in weights.items() if name not in ("encoder.10.bias", "decoder.12.bias")}
    first = ("encoder.0.weight", "decoder.0.weight")
    cases = {
        "has no encoder.10.bias|has no decoder.12.bias": missing,
        "codebook is not of 128": weights | {"_vq_vae._embedding": np.zeros((100, 512), np.float32)},
        "cannot be used": weights | {name: np.zeros(3, np.float32) for name in first},
        "is larger than": weights | {name: np.zeros(5_000_000, np.float32) for name in first},
        "could not convert": weights | {"_vq_vae._embedding": np.full((128, 512), "x")},
    }
    for message, changed in cases.items():
        write_weights(path, changed)
        with pytest.raises(DamagedError, match=message):
            read(path)
