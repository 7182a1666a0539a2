"""The preview of records and of raw rows."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from components.prepare_data.main import run
from conftest import SmallData
from paligemma.checkpoints.open import resolve_embedded
from paligemma.data.preview import preview_page
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


def test_bad_rows_are_shown_with_their_reason_and_only_so_many(small_data: SmallData) -> None:
    good = {"image": small_data.add_image("a.png"), "prefix": "p", "suffix": "s"}
    page = preview_page(str(small_data.write([b"{", {**good, "image": "none.png"}, good, good])), "embedded:tiny", rows=3)
    assert page.count("json_invalid") == page.count("image_missing") == 1
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
