"""Rows whose images are anywhere: in buckets, on the web, in the row itself. And runs that take over what has not changed."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prepare_runs import Weeks, files_of

import paligemma
from components.prepare_data import distributed
from components.prepare_data.__main__ import run
from conftest import SmallData
from paligemma import retry
from paligemma.artifacts.record import read_record
from paligemma.data import web_images
from paligemma.data.image_source import image_marks, mark_of
from paligemma.data.images import ImageError
from paligemma.data.preview import make_preview
from paligemma.data.records import open_records, row_ids
from paligemma.data.split import split_rows
from paligemma.data.tfrecord import RowReader
from paligemma.decoding.settings import DecodeSettings
from paligemma.errors import InputError
from paligemma.retry import RetryPolicy
from paligemma.storage import cache, gcs
from paligemma.storage.failures import StorageUnavailableError
from paligemma.storage.location import GcsLocation
from pipelines.commands.generate import answer_all, find_questions
from servers.gcs import GcsServer
from servers.https import HttpsServer
from servers.local_http import Exchange

BUCKET = "bucket-elsewhere"


class Site:
    """A web site of pictures, whose tags are of their bytes, and a log of what it gave whole."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.given: list[str] = []
        self.status = 200
        self.url = ""

    def serve(self, exchange: Exchange) -> None:
        data = self.files.get(exchange.target)
        if data is None or self.status != 200:
            exchange.answer(404 if data is None else self.status)
            return
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        if exchange.headers.get("If-None-Match") == tag:
            exchange.answer(304, [("ETag", tag)])
            return
        self.given.append(exchange.target)
        exchange.answer(200, [("ETag", tag)], data)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(retry, "RETRY", RetryPolicy(initial=0.001, maximum=0.01, timeout=1.0))
    monkeypatch.setattr(web_images, "TRYING", 0.1)
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Site()
    (tmp_path / "tls").mkdir()
    with HttpsServer(made.serve, tmp_path / "tls") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        made.url = server.url
        yield made


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, site: Site) -> Iterator[GcsServer]:
    with GcsServer() as server:
        server.create_bucket(BUCKET)
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def pictures(small_data: SmallData, site: Site) -> list[bytes]:
    """Eight pictures; each is a file, and a page of the site."""
    found = []
    for number in range(8):
        data = (small_data.folder / small_data.add_image(f"{number}.png", number)).read_bytes()
        site.files[f"/{number}.png"] = data
        found.append(data)
    return found


def row(image: str, suffix: str = "s", **more: object) -> dict:
    return {"image": image, "prefix": "ocr", "suffix": suffix, **more}


def remarks(records: str | Path) -> dict[int, str]:
    lines = Path(records, "rejected.jsonl").read_text().splitlines()
    return {found["line"]: found["code"] for found in map(json.loads, lines)}


