"""Preparing again what changed in part: the bytes are those of a preparation from nothing, and only what is new is decoded."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from prepare_runs import Weeks, files_of

from conftest import SmallData
from paligemma.artifacts.record import list_files, read_record
from paligemma.artifacts.signing import KEY_VARIABLE
from paligemma.data import prepare as prepare_module
from paligemma.data.image_source import _Bucket
from paligemma.data.prepare import Preparer
from paligemma.storage import gcs
from paligemma.storage.location import GcsLocation
from servers.gcs import GcsServer


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were decoded."""
    names: list[str] = []
    fit = prepare_module.fit_image

    def counted(data: bytes, size: int, name: str, *more: object):
        names.append(name)
        return fit(data, size, name, *more)

    monkeypatch.setattr(prepare_module, "fit_image", counted)
    return names


@pytest.fixture
def weeks(small_data: SmallData, tmp_path: Path) -> Weeks:
    return Weeks(str(small_data.jsonl), str(tmp_path / "root"), str(tmp_path / "fresh"))


@pytest.fixture
def rows(small_data: SmallData) -> list[dict]:
    """Ten rows: three ranges, of which the last has two."""
    return [{"image": small_data.add_image(f"{n}.png", n), "prefix": "ocr", "suffix": str(n)} for n in range(10)]


def test_of_a_data_set_that_grew_only_what_is_new_is_decoded(
    rows: list[dict], small_data: SmallData, weeks: Weeks, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    small_data.write(rows)
    first = weeks.run()
    assert len(decoded) == 10
    rows.append({"image": small_data.add_image("new.png", 99), "prefix": "ocr", "suffix": "new"})
    small_data.write(rows)
    decoded.clear()
    second = weeks.run()
    assert decoded == ["new.png"]
    assert "10 of 11 rows are taken over from run run-1, of 2 of them the picture only" in caplog.text
    assert read_record(second).metrics == {"rows_taken_over": 10.0}
    shards = [sorted(Path(made).glob("*.tfrecord")) for made in (first, second)]
    assert [one.samefile(other) for one, other in zip(*shards, strict=True)] == [True, True, False]
    assert files_of(second) == files_of(weeks.run(weeks.fresh, reuse=False))
    assert not list(Path(second).parent.glob(".*.work"))


def test_a_row_that_moved_costs_no_decoding(rows: list[dict], small_data: SmallData, weeks: Weeks, decoded: list[str]) -> None:
    small_data.write(rows)
    weeks.run()
    for changed in ([rows[3], *rows], [*reversed(rows)], [{**rows[0], "suffix": "another"}, *rows[1:]], rows[1:]):
        small_data.write(changed)
        decoded.clear()
        made = weeks.run()
        assert decoded == []
        assert files_of(made) == files_of(weeks.run(weeks.fresh, reuse=False))
    os.rename(small_data.folder / "4.png", small_data.folder / "renamed.png")
    rows = rows[1:]
    small_data.write([{**row, "image": "renamed.png"} if row["image"] == "4.png" else row for row in rows])
    decoded.clear()
    made = weeks.run()
    assert decoded == []
    (small_data.folder / "4.png").write_bytes((small_data.folder / "5.png").read_bytes())
    small_data.write(rows)
    made = weeks.run()
    assert decoded == []
    assert files_of(made) == files_of(weeks.run(weeks.fresh, reuse=False))


def test_an_image_with_other_bytes_is_decoded(
    rows: list[dict], small_data: SmallData, weeks: Weeks, decoded: list[str]
) -> None:
    small_data.write(rows)
    weeks.run()
    decoded.clear()
    small_data.add_image("6.png", 77)
    made = weeks.run()
    assert decoded == ["6.png"]
    assert files_of(made) == files_of(weeks.run(weeks.fresh, reuse=False))


def test_what_is_said_of_an_image_that_cannot_be_read_is_said_anew(
    rows: list[dict], small_data: SmallData, weeks: Weeks
) -> None:
    small_data.write([{**rows[0], "image": "absent/0.png"}, {**rows[1], "image": "../x.png"}, *rows])
    weeks.check()
    (small_data.folder / "absent").mkdir()
    weeks.check()  # what is missing may be found under another name
    (small_data.folder / "absent/0.png").write_bytes(b"no picture")
    weeks.check()
    small_data.add_image("absent/0.png", 5)
    weeks.check()
    (small_data.folder / "0.png").unlink()
    made = weeks.check()
    assert json.loads(Path(made, "rejected.jsonl").read_text().splitlines()[-1])["code"] == "image_missing"


def test_warnings_of_pictures_and_of_the_whole_are_found_again(small_data: SmallData, weeks: Weeks) -> None:
    Image.new("RGB", (300, 2), "white").save(small_data.folder / "flat.png")
    rows = [{"image": "flat.png", "prefix": "p", "suffix": str(n)} for n in range(5)]
    small_data.write(rows)
    weeks.check()
    small_data.write([rows[4], *rows[1:], rows[1]])
    made = weeks.check()
    codes = [json.loads(line)["code"] for line in Path(made, "warnings.jsonl").read_text().splitlines()]
    assert codes.count("image_tiny") == 6
    assert codes.count("row_duplicate") == 2


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["append", "delete", "insert", "text", "picture", "swap", "lose", "spoil", "blank", "bad", "long", ""]),
        st.integers(0, 30),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EDITS, min_size=1, max_size=3), st.sampled_from(["webp", "none", "gzip"]))
