"""Warnings: what is said of texts and pictures, and of rows that are there twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from paligemma.data.duplicates import NEAR_BITS, Listing, duplicates, leaks, near_pairs, read_listing, remarks
from paligemma.data.row_warnings import WARNINGS, difference_hash, image_warnings, text_warnings
from paligemma.errors import DamagedError


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("a plain text\nof two lines", []),
        ("Grüße 漢字 שלום ♥", []),
        ("می‌خواهم", []),  # Persian needs its zero-width non-joiner
        ("👩‍💻", []),
        ("e\u0301", ["text_not_nfc"]),
        ("a\u200bb", ["text_invisible"]),
        ("\ufeffa", ["text_invisible"]),
        ("a\u202eb", ["text_bidi"]),
        ("a\x07", ["text_control"]),
        ("<image>what?", ["text_special"]),
        ("a<pad>", ["text_special"]),
        ("<loc0001><loc0002><loc0003><loc0004> cat", []),
        ("<loc0001><loc0002><loc0003><loc0004> cat ; <loc0000><loc0000><loc1023><loc1023> dog", []),
        ("<loc0001><loc0002><loc0003>", ["loc_incomplete"]),
        ("<loc0005><loc0002><loc0003><loc0004> cat", ["loc_order"]),
        ("<loc0001><loc0009><loc0003><loc0004> cat", ["loc_order"]),
        ("<loc0001><loc0002><loc0001><loc0004> cat", ["loc_empty"]),
        ("<loc0001><loc0002><loc0003><loc0002> cat", ["loc_empty"]),
        ("<loc1023><loc1023><loc1023><loc1023> cat ; <loc0005><loc0002><loc0003><loc0004> dog", ["loc_order", "loc_empty"]),
        ("<loc1024>", ["loc_malformed"]),
        ("<loc12>", ["loc_malformed"]),
        ("<loc0001", ["loc_malformed"]),
        ("<seg128>", ["loc_malformed"]),
        ("<seg001>" * 16, []),
        ("<loc0001><loc0002><loc0003><loc0004>" + "<seg001>" * 15, ["loc_incomplete"]),
        ("a < b, <local>, <log", []),
    ],
)
def test_what_is_odd_about_a_text(text: str, codes: list[str]) -> None:
    assert [code for code, _ in text_warnings(text)] == codes


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("<>locseg019"))))
def test_any_text_is_answered_with_documented_codes(text: str) -> None:
    assert {code for code, _ in text_warnings(text)} <= WARNINGS.keys()


def picture(seed: int, size: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("image", "width", "height", "codes"),
    [
        (picture(0), 640, 480, []),
        (Image.new("RGB", (32, 32), "white"), 640, 480, ["image_flat"]),
        (picture(0), 1, 1, ["image_tiny"]),
        (picture(0), 8, 8, []),
        (picture(0), 900, 100, ["image_aspect_extreme"]),
        (picture(0), 800, 100, []),
    ],
)
def test_what_is_odd_about_a_picture(image: Image.Image, width: int, height: int, codes: list[str]) -> None:
    assert [code for code, _ in image_warnings(image, width, height)] == codes


def test_the_difference_hash_outlives_size_and_quality_and_tells_pictures_apart(tmp_path) -> None:
    picture(0, 500).save(tmp_path / "x.jpg", quality=40)
    shrunk = Image.open(tmp_path / "x.jpg").resize((64, 64), Image.Resampling.BILINEAR)
    hashes = [difference_hash(np.asarray(image.convert("RGB"))) for image in (picture(0), shrunk, picture(1))]
    assert (hashes[0] ^ hashes[1]).bit_count() <= NEAR_BITS
    assert (hashes[0] ^ hashes[2]).bit_count() > 20
    for size in ((9, 9), (1, 1), (300, 8)):
        assert difference_hash(np.asarray(Image.new("RGB", size, "white"))) == 0


@given(st.lists(st.integers(0, 2**128 - 1), max_size=12), st.data())
def test_near_pairs_are_those_a_comparison_of_all_finds(values: list[int], data) -> None:
    for _ in range(min(len(values), 4)):  # some that are near others
        value = data.draw(st.sampled_from(values))
        for bit in data.draw(st.lists(st.integers(0, 127), max_size=7)):
            value ^= 1 << bit
        values.append(value)
    found = near_pairs(halves(values))
    near = {
        later
        for later, value in enumerate(values)
        if value and any(other and is_near(value ^ other) for other in values[:later])
    }
    assert {later for later, _ in found} == near
    assert all(earlier < later for later, earlier in found)


def halves(values: list[int]) -> np.ndarray:
    return np.array([divmod(value, 2**64) for value in values], np.uint64).reshape(-1, 2)


def is_near(difference: int) -> bool:
    return all(half.bit_count() <= NEAR_BITS for half in divmod(difference, 2**64))


def listing(rows: list[int], images: list[int], looks: list[int], names: list[int]) -> Listing:
    hashes = (np.array(values, np.uint64) for values in (rows, images))
    return Listing(np.arange(1, len(rows) + 1), *hashes, halves(looks), np.array(names, np.uint64), np.arange(len(rows)))


def test_a_row_is_told_how_it_repeats_an_earlier_one() -> None:
    far = 0xFFFF_0000_FFFF_0000
    found = duplicates(listing([1, 1, 2, 3, 4], [7, 7, 7, 7, 8], [far, far, far, far, far ^ 1], [1, 1, 1, 2, 3]))
    assert [(row, code) for row, code, _ in found] == [
        (1, "row_duplicate"),
        (3, "image_duplicate"),
        (4, "image_near_duplicate"),
    ]


def test_a_row_is_told_how_it_leaked() -> None:
    far = 0xFFFF_0000_FFFF_0000
    train = listing([1, 2], [7, 8], [far, 0], [1, 2])
    found = list(leaks(listing([1, 5, 6, 9], [7, 7, 11, 12], [far, far, far ^ 1, 1 << 40], [1, 1, 3, 4]), train))
    assert found == [
        (0, "row_leaked", "as line 1 there"),
        (1, "image_leaked", "as line 1 there"),
        (2, "image_near_leaked", "looks like the image of line 1 there"),
    ]
    assert list(leaks(listing([1], [1], [1], [1]), listing([], [], [], []))) == []


def test_of_several_images_each_is_compared(tmp_path: Path) -> None:
    """Three rows of two images: the second repeats one under another name, and the third has one that looks like it."""
    far = 0xFFFF_0000_FFFF_0000
    looks = [[far, 0x1234_5678], [0xABCD_EF01, far], [far ^ 1, 0x0F0F_F0F0]]
    entries = [
        {"row_id": f"{row + 1:016x}", "line": 10 + row, "image_sha256": [f"{image:016x}" for image in images],
         "image_dhash": [f"{look:032x}" for look in looks[row]], "image_file": names}
        for row, (images, names) in enumerate([([7, 8], ["a", "b"]), ([9, 7], ["c", "d"]), ([10, 11], ["e", "f"])])
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    found = read_listing(tmp_path / "rows.jsonl")
    assert (len(found.lines), len(found.images), found.image_count) == (3, 6, 5)
    assert list(duplicates(found)) == [
        (1, "image_duplicate", "the same bytes as the image of line 10"),
        (2, "image_near_duplicate", "looks like the image of line 10"),
    ]
    one = listing([1, 99], [7, 11], [far, 0], [1, 2])
    assert list(leaks(found, one)) == [
        (0, "row_leaked", "as line 1 there"),
        (1, "image_leaked", "as line 1 there"),
        (2, "image_leaked", "as line 2 there"),
        (2, "image_near_leaked", "looks like the image of line 1 there"),
    ]
    twice = [*duplicates(found), (2, "image_near_duplicate", "looks like the image of line 11")]
    assert [(one.line, one.code, one.message, one.image) for one in remarks(twice, tmp_path / "rows.jsonl")] == [
        (11, "image_duplicate", "the same bytes as the image of line 10", ["c", "d"]),
        (12, "image_near_duplicate", "looks like the image of line 10", ["e", "f"]),
    ]
    entries[1]["image_file"] = ["c"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(DamagedError, match="list of rows"):
        read_listing(tmp_path / "rows.jsonl")


def test_a_list_of_rows_without_hashes_is_refused(tmp_path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"row_id": "00", "image_sha256": "00", "line": 1}\n')
    with pytest.raises(DamagedError, match="image_dhash"):
        read_listing(tmp_path / "rows.jsonl")
