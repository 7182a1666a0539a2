"""Splitting by image: no picture is in both parts, whatever it is called."""

from __future__ import annotations

import json
import shutil
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest
from converting import run_convert

from conftest import SmallData
from paligemma.data.split import split_rows
from paligemma.errors import InputError
from pipelines.check_run import split_data


def images_of(path: Path) -> set[str]:
    return {json.loads(line)["image"] for line in path.read_text().splitlines()}


def test_rows_of_an_image_stay_together_and_so_do_copies_of_it(small_data: SmallData, tmp_path: Path) -> None:
    names = [small_data.add_image(f"{number}.png", number) for number in range(10)]
    for name in names:
        shutil.copy(small_data.folder / name, small_data.folder / f"copy-{name}")
    rows = [
        {"image": name, "prefix": prefix, "suffix": "s"} for prefix in "ab" for name in [*names, *(f"copy-{n}" for n in names)]
    ]
    data = small_data.write([*rows, b"no row", {"image": "none.png", "prefix": "a", "suffix": "s"}])
    train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    assert sum(split_rows(data, small_data.folder, 0.2, train, validation)) == 42
    held = {json.loads(line)["image"] for line in validation.read_text().splitlines()}
    assert {f"copy-{name}" for name in held if name in names} == {name for name in held if name.startswith("copy-")}
    assert len([name for name in held if name in names]) in (1, 2)
    assert b"no row" in train.read_bytes()
    lines = train.read_text().splitlines() + validation.read_text().splitlines()
    assert sorted(lines) == sorted(data.read_text().splitlines())
    before = validation.read_bytes()
    split_rows(data, small_data.folder, 0.2, train, validation)
    assert validation.read_bytes() == before


def test_a_picture_is_found_in_an_archive_and_no_file_outside_the_folder_is_read(small_data: SmallData, tmp_path: Path) -> None:
    inside, outside = small_data.add_image("a.png"), tmp_path / "outside.png"
    shutil.copy(small_data.folder / inside, outside)
    with tarfile.open(small_data.folder / "b.tar", "w") as archive:
        archive.add(outside, "copy.png")

    def split(other: str) -> tuple[int, int]:
        data = small_data.write([{"image": name, "prefix": "p", "suffix": "s"} for name in (inside, other)])
        return split_rows(data, small_data.folder, 0.5, tmp_path / "train.jsonl", tmp_path / "validation.jsonl")

    with pytest.raises(InputError, match="1 different images"):
        split("b.tar/copy.png")
    for other in ("../outside.png", str(outside)):  # the same bytes, but it is not known that they are
        assert split(other) == (1, 1)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.9])
def test_rows_that_share_an_image_stay_together_over_others(small_data: SmallData, tmp_path: Path, fraction: float) -> None:
    """Six groups of three pictures, of which no row has all: the first and the last share none."""
    names = [[small_data.add_image(f"{group}{one}.png", 3 * group + one) for one in range(3)] for group in range(6)]
    rows = [{"image": pair, "prefix": "p", "suffix": "s"} for a, b, c in names for pair in ([a, b], [c, b], [a, b], [b, b])]
    train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    kept, held = split_rows(small_data.write(rows), small_data.folder, fraction, train, validation, 2)
    assert (kept + held, kept % 4, held % 4) == (24, 0, 0)
    assert min(kept, held) > 0
    there = [
        {name for line in path.read_text().splitlines() for name in json.loads(line)["image"]} for path in (train, validation)
    ]
    assert not there[0] & there[1]
    assert abs(len(there[1]) - fraction * 18) < 3 or held == 4


def test_pictures_that_are_all_joined_cannot_be_split(small_data: SmallData, tmp_path: Path) -> None:
    names = [small_data.add_image(f"{number}.png", number) for number in range(4)]
    rows = [{"image": [one, other], "prefix": "p", "suffix": "s"} for one, other in pairwise(names)]
    with pytest.raises(InputError, match="4 different images cannot be split by image: rows that share one belong together"):
        split_rows(small_data.write(rows), small_data.folder, 0.5, tmp_path / "a", tmp_path / "b", 2)


def test_one_image_cannot_be_split(small_data: SmallData, tmp_path: Path) -> None:
    data = small_data.write([{"image": small_data.add_image("a.png"), "prefix": "p", "suffix": "s"}] * 3)
    with pytest.raises(InputError, match="1 different images cannot be split"):
        split_rows(data, small_data.folder, 0.5, tmp_path / "a", tmp_path / "b")


def test_a_conversion_splits_what_it_writes(small_data: SmallData, tmp_path: Path) -> None:
    for number in range(5):
        (small_data.folder / str(number % 2)).mkdir(exist_ok=True)
        small_data.add_image(f"{number % 2}/{number}.png", number)
    flags = ("--folder", small_data.folder, "--validation-fraction", "0.4")
    done = run_convert(tmp_path / "rows.jsonl", "folder", *flags)
    assert done.exit_code == 0
    assert "split by image: 3 rows in" in done.words
    held = images_of(tmp_path / "rows.validation.jsonl")
    assert len(held) == 2
    assert not held & images_of(tmp_path / "rows.jsonl")


def test_a_run_with_one_file_splits_it(small_data: SmallData, tmp_path: Path) -> None:
    rows = [{"image": small_data.add_image(f"{n}.png", n), "prefix": "p", "suffix": "s"} for n in range(4)]
    given = {"train_data": str(small_data.write(rows)), "images": "", "images_per_example": 1}
    changed = split_data(given, tmp_path, 0.25)
    assert changed["images"] == str(small_data.folder)
    assert [len(images_of(Path(changed[name]))) for name in ("train_data", "validation_data")] == [3, 1]
    assert split_data(given, tmp_path, 0.25) == changed