def test_wherever_a_picture_is_the_record_is_the_same(
    pictures: list[bytes], small_data: SmallData, site: Site, bucket: GcsServer, tmp_path: Path
) -> None:
    gcs.write_bytes(GcsLocation(BUCKET, "deep/a picture.png"), pictures[0])
    coded = base64.b64encode(pictures[0]).decode()
    places = ["0.png", f"gs://{BUCKET}/deep/a picture.png", f"{site.url}/0.png", f"data:image/png;base64,{coded}", coded]
    run(small_data.write([row(place) for place in places]), "embedded:tiny", tmp_path / "records", workers=1)
    records = open_records(tmp_path / "records")
    assert len(set(row_ids(records, range(5)))) == 1
    rows = [RowReader(records).read(number) for number in range(5)]
    for other in rows[1:]:
        np.testing.assert_array_equal(other.image, rows[0].image)
    digest = hashlib.sha256(pictures[0]).hexdigest()
    listed = [json.loads(line)["image_file"] for line in (tmp_path / "records/rows.jsonl").read_text().splitlines()]
    assert listed == [*places[:3], *[f"data:sha256:{digest}"] * 2]
    assert coded not in (tmp_path / "records/report.html").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_row_cannot_have_is_a_reason(
    pictures: list[bytes], small_data: SmallData, site: Site, bucket: GcsServer, tmp_path: Path, workers: int
) -> None:
    digest = hashlib.sha256(pictures[1]).hexdigest()
    cases = {
        "0.png": "",
        f"{site.url}/1.png": "",
        f"{site.url}/9.png": "image_missing",
        "http://example.com/1.png": "image_address_unsafe",
        "https://10.1.2.3/1.png": "image_address_unsafe",
        f"gs://{BUCKET}/none.png": "image_missing",
        f"gs://{BUCKET}/../none.png": "image_path_unsafe",
        "gs://bucket-of-nobody/none.png": "image_missing",
        "gs://": "image_missing",
        "gs://B/x.png": "image_missing",
        "s3://bucket/1.png": "image_path_unsafe",
        "file:///etc/passwd": "image_path_unsafe",
        "data:image/png;base64,????": "image_unreadable",
        "data:image/png;base64,aGVsbG8=": "image_unreadable",
    }
    rows = [row(place) for place in cases]
    rows += [row(f"{site.url}/1.png", image_sha256=digest), row("0.png", image_sha256=digest)]
    rows += [row(f"{site.url}/2.png", image_sha256=digest.upper()), row("1.png", image_sha256=digest.upper())]
    run(
        small_data.write(rows),
        "embedded:tiny",
        tmp_path / "records",
        max_reject_fraction=0.9,
        workers=workers,
        rows_per_shard=7,
    )
    expected = {line: code for line, code in enumerate(cases.values(), 1) if code}
    assert remarks(tmp_path / "records") == expected | {16: "image_hash_wrong", 17: "image_hash_wrong"}


def test_servers_that_do_not_answer_fail_the_step_so_that_it_is_tried_again(
    pictures: list[bytes], small_data: SmallData, site: Site, tmp_path: Path
) -> None:
    site.status = 503
    small_data.write([row("0.png"), row(f"{site.url}/1.png")])
    with pytest.raises(StorageUnavailableError, match="1 image_unavailable") as caught:
        run(small_data.jsonl, "embedded:tiny", tmp_path / "records", workers=1)
    assert caught.value.exit_code == 4
    small_data.write([row("0.png"), row(f"{site.url}/1.png"), row("absent.png")])
    with pytest.raises(InputError):
        run(small_data.jsonl, "embedded:tiny", tmp_path / "records", workers=1)
    site.status = 200
    small_data.write([row("0.png"), row(f"{site.url}/1.png")])
    run(small_data.jsonl, "embedded:tiny", tmp_path / "records", workers=1)


def test_a_run_takes_over_what_has_not_changed_anywhere(
    pictures: list[bytes], small_data: SmallData, site: Site, bucket: GcsServer, tmp_path: Path
) -> None:
    weeks = Weeks(str(small_data.jsonl), str(tmp_path / "root"), str(tmp_path / "fresh"))
    place = GcsLocation(BUCKET, "a.png")
    gcs.write_bytes(place, pictures[0])
    coded = base64.b64encode(pictures[3]).decode()
    rows = [
        row(str(place)),
        *(row(f"{site.url}/{number}.png", str(number)) for number in range(1, 3)),
        row(coded),
        row("4.png"),
    ]
    rows += [row(f"{site.url}/9.png"), row("5.png"), row("6.png")]
    small_data.write(rows)
    first = weeks.run()
    assert weeks.run() == first  # found as it is
    assert sorted(site.given) == ["/1.png", "/2.png"]
    site.files["/1.png"] = pictures[6]
    second = weeks.check()
    assert second != first
    assert read_record(second).metrics == {"rows_taken_over": 7.0}
    gcs.write_bytes(place, pictures[7])
    third = weeks.check()
    assert third != second
    site.files["/9.png"] = pictures[7]  # what was missing is there
    fourth = weeks.check()
    assert remarks(fourth) == {}
    assert weeks.run() == fourth
    rows[3] = row(base64.b64encode(pictures[2]).decode())
    small_data.write(rows)
    fifth = weeks.check()
    assert weeks.run() == fifth
    del site.files["/2.png"]
    sixth = weeks.check()
    assert remarks(sixth) == {3: "image_missing"}
    small_data.write([*rows[1:], rows[0]])
    weeks.check()


