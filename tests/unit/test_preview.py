"""The preview of records and of raw rows."""

from __future__ import annotations

import base64
import gzip
import io
import re
from pathlib import Path

import numpy as np
import pytest
from mask_weights import square_weights, write_weights
from PIL import Image

from components.prepare_data.__main__ import run
from conftest import SmallData
from paligemma.checkpoints.open_checkpoint import resolve_embedded
from paligemma.data.preview import make_preview, preview_page
from paligemma.data.run_lengths import write_runs
from paligemma.data.tokenizer import Tokenizer
from paligemma.errors import DamagedError, InputError

TINY = Tokenizer(resolve_embedded("embedded:tiny") / "tokenizer.model")


def shown_ids(page: str) -> list[tuple[bool, int]]:
    """Of every token: whether it is marked as suffix, and its id."""
    found = re.findall(r'class="token( suffix)?"><b>.*?</b><span>(\d+)</span>', page, re.DOTALL)
    return [(bool(suffix), int(token)) for suffix, token in found]


def test_records_and_raw_rows_show_the_same_tokens(small_data: SmallData, tmp_path: Path) -> None:
    name = small_data.add_image("a.png")
    path = small_data.write([{"image": name, "prefix": "<b>ocr", "suffix": "7 ♥"}])
    run(data=path, checkpoint="embedded:tiny", output=tmp_path / "records")
    raw, prepared = preview_page(str(path), "embedded:tiny"), preview_page(str(tmp_path / "records"), "embedded:tiny")
    expected = [(False, token) for token in TINY.prefix_ids("<b>ocr")] + [(True, token) for token in TINY.suffix_ids("7 ♥")]
    assert shown_ids(raw) == shown_ids(prepared) == expected
    assert re.findall(r'<img src="([^"]*)"', raw) == re.findall(r'<img src="([^"]*)"', prepared)
    assert "&lt;b&gt;ocr" in raw
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', raw))


def mask_on(page: str, alt: str) -> np.ndarray:
    """Where a picture laid over a row's picture has a colour."""
    (data,) = re.findall(rf'<img class="mask" src="data:image/png;base64,([^"]*)" alt="{alt}">', page)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))[..., 3] > 0