def test_whatever_is_edited_the_bytes_are_those_of_a_preparation_from_nothing(
    tmp_path_factory: pytest.TempPathFactory, histories: list[list[tuple[str, int, int]]], compression: str
) -> None:
    tmp_path = tmp_path_factory.mktemp("edited")
    data = SmallData(tmp_path / "data")
    data.folder.mkdir()
    weeks = Weeks(str(data.jsonl), str(tmp_path / "root"), str(tmp_path / "fresh"))
    names = [data.add_image(f"{n}.png", n) for n in range(6)]
    lines: list[object] = [{"image": names[n % 6], "prefix": "p", "suffix": str(n)} for n in range(9)]
    data.write(lines)
    weeks.run(compression=compression)
    for edits in histories:
        for kind, where, which in edits:
            edit(data, lines, kind, where % len(lines), names[which], where)
        data.write(lines)
        weeks.check(compression=compression)


def edit(data: SmallData, lines: list, kind: str, place: int, name: str, number: int) -> None:
    row = {"image": name, "prefix": "p", "suffix": f"new {number}"}
    match kind:
        case "append":
            lines.append(row)
        case "insert":
            lines.insert(place, row)
        case "delete" if len(lines) > 1:
            del lines[place]
        case "swap":
            lines[0], lines[place] = lines[place], lines[0]
        case "text":
            lines[place] = row
        case "picture":
            data.add_image(name, 100 + number)
        case "lose":
            (data.folder / name).unlink(missing_ok=True)
        case "spoil":
            (data.folder / name).write_bytes(b"x" * number)
        case "blank":
            lines.insert(place, b"")
        case "bad":
            lines.insert(place, b"{")
        case "":
            lines.insert(place, row | {"image": ""})
        case "long":
            lines.insert(place, row | {"suffix": "x" * 200})
    lines[0] = {"image": "whole.png", "prefix": "p", "suffix": "kept"}  # one row is always usable
    data.add_image("whole.png", 1)


def test_worker_processes_take_over_too(rows: list[dict], small_data: SmallData, weeks: Weeks) -> None:
    small_data.write(rows)
    weeks.run(workers=2)
    small_data.write(rows[1:])
    made = weeks.run(workers=2)
    assert read_record(made).metrics == {"rows_taken_over": 9.0}
    assert files_of(made) == files_of(weeks.run(weeks.fresh, reuse=False))