def test_marks_of_many_objects_come_with_their_folders_lists(
    pictures: list[bytes], bucket: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"gs://{BUCKET}/deep/{number}.png" for number in range(40)]
    for number in range(36):
        gcs.write_bytes(GcsLocation(BUCKET, f"deep/{number}.png"), pictures[number % 8])
    gcs.write_bytes(GcsLocation(BUCKET, "top.tar"), b"x")
    names += [f"gs://{BUCKET}/top.tar/x.png", f"gs://{BUCKET}/deep/../x", "gs://", f"gs://{BUCKET}/deep/0.tar/y"]
    asked, stat = [], gcs.stat
    monkeypatch.setattr(gcs, "stat", lambda location: asked.append(location.name) or stat(location))
    monkeypatch.setattr("paligemma.data.image_source._LISTED", 1000)
    folder = cache.cache_folder().parent
    singly = image_marks(folder, names, {})
    assert len(asked) == 42
    monkeypatch.setattr("paligemma.data.image_source._LISTED", 32)
    asked.clear()
    assert image_marks(folder, names, {}) == singly
    assert len(asked) == 6  # those that are not there, and the archive
    assert singly[names[0]] == mark_of(pictures[0])
    assert singly[names[38]] == f"image_missing: there is no object {names[38]}"
    monkeypatch.setattr("paligemma.data.image_source._MOST_OTHERS", 0)
    assert image_marks(folder, names, {}) == singly


