"""Predictions that are kept: whole or not at all, on a disk and in storage, and never another model's."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paligemma.evaluation.kept_predictions import KeptPredictions
from paligemma.evaluation.predict import Prediction
from paligemma.storage import folders
from paligemma.storage.files import write_file
from paligemma.storage.location import GcsLocation, Location
from servers.gcs import GcsServer

BUCKET = "bucket-of-predictions"
IDS = [f"{number:064x}" for number in range(6)]
MODEL = {"inputs": {"checkpoint": "a"}, "seed": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with GcsServer() as running:
        running.create_bucket(BUCKET)
        yield running


@pytest.fixture(params=["disk", "storage"])
def place(request: pytest.FixtureRequest, server: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Location:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return tmp_path / "x.predictions" if request.param == "disk" else GcsLocation(BUCKET, tmp_path.name)


def answer(number: int, text: str = "日本\n🙂 </script>") -> tuple[int, Prediction]:
    return number, Prediction(IDS[number], "ocr", "1", ("1", "one"), text, -1.5, float(np.float32(-0.1)), 2)


def fill(place: Location) -> dict[int, Prediction]:
    kept = KeptPredictions(place, MODEL)
    kept.add([answer(4), answer(0)], 1.5)
    kept.add([answer(2)], 0.5)
    return dict([answer(4), answer(0), answer(2)])


def parts(place: Location) -> list[str]:
    return sorted(folders.list_files(place))


def test_what_was_kept_is_read_again_to_the_last_bit(place: Location) -> None:
    assert KeptPredictions(place, MODEL).read(IDS) == {}
    expected = fill(place)
    kept = KeptPredictions(place, MODEL)
    assert kept.read(IDS) == expected
    assert kept.seconds == 2.0


@pytest.mark.parametrize("other", [{"seed": 1}, {"inputs": {"checkpoint": "b"}}, {"code": "changed"}])
def test_what_is_determined_by_anything_else_is_passed_over(place: Location, other: dict, caplog) -> None:
    fill(place)
    with caplog.at_level(logging.INFO):
        assert KeptPredictions(place, MODEL | other).read(IDS) == {}
    assert "2 batches kept in" in caplog.text
    assert "other settings" in caplog.text


def test_a_damaged_part_is_passed_over_with_a_line_that_names_it(place: Location, caplog) -> None:
    """Cut at any place, or with a byte changed anywhere."""
    expected = fill(place)
    (name,) = [name for name in parts(place) if len(folders.read_file(place / name).splitlines()) == 3]
    whole = folders.read_file(place / name)
    damaged = [whole[:length] for length in range(0, len(whole), 97)]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(whole.index(b"\n") + 1, len(whole), 97)]
    damaged += [b"[]\n", b"{}\n", b'{"key": 1}\n', b"\xff\n", b"[" * 10**5]
    for data in damaged:
        caplog.clear()
        write_file(place / name, data)
        assert KeptPredictions(place, MODEL).read(IDS) == {2: expected[2]}
        assert f"{name} is damaged, and passed over" in caplog.text


def test_predictions_of_other_rows_are_not_believed(place: Location) -> None:
    fill(place)
    assert KeptPredictions(place, MODEL).read(IDS[::-1]) == {}
    assert KeptPredictions(place, MODEL).read(IDS[:3]).keys() == {2}


def test_removing_leaves_what_is_the_users(place: Location) -> None:
    fill(place)
    write_file(place / "notes.txt", b"mine")
    KeptPredictions(place, MODEL).remove()
    assert parts(place) == ["notes.txt"]
    folders.remove_file(place / "notes.txt")
    fill(place)
    KeptPredictions(place, MODEL).remove()
    assert parts(place) == []
    if isinstance(place, Path):
        assert not place.exists()


def test_what_a_killed_write_left_does_no_harm(tmp_path: Path) -> None:
    expected = fill(tmp_path / "x")
    (tmp_path / "x/.part-00.jsonl.partial-1").write_bytes(b"half")
    kept = KeptPredictions(tmp_path / "x", MODEL)
    assert kept.read(IDS) == expected
    kept.remove()
    assert not (tmp_path / "x").exists()


def test_a_line_holds_one_row(tmp_path: Path) -> None:
    fill(tmp_path)
    lines = [line for name in parts(tmp_path) for line in (tmp_path / name).read_text().splitlines()[1:]]
    assert {json.loads(line)[0] for line in lines} == {0, 2, 4}
