"""A second run prepares again only what has changed: rows, settings, the bytes of a picture, also one that was not there."""

from __future__ import annotations

import contextvars
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.fetch_checkpoint.main import _named_result, fetch_checkpoint
from components.prepare_data.main import prepare_data
from conftest import SmallData
from paligemma.artifacts.record import file_sha256, read_record
from paligemma.artifacts.recording import set_place
from paligemma.checkpoints.open_checkpoint import resolve_embedded
from paligemma.data.image_source import _Bucket
from paligemma.storage import gcs
from paligemma.storage.location import GcsLocation
from servers.gcs import GcsServer

SETTINGS = {
    "max_text_tokens": 32,
    "over_long": "reject",
    "max_reject_fraction": 0.5,
    "rows_per_shard": 2,
    "compression": "webp",
}
OTHERS = {"split": "train", "against": "", "workers": 1, "grey_range": "", "checkpoint": "embedded:tiny"}


class Runs:
    """Runs of a pipeline over one data set, numbered."""

    def __init__(self, root: str, data: str, images: str = "") -> None:
        self.root, self.data, self.images, self.count = root, data, images, 0

    def prepare(self, **changes: object) -> bool:
        """Whether a further run took over the records of the run before."""
        self.count += 1
        made = contextvars.copy_context().run(self._prepare, changes)
        before, self.made = getattr(self, "made", ""), made
        return made == before

    def _prepare(self, changes: dict) -> str:
        set_place(f"run-{self.count}", "prepare", self.root, reuse=True)
        given = {"data": self.data, "images": self.images, **SETTINGS, **OTHERS} | changes
        return prepare_data(output=f"{self.root}/run-{self.count}/prepare/records", **given)


@pytest.fixture
def rows(small_data: SmallData) -> list[dict]:
    return [{"image": small_data.add_image(f"{n}.png", n), "prefix": "ocr", "suffix": str(n)} for n in range(5)]


def test_of_unchanged_rows_and_pictures_the_records_are_those_of_the_run_before(
    rows: list[dict], small_data: SmallData, tmp_path: Path
) -> None:
    late = {"image": "late.png", "prefix": "ocr", "suffix": "late"}
    runs = Runs(str(tmp_path / "root"), str(small_data.write([*rows, late])))
    assert not runs.prepare()
    assert runs.prepare()
    assert runs.prepare(workers=2)
    small_data.add_image("3.png", 99)  # as large as it was, as its pixels are random
    assert not runs.prepare()
    assert runs.prepare()
    small_data.add_image("late.png", 7)
    assert not runs.prepare()
    assert read_record(runs.made).artifact.rows == 6
    small_data.write([*rows[1:], late])
    assert not runs.prepare()
    for changes in ({"split": "validation"}, {"max_text_tokens": 31}, {"rows_per_shard": 3}, {"grey_range": "0,100"}):
        assert not runs.prepare(**changes)
    (small_data.folder / "unrelated.png").write_bytes(b"x")
    assert not runs.prepare()
    (small_data.folder / "unrelated.png").write_bytes(b"y")
    assert runs.prepare()


def test_beside_rows_whose_pictures_nobody_looked_at_it_is_always_made(
    rows: list[dict], small_data: SmallData, tmp_path: Path
) -> None:
    other = tmp_path / "data/other.jsonl"
    other.write_text(json.dumps(rows[0]) + "\n")
    runs = Runs(str(tmp_path / "root"), str(small_data.write(rows)))
    assert not runs.prepare(against=str(other))
    assert not runs.prepare(against=str(other))
    assert not runs.prepare()
    assert runs.prepare()


@pytest.fixture
def _bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with GcsServer() as server:
        server.create_bucket("bucket")
        monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path / "cache"))
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.usefixtures("_bucket")
def test_in_cloud_storage_pictures_are_compared_by_their_checksums(
    rows: list[dict], small_data: SmallData, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*rows, {**rows[0], "image": "./0.png", "suffix": "spelled in another way"}]
    small_data.write(rows)
    for path in small_data.folder.iterdir():
        gcs.upload(path, GcsLocation("bucket", f"data/{path.name}"))
    runs = Runs("gs://bucket/root", "gs://bucket/data/rows.jsonl")
    assert not runs.prepare()
    monkeypatch.setattr(_Bucket, "read", lambda self, name: pytest.fail(f"{name} is read"))
    assert runs.prepare()


def test_a_checkpoint_whose_address_says_what_it_is_is_found_before_anything_is_fetched(tmp_path: Path) -> None:
    settings = {"sha256": "", "precision": "float16", "image_size": 0}
    kaggle, commit = "kaggle://google/paligemma/jax/paligemma-3b-pt-224/1", f"hf://google/paligemma@{'a' * 40}"
    for source in (kaggle, commit, f"{kaggle}, {commit}"):
        assert _named_result(source, "", settings).sha256
    web = "https://host/x.npz"
    for source in ("hf://google/paligemma", "hf://google/paligemma@main", "embedded:tiny", "gs://b/x", f"{kaggle},runs/x", web):
        assert not _named_result(source, "", settings).sha256
        # A hash is of the weights; only what is a single file has nothing beside it that may change.
        assert bool(_named_result(source, "", settings | {"sha256": "a" * 64}).sha256) == (source == web)
    assert not _named_result(kaggle, "tokenizer.model", settings).sha256

    local = tmp_path / "local"
    local.mkdir()
    for path in resolve_embedded("embedded:tiny").iterdir():
        (local / path.name).write_bytes(path.read_bytes())
    weights = file_sha256(next(local.glob("*.npz")))

    def fetch(run: str, **changes: object) -> str:
        def inside() -> str:
            set_place(run, "fetch", str(tmp_path / "root"), reuse=True)
            given = {
                "source": str(local),
                "sha256": weights,
                "tokenizer": "",
                "precision": "float16",
                "image_size": 0,
            } | changes
            return fetch_checkpoint(output=str(tmp_path / "root" / run / "x"), **given)

        return contextvars.copy_context().run(inside)

    first = fetch("one")
    assert fetch("two", sha256="") != first  # another setting: a hash that nobody asked for is recorded, and was not checked
    assert fetch("three") == first
    config = json.loads((local / "config.json").read_text())
    config["img"]["image_size"] = 64  # the weights are the same bytes
    (local / "config.json").write_text(json.dumps(config))
    assert fetch("four") != first