def test_a_picture_that_changes_while_the_step_works_is_not_taken_over(
    pictures: list[bytes], small_data: SmallData, bucket: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = GcsLocation(BUCKET, "a.png")
    gcs.write_bytes(place, pictures[0])
    small_data.write([row(str(place)), row("1.png")])
    weeks = Weeks(str(small_data.jsonl), str(tmp_path / "root"), str(tmp_path / "fresh"))
    asked, stat = [], gcs.stat

    def changing(location: GcsLocation):
        found = stat(location)
        if location == place and not asked:
            asked.append(location)
            gcs.write_bytes(place, pictures[5])
        return found

    monkeypatch.setattr(gcs, "stat", changing)
    first = weeks.run()
    assert asked == [place]
    gcs.write_bytes(place, pictures[0])  # as it was when the first run looked
    assert weeks.check() != first


def test_many_machines_give_the_bytes_of_one(pictures: list[bytes], small_data: SmallData, site: Site, tmp_path: Path) -> None:
    coded = base64.b64encode(pictures[3]).decode()
    rows = [row(f"{site.url}/{number}.png") for number in range(6)] + [row(coded), row("http://x.example/"), row("7.png")]
    data = str(small_data.write(rows))
    run(data, "embedded:tiny", tmp_path / "one", rows_per_shard=2, max_reject_fraction=0.5, workers=1)
    settings = {"max_text_tokens": 128, "over_long": "reject", "rows_per_shard": 2, "compression": "webp", "grey_range": ""}
    groups = distributed.list_groups(data, 2, 2)
    for number, group in enumerate(groups):
        distributed.prepare_group(group, data, "embedded:tiny", "", tmp_path / f"group-{number}", settings, 1)
    parts = [tmp_path / f"group-{number}" for number in range(len(groups))]
    distributed.join_groups(parts, data, "embedded:tiny", "", str(tmp_path / "many"), settings, "train", 0.5, "")
    ours, theirs = files_of(str(tmp_path / "one")), files_of(str(tmp_path / "many"))
    assert ours.pop("report.html")
    assert theirs.pop("report.html")
    assert ours == theirs


def test_another_split_is_compared_by_contents_wherever_it_is(
    pictures: list[bytes], small_data: SmallData, site: Site, tmp_path: Path
) -> None:
    other = small_data.folder / "other.jsonl"
    coded = base64.b64encode(pictures[2]).decode()
    other.write_text("\n".join(json.dumps(one) for one in (row(f"{site.url}/1.png", "x"), row(coded, "x"))))
    small_data.write([row("1.png"), row("2.png"), row("3.png")])
    run(small_data.jsonl, "embedded:tiny", tmp_path / "records", against=str(other), workers=1)
    found = map(json.loads, (tmp_path / "records/warnings.jsonl").read_text().splitlines())
    assert {(one["line"], one["code"]) for one in found} >= {(1, "image_leaked"), (2, "image_leaked")}


def test_a_preview_shows_pictures_from_anywhere(pictures: list[bytes], small_data: SmallData, site: Site) -> None:
    small_data.write([row(f"{site.url}/1.png?key=hunter2"), row("http://example.com/x.png?key=hunter2")])
    preview = make_preview(str(small_data.jsonl), "embedded:tiny")
    assert preview.counts[0] == "of all 2 rows: 0 are fit, 2 would be rejected"
    small_data.write([row(f"{site.url}/1.png"), row("http://example.com/x.png?key=hunter2")])
    preview = make_preview(str(small_data.jsonl), "embedded:tiny")
    assert preview.counts[0] == "of all 2 rows: 1 are fit, 1 would be rejected"
    assert preview.page.count("data:image/png;base64") == 1
    assert "example.com/x.png?sha256:" in preview.page
    assert "hunter2" not in preview.page


def test_a_split_keeps_a_picture_of_two_addresses_on_one_side(
    pictures: list[bytes], small_data: SmallData, site: Site, tmp_path: Path
) -> None:
    site.files["/again.png"] = pictures[1]
    coded = base64.b64encode(pictures[1]).decode()
    rows = [row(f"{site.url}/{number}.png", str(number)) for number in range(8)]
    rows += [row(f"{site.url}/again.png", "1"), row(coded, "1"), row("1.png", "1")]
    train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    for fraction in (0.2, 0.5, 0.8):
        split_rows(small_data.write(rows), small_data.folder, fraction, train, validation)
        sides = [
            sum(json.loads(line)["suffix"] == "1" for line in path.read_text().splitlines()) for path in (train, validation)
        ]
        assert sorted(sides) == [0, 4]


def test_questions_may_be_about_pictures_anywhere(
    pictures: list[bytes], small_data: SmallData, site: Site, bucket: GcsServer, tmp_path: Path
) -> None:
    gcs.write_bytes(GcsLocation(BUCKET, "a.png"), pictures[1])
    coded = base64.b64encode(pictures[1]).decode()
    places = ["1.png", f"gs://{BUCKET}/a.png", f"{site.url}/1.png?key=hunter2", f"data:image/png;base64,{coded}", coded]
    site.files["/1.png?key=hunter2"] = pictures[1]
    small_data.write([row(place) for place in [*places, "http://example.com/x", f"{site.url}/none", f"gs://{BUCKET}/none"]])
    for place in places[1:]:
        (question,) = find_questions([place], None, "ocr", str)
        assert (question.images[0].read(), question.prompt) == (pictures[1], "ocr")
    (question,) = find_questions(["https://10.0.0.1/a.png"], None, "ocr", str)
    with pytest.raises(ImageError, match="not on the internet"):
        question.images[0].read()
    with pytest.raises(InputError, match="is not in base64"):
        find_questions(["data:image/png,x"], None, "ocr", str)
    questions = find_questions([], small_data.jsonl, "", str)
    assert [question.images[0].read() for question in questions[:5]] == [pictures[1]] * 5
    assert answer_all(paligemma.load("embedded:tiny"), questions, DecodeSettings(2), 8, tmp_path / "answers") == 3
    answers = [json.loads(line) for line in (tmp_path / "answers").read_text().splitlines()]
    assert len({answer["answer"] for answer in answers[:5]}) == 1
    assert all("error" in answer for answer in answers[5:])
    assert "hunter2" not in (tmp_path / "answers").read_text()
    assert coded not in (tmp_path / "answers").read_text()