def test_masks_are_drawn_where_they_are(small_data: SmallData, tmp_path: Path) -> None:
    """True ones of any row that keeps them; those of the symbols with the decoder."""
    mask = np.zeros((20, 40), bool)
    mask[5:10, 10:40] = True
    name = small_data.add_image("a.png")
    row = {"image": name, "prefix": "segment cat", "suffix": f"<loc0512><loc0000><loc1023><loc1023>{'<seg080>' * 16} cat"}
    path = small_data.write([row | {"masks": [{"label": "cat", **write_runs(mask)}]}, "no row"])
    run(data=path, checkpoint="embedded:tiny", output=tmp_path / "records", max_reject_fraction=1)
    codes = str(write_weights(tmp_path / "vae.npz", square_weights()))
    for source in (str(path), str(tmp_path / "records")):
        page = make_preview(source, "embedded:tiny", mask_decoder=codes).page
        drawn = mask_on(page, "true mask")
        side = len(drawn)
        expected = np.zeros((side, side), bool)
        expected[side // 4 : side // 2, side // 4 :] = True
        assert (drawn == expected).all()
        expected[:] = False
        expected[int(512 / 1023 * side) :] = True
        assert (mask_on(page, "mask of the suffix") == expected).all()
        assert "Green: the true masks" in page
        page = make_preview(source, "embedded:tiny").page
        assert "true mask" in page
        assert "mask of the suffix" not in page
    with pytest.raises(InputError, match="There is no mask decoder"):
        make_preview(str(path), "embedded:tiny", mask_decoder="none.npz")


def test_the_page_of_the_data_set_draws_true_masks_too(small_data: SmallData, tmp_path: Path) -> None:
    """All masks of a row, of any size; beside a row without any."""
    upper, lower = np.zeros((20, 40), bool), np.zeros((20, 40), bool)
    upper[:5, :10], lower[10:] = True, True
    row = {"image": small_data.add_image("a.png"), "prefix": "segment cat", "suffix": f"{'<loc0100>' * 4} cat"}
    masks = [{"label": "cat", **write_runs(mask)} for mask in (upper, lower)]
    path = small_data.write([row | {"masks": masks}, row | {"suffix": "none"}])
    run(data=path, checkpoint="embedded:tiny", output=tmp_path / "records")
    page = (tmp_path / "records" / "report.html").read_text()
    drawn = mask_on(page, "true masks")
    expected = np.zeros(drawn.shape, bool)
    side = len(drawn)
    expected[: side // 4, : side // 4] = expected[side // 2 :] = True
    assert (drawn == expected).all()
    assert "Green: the true masks that rows keep." in page


def test_bad_rows_are_shown_with_their_reason_and_only_so_many(small_data: SmallData) -> None:
    good = {"image": small_data.add_image("a.png"), "prefix": "p", "suffix": "s"}
    page = preview_page(str(small_data.write([b"{", {**good, "image": "none.png"}, good, good])), "embedded:tiny", rows=3)
    for code in ("json_invalid", "image_missing"):  # in the table of reasons, and in the row's place
        assert page.count(f"<code>{code}</code>") == 2
    assert len(re.findall("line 3, ", page)) == 1
    assert "line 4" not in page


def test_a_packed_file_shows_what_the_plain_one_does(small_data: SmallData, tmp_path: Path) -> None:
    plain = small_data.write([{"image": small_data.add_image("a.png"), "prefix": "p", "suffix": "s"}] * 3)
    packed = plain.with_name("packed.jsonl.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert preview_page(str(packed), "embedded:tiny").replace("packed.jsonl.gz", plain.name) == preview_page(
        str(plain), "embedded:tiny"
    )
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DamagedError, match="cannot be unpacked"):
        preview_page(str(packed), "embedded:tiny")


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no data"):
        preview_page(str(tmp_path / "none.jsonl"), "embedded:tiny")


def test_the_page_says_which_rows_would_be_rejected_and_warned_of_and_draws_boxes(small_data: SmallData) -> None:
    name = small_data.add_image("a.png")
    box = "<loc0256><loc0128><loc0512><loc0640> cat"
    rows = [
        {"image": name, "prefix": "detect cat", "suffix": box},
        {"image": name, "prefix": "detect cat", "suffix": "<loc0256><loc0128> cat"},
        {"image": "none.png", "prefix": "p", "suffix": "s"},
        {"image": name, "prefix": "p " * 200, "suffix": "s"},
    ]
    made = make_preview(str(small_data.write(rows)), "embedded:tiny", rows=1)
    assert made.counts[0] == "of all 4 rows: 2 are fit, 2 would be rejected"
    said = "\n".join(made.counts[1:])
    for line in (
        "rejected: 1 image_missing, first in line 3",
        "1 text_too_long, first in line 4",
        "warned of: 1 loc_incomplete",
    ):
        assert line in said
    assert '<rect class="box" x="128" y="256" width="512" height="256"/>' in made.page
    assert ">cat</text>" in made.page
    assert make_preview(str(small_data.jsonl), "embedded:tiny", max_text_tokens=1000).counts[0].startswith("of all 4 rows: 3")


def test_of_a_large_file_the_first_rows_are_judged(small_data: SmallData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paligemma.data.preview.LOOKED_AT", 2)
    rows = [{"image": small_data.add_image("a.png"), "prefix": "p", "suffix": str(number)} for number in range(3)]
    made = make_preview(str(small_data.write(rows)), "embedded:tiny")
    assert made.counts == ["of the first 2 rows: 2 are fit, 0 would be rejected"]