def test_packed_shards_are_taken_whole(rows: list[dict], small_data: SmallData, weeks: Weeks, decoded: list[str]) -> None:
    small_data.write(rows)
    weeks.run(compression="gzip")
    small_data.write([*rows, rows[0]])
    decoded.clear()
    made = weeks.run(compression="gzip")
    assert decoded == ["8.png", "9.png", "0.png"]
    assert files_of(made) == files_of(weeks.run(weeks.fresh, reuse=False, compression="gzip"))


def test_pictures_in_archives_are_taken_over(small_data: SmallData, weeks: Weeks, decoded: list[str]) -> None:
    archive = small_data.folder / "all.tar"
    with tarfile.open(archive, "w") as tar:
        for n in range(6):
            tar.add(small_data.folder / small_data.add_image(f"{n}.png", n), f"{n}.png")
    rows = [{"image": f"all.tar/{n}.png", "prefix": "p", "suffix": str(n)} for n in range(6)]
    small_data.write(rows)
    weeks.run()
    small_data.write(rows[1:])
    decoded.clear()
    made = weeks.run()
    assert decoded == []
    assert files_of(made) == files_of(weeks.run(weeks.fresh, reuse=False))


def test_beside_another_split_too(rows: list[dict], small_data: SmallData, weeks: Weeks, decoded: list[str]) -> None:
    other = small_data.folder / "other.jsonl"
    other.write_text(json.dumps(rows[2]) + "\n")
    small_data.write(rows)
    weeks.run(against=str(other))
    decoded.clear()
    made = weeks.run(against=str(other))
    assert decoded == []
    assert '"row_leaked"' in Path(made, "warnings.jsonl").read_text()
    assert files_of(made) == files_of(weeks.run(weeks.fresh, reuse=False, against=str(other)))


@pytest.mark.parametrize(
    "changes",
    [{"max_text_tokens": 23}, {"rows_per_shard": 5}, {"grey_range": "0,100"}, {"split": "other"}, {"over_long": "truncate"}],
    ids=str,
)
def test_nothing_is_taken_over_from_other_settings(
    rows: list[dict], small_data: SmallData, weeks: Weeks, decoded: list[str], changes: dict
) -> None:
    small_data.write(rows)
    weeks.run()
    decoded.clear()
    weeks.run(**changes)
    assert len(decoded) == 10


def test_each_of_two_data_sets_below_one_root_is_taken_over(
    rows: list[dict], small_data: SmallData, weeks: Weeks, decoded: list[str]
) -> None:
    small_data.write(rows)
    other = Weeks(str(small_data.folder / "other.jsonl"), weeks.root, weeks.fresh)
    other.count = 100
    Path(other.data).write_text(json.dumps({**rows[0], "image": small_data.add_image("else.png", 55)}) + "\n")
    weeks.run()
    other.run()
    small_data.write(rows[1:])
    decoded.clear()
    weeks.run()
    assert decoded == []


def lose_records_file(name: str) -> Callable[[Path], None]:
    return lambda made: (made / name).unlink()


def flip_a_byte(made: Path, place: int = 0) -> None:
    shard = sorted(made.glob("*.tfrecord"))[place]
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1  # in the second of four rows
    shard.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [flip_a_byte, lose_records_file("parts.jsonl"), lose_records_file("lineage.json")], ids=["byte", "list", "record"]
)
def test_from_damaged_records_nothing_is_taken(
    rows: list[dict], small_data: SmallData, weeks: Weeks, decoded: list[str], damage: Callable[[Path], None]
) -> None:
    small_data.write(rows)
    damage(Path(weeks.run()))
    small_data.write([*rows, rows[0]])
    decoded.clear()
    made = weeks.run()
    assert len(decoded) >= 10
    assert files_of(made) == files_of(weeks.run(weeks.fresh, reuse=False))


def test_a_picture_in_a_damaged_record_is_decoded(
    rows: list[dict], small_data: SmallData, weeks: Weeks, decoded: list[str]
) -> None:
    small_data.write(rows)
    flip_a_byte(Path(weeks.run()), 1)
    small_data.write(rows[1:])
    decoded.clear()
    made = weeks.run()
    assert len(decoded) == 1
    assert files_of(made) == files_of(weeks.run(weeks.fresh, reuse=False))


