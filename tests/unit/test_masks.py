"""The mask decoder against plain loops, and overlaps by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paligemma.data.mask_codes import read_decoder
from paligemma.data.seg_masks import parse_masks
from paligemma.errors import DamagedError, InputError
from paligemma.evaluation.masks import mask_ious
from paligemma.evaluation.metrics import find_metric

WIDTHS = (6, 4, 3, 2)
CODES = "".join(f"<seg{number:03d}>" for number in range(16))


def weights() -> dict[str, np.ndarray]:
    """A narrow decoder with the names and layouts of the published one."""
    draw = np.random.default_rng(0)
    shapes = {"decoder.0": (6, 5, 1, 1), "decoder.12": (1, 1, 1, 1)}
    for block in ("decoder.2.net", "decoder.3.net"):
        shapes |= {f"{block}.0": (6, 6, 3, 3), f"{block}.2": (6, 6, 3, 3), f"{block}.4": (6, 6, 1, 1)}
    for number, width, narrower in zip((4, 6, 8, 10), (6, *WIDTHS[1:]), (*WIDTHS[1:], 1), strict=True):
        shapes[f"decoder.{number}"] = (width, narrower, 4, 4)
    found = {"_vq_vae._embedding": draw.standard_normal((128, 5)).astype(np.float32)}
    for name, shape in shapes.items():
        outputs = shape[1] if shape[2] == 4 else shape[0]
        found[f"{name}.weight"] = (draw.standard_normal(shape) * 0.4).astype(np.float32)
        found[f"{name}.bias"] = (draw.standard_normal(outputs) * 0.1).astype(np.float32)
    return found


def convolved(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    outputs, _, size, _ = kernel.shape
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
    result = np.zeros((outputs, *x.shape[1:]))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            result[:, i, j] = np.einsum("oikl,ikl->o", kernel, padded[:, i : i + size, j : j + size]) + bias
    return result


def upsampled(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Stride 2, padding 1: every input paints a kernel of 4 x 4, and a border of 1 is cut off."""
    height, width = x.shape[1:]
    result = np.zeros((kernel.shape[1], 2 * height + 2, 2 * width + 2))
    for i in range(height):
        for j in range(width):
            result[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("i,iokl->okl", x[:, i, j], kernel)
    return result[:, 1:-1, 1:-1] + bias[:, None, None]


def test_the_decoder_is_that_of_plain_loops(tmp_path: Path) -> None:
    w = weights()
    np.savez(tmp_path / "x.npz", **w)
    codes = np.arange(3, 19)

    def parameters(name: str) -> tuple[np.ndarray, np.ndarray]:
        return w[f"{name}.weight"], w[f"{name}.bias"]

    x = np.maximum(convolved(w["_vq_vae._embedding"][codes].reshape(4, 4, 5).transpose(2, 0, 1), *parameters("decoder.0")), 0)
    for block in ("decoder.2.net", "decoder.3.net"):
        inner = np.maximum(convolved(x, *parameters(f"{block}.0")), 0)
        x = x + convolved(np.maximum(convolved(inner, *parameters(f"{block}.2")), 0), *parameters(f"{block}.4"))
    for number in (4, 6, 8, 10):
        x = np.maximum(upsampled(x, *parameters(f"decoder.{number}")), 0)
    expected = convolved(x, *parameters("decoder.12"))[0]
    np.testing.assert_allclose(read_decoder(tmp_path / "x.npz")(codes[None])[0], expected, atol=1e-5)


def test_a_missing_or_damaged_decoder_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no mask decoder"):
        read_decoder(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(DamagedError, match="cannot be used"):
        read_decoder(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"half")
    with pytest.raises(DamagedError):
        read_decoder(tmp_path / "x.npz")


def test_the_metric_says_that_it_needs_the_decoder() -> None:
    with pytest.raises(InputError, match="Masks need the weights"):
        find_metric("mask_iou")


def test_overlaps_by_hand() -> None:
    def whole(codes: np.ndarray) -> np.ndarray:
        return np.ones((len(codes), 64, 64), np.float32)

    left, all_, right = (
        f"<loc0000><loc{x0:04d}><loc1023><loc{x1:04d}>{CODES} cat" for x0, x1 in ((0, 512), (0, 1023), (512, 1023))
    )
    cases = [(left, left, 1.0), (left, all_, 0.5), (left, right, 0.0), (left, left.replace("cat", "dog"), 0.0), ("", "", 1.0)]
    cases += [("nothing", left, 0.0), (f"{left} ; {right}", all_, 1.0)]
    answers, references, expected = zip(*cases, strict=True)
    np.testing.assert_allclose(mask_ious(answers, references, whole), expected, atol=0.01)


def test_what_is_no_mask_is_passed_over() -> None:
    box = "<loc0001><loc0002><loc0003><loc0004>"
    assert [box.label for box, _ in parse_masks(f"{box}{CODES} a cat ; {box}<seg001> half ; {box}{CODES}")] == ["a cat", ""]
    assert parse_masks(f"<loc0005><loc0002><loc0003><loc0004>{CODES} inside out") == []
    assert parse_masks(f"{box}{CODES.replace('<seg000>', '<seg999>')}") == []
