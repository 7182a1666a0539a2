"""The mask decoder against plain loops, and overlaps by hand."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from mask_weights import square_weights, write_weights
from PIL import Image

from paligemma.data import seg_masks
from paligemma.data.mask_codes import read_decoder
from paligemma.data.run_lengths import write_runs
from paligemma.data.seg_masks import Decode, TrueMask, masks_text, mean_iou, parse_masks, parse_masks_text, union_of_masks
from paligemma.errors import DamagedError, InputError
from paligemma.evaluation.masks import cumulative_iou, pixel_counts, reference_overlaps, row_overlaps
from paligemma.evaluation.metrics import MASK_METRICS, find_metric
from paligemma.evaluation.predict import Prediction
from paligemma.reports.page import mask_uri

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
    for name in MASK_METRICS:
        with pytest.raises(InputError, match="Masks need the weights"):
            find_metric(name)


def test_overlaps_by_hand() -> None:
    def whole(codes: np.ndarray) -> np.ndarray:
        return np.ones((len(codes), 64, 64), np.float32)

    left, all_, right = (
        f"<loc0000><loc{x0:04d}><loc1023><loc{x1:04d}>{CODES} cat" for x0, x1 in ((0, 512), (0, 1023), (512, 1023))
    )
    cases = [(left, left, 1.0), (left, all_, 0.5), (left, right, 0.0), (left, left.replace("cat", "dog"), 0.0), ("", "", 1.0)]
    cases += [("nothing", left, 0.0), (f"{left} ; {right}", all_, 1.0)]
    for answer, reference, expected in cases:
        assert mean_iou(reference_overlaps(answer, reference, whole)) == pytest.approx(expected, abs=0.01)


def drawn_rows(count: int, decode: Decode) -> list[tuple[Prediction, tuple[float, int, int]]]:
    """Answers of one mask with true masks, and what big_vision's evaluator makes of them: IoU, shared and joined pixels.

    Written from google-research/big_vision, `big_vision/evaluators/proj/paligemma/transfers/segmentation.py`, lines 102-134.
    """
    draw, rows = np.random.default_rng(0), []
    for _ in range(count):
        height, width = (int(side) for side in draw.integers(20, 400, 2))
        true = np.zeros((height, width), bool)
        left, right = int(width * draw.uniform(0, 0.3)), int(width * draw.uniform(0.6, 1)) + 1
        true[int(height * draw.uniform(0, 0.4)) :, left:right] = True
        edges = draw.integers(0, 1024, 4)
        edges = edges if draw.random() < 0.2 else np.sort(edges.reshape(2, 2), axis=0).reshape(-1)  # inside out, or not
        codes = draw.integers(27, 81, 16)  # with `square_weights`, of squares that are half full or more
        y1, x1, y2, x2 = map(int, edges / 1023 * [height, width, height, width])
        if edges[2] > edges[0] and edges[3] > edges[1] and y2 > y1 and x2 > x1:
            mask = np.asarray(Image.fromarray(decode(codes[None])[0]).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR)) > 0
            shared = int((true[y1:y2, x1:x2] & mask).sum())
            either = int(true.sum() + mask.sum() - shared)
        else:
            shared, either = 0, int(true.sum())
        answer = "".join(f"<loc{edge:04d}>" for edge in edges) + "".join(f"<seg{code:03d}>" for code in codes) + " cat"
        masks = masks_text([TrueMask("cat", height, width, str(write_runs(true)["counts"]))])
        rows.append(
            (Prediction("", "segment cat", answer, (answer,), answer, 0, 0, 1, masks), (shared / either, shared, either))
        )
    return rows


@pytest.mark.parametrize("strip", [seg_masks.STRIP_PIXELS, 1000])
def test_ious_with_true_masks_are_those_of_big_visions_evaluator(
    strip: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows have pictures of different sizes, and boxes inside out; cIoU is the quotient of the sums."""
    monkeypatch.setattr(seg_masks, "STRIP_PIXELS", strip)
    path = write_weights(tmp_path / "vae.npz", square_weights())
    predictions, theirs = zip(*drawn_rows(200, read_decoder(path)), strict=True)
    iou, shared, either = np.array(theirs).T
    assert (iou == 0).sum() > 20
    assert (iou > 0.1).sum() > 30
    np.testing.assert_allclose(find_metric("mask_iou", str(path)).rows(predictions), iou, atol=1e-12)
    cumulative = find_metric("mask_ciou", str(path))(predictions)
    assert cumulative.value == pytest.approx(shared.sum() / either.sum())
    np.testing.assert_allclose(cumulative.rows, iou, atol=1e-12)
    assert cumulative.low < cumulative.value < cumulative.high