def test_with_a_key_only_what_it_signed_is_taken_over(
    rows: list[dict], small_data: SmallData, weeks: Weeks, decoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decodes(count: int) -> None:
        small_data.write(rows[:count])
        decoded.clear()
        weeks.run()

    decodes(10)
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    decodes(9)
    assert len(decoded) == 9
    decodes(8)
    assert decoded == []
    notes = sorted((Path(weeks.root) / "results/latest").iterdir())
    assert len(notes) == 2
    for note in notes:  # a note that somebody else wrote, of records that this key signed
        note.write_text(json.dumps(json.loads(note.read_text()) | {"signature": None}))
    decodes(7)
    assert len(decoded) == 7


def test_a_killed_run_goes_on_and_leaves_the_earlier_records_as_they_were(
    rows: list[dict], small_data: SmallData, weeks: Weeks, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_data.write(rows)
    first = weeks.run()
    before = read_record(first).artifact.tree_sha256
    small_data.write([*rows, rows[0]])
    monkeypatch.setattr(Preparer, "prepare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        weeks.run()
    monkeypatch.undo()
    weeks.count -= 1
    work = Path(f"{weeks.root}/run-2/prepare/.records.work")
    assert (work / "00000.tfrecord").samefile(next(iter(sorted(Path(first).glob("*.tfrecord")))))
    (work / "00000.facts").unlink()  # killed before it was finished
    small_data.add_image("0.png", 55)
    second = weeks.run(reuse=False)
    assert second.endswith("run-2/prepare/records")
    assert files_of(second) == files_of(weeks.run(weeks.fresh, reuse=False))
    assert read_record(first).artifact.tree_sha256 == before
    assert {file.path: file.sha256 for file in list_files(Path(first))} == files_of(first)


def test_an_image_that_is_replaced_while_the_step_works_misleads_no_later_run(
    rows: list[dict], small_data: SmallData, weeks: Weeks, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_data.write(rows)
    last, prepare = small_data.folder / "9.png", Preparer.prepare
    before = last.read_bytes()

    def replaced(*values):
        small_data.add_image("9.png", 50)
        return prepare(*values)

    monkeypatch.setattr(Preparer, "prepare", replaced)
    weeks.run()
    monkeypatch.undo()
    last.write_bytes(before)
    weeks.check()


def test_in_cloud_storage_no_image_is_read_that_did_not_change(
    rows: list[dict], small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    read: list[str] = []
    fetch = _Bucket._fetch

    def counted(self, name: str, *more):
        read.append(name)
        return fetch(self, name, *more)

    monkeypatch.setattr(_Bucket, "_fetch", counted)
    with GcsServer() as server:
        server.create_bucket("bucket")
        monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path / "cache"))
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)

        def upload(changed: list[dict]) -> None:
            small_data.write(changed)
            for path in small_data.folder.iterdir():
                gcs.upload(path, GcsLocation("bucket", f"data/{path.name}"))
            read.clear()
            decoded.clear()

        weeks = Weeks("gs://bucket/data/rows.jsonl", "gs://bucket/root", "gs://bucket/fresh")
        upload(rows)
        weeks.run()
        assert sorted(set(read)) == sorted(row["image"] for row in rows)
        upload([*rows, {**rows[0], "image": small_data.add_image("new.png", 99)}])
        made = weeks.run()
        assert (set(read), decoded) == ({"new.png"}, ["new.png"])
        upload(rows[1:])
        moved = weeks.run()
        assert (read, decoded) == ([], [])
        assert files_of(moved) == files_of(weeks.run(weeks.fresh, reuse=False))
        upload([*rows, {**rows[0], "image": "new.png"}])
        assert files_of(made) == files_of(weeks.run(weeks.fresh, reuse=False))