def test_true_masks_are_compared_by_label() -> None:
    """Squares of 10 x 10 in a picture of 20 x 40: two cats side by side, and a dog."""

    def whole(codes: np.ndarray) -> np.ndarray:
        return np.ones((len(codes), 64, 64), np.float32)

    def box(y0: int, x0: int, y1: int, x1: int) -> str:
        return "".join(f"<loc{-(-edge * 1023 // side):04d}>" for edge, side in ((y0, 20), (x0, 40), (y1, 20), (x1, 40))) + CODES

    def square(label: str, y0: int, x0: int) -> TrueMask:
        mask = np.zeros((20, 40), bool)
        mask[y0 : y0 + 10, x0 : x0 + 10] = True
        return TrueMask(label, 20, 40, str(write_runs(mask)["counts"]))

    masks = masks_text([square("cat", 0, 0), square("cat", 0, 10), square("dog", 10, 20)])
    cats, dog = f"{box(0, 0, 10, 20)} cat", f"{box(10, 20, 20, 30)} dog"
    for answer, iou, ciou in (
        (f"{cats} ; {dog}", 1, 1),
        (f"{dog} ; {cats}", 1, 1),
        (cats, 1 / 2, 200 / 300),
        (f"{cats} ; {box(10, 20, 20, 40)} dog", (1 + 1 / 2) / 2, 300 / 400),
        (f"{cats} ; {dog} ; {box(0, 0, 10, 10)} bird", 2 / 3, 300 / 400),
        ("nothing", 0, 0),
    ):
        overlaps = row_overlaps([Prediction("", "", "x", ("x",), answer, 0, 0, 1, masks)], whole)
        assert mean_iou(overlaps[0]) == pytest.approx(iou)
        assert cumulative_iou(pixel_counts(overlaps)) == pytest.approx(ciou)


def test_rows_without_true_masks_are_compared_with_the_nearest_reference() -> None:
    def whole(codes: np.ndarray) -> np.ndarray:
        return np.ones((len(codes), 64, 64), np.float32)

    left, right = (f"<loc0000><loc{x0:04d}><loc1023><loc{x1:04d}>{CODES} cat" for x0, x1 in ((0, 512), (512, 1023)))
    rows = [Prediction("", "", left, (left, right), right, 0, 0, 1), Prediction("", "", "", ("no mask",), "none", 0, 0, 1)]
    overlaps = row_overlaps(rows, whole)
    assert [mean_iou(one) for one in overlaps] == [1, 1]
    assert cumulative_iou(pixel_counts(overlaps[1:])) == 1


def test_pictures_of_masks_are_of_what_they_cover() -> None:
    mask = np.zeros((20, 40), bool)
    mask[:10, 30:] = True
    masks = [TrueMask(label, 20, 40, str(write_runs(one)["counts"])) for label, one in (("a", mask), ("b", mask[::-1]))]
    assert (union_of_masks(masks, 8) == np.repeat([[False, True]], [6, 2], axis=1)).all()
    uri = mask_uri(union_of_masks(masks[:1], 8), (1, 2, 3))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))
    assert (picture[:4, 6:] == [1, 2, 3, 255]).all()
    assert picture[..., 3].sum() == 8 * 255


def test_masks_of_a_record_that_were_not_written_by_us_are_said_to_be_damaged() -> None:
    for text in ("x", "{}", '[{"label": "a"}]', '[{"label": 3, "size": [1, 1], "counts": "1"}]'):
        with pytest.raises(DamagedError, match=r"true masks cannot be read[\s\S]*run prepare_data again"):
            parse_masks_text(text)


def test_what_is_no_mask_is_passed_over() -> None:
    box = "<loc0001><loc0002><loc0003><loc0004>"
    assert [box.label for box, _ in parse_masks(f"{box}{CODES} a cat ; {box}<seg001> half ; {box}{CODES}")] == ["a cat", ""]
    assert parse_masks(f"<loc0005><loc0002><loc0003><loc0004>{CODES} inside out") == []
    assert parse_masks(f"{box}{CODES.replace('<seg000>', '<seg999>')}") == []
