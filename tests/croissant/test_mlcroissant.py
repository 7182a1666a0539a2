"""Croissant against MLCommons' own library, which `make croissant` installs: what we write is valid, what we read is the same.

Data sets that others published are in github.com/mlcommons/croissant, `datasets`. They are read if $CROISSANT_DATASETS names
that folder of a checkout. Else those few files of it that the tests need are fetched.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import mlcroissant
import pytest
from PIL import Image

from components.prepare_data.__main__ import run
from conftest import SmallData
from paligemma.artifacts.record import file_sha256
from paligemma.data.convert.croissant_files import Distribution, FoundFile
from paligemma.data.convert.croissant_records import Description, read_records
from paligemma.data.convert.outcomes import EntryError, Tally

COMMIT = "401f6fff81db26a49c0d1704f02bffc4e4fa8fe2"
SITE = f"https://raw.githubusercontent.com/mlcommons/croissant/{COMMIT}/datasets"
FILES = {
    "1.0/coco2014-mini": (
        "metadata.json",
        "data/train2014.zip",
        "data/captions_train2014.json",
        "data/instances_train2014.json",
    ),
    "1.0/pass-mini": ("metadata.json", "data/pass_metadata.csv", "data/PASS.0.tar", "data/PASS.1.tar"),
    "1.0/titanic": ("metadata.json", "data/titanic.csv", "data/genders.csv", "data/embarkation_ports.csv"),
    "1.0/simple-parquet": ("metadata.json", "data/dataframe.parquet"),
    "1.0/recipes": ("read_from_tar.json", "data/read_from_tar.tar.gz"),
}
SETS = [
    ("1.0/coco2014-mini/metadata.json", "captions", 4),
    ("1.0/coco2014-mini/metadata.json", "images", 2),
    ("1.0/coco2014-mini/metadata.json", "split_enums", 3),
    ("1.0/pass-mini/metadata.json", "images", 8),
    ("1.0/titanic/metadata.json", "passengers", 1309),
    ("1.0/simple-parquet/metadata.json", "persons", 10),
    ("1.0/recipes/read_from_tar.json", "images", 4),
]


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the published data sets."""
    if named := os.environ.get("CROISSANT_DATASETS"):
        return Path(named)
    folder = tmp_path_factory.mktemp("published")
    for name in (f"{one}/{file}" for one, files in FILES.items() for file in files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(f"{SITE}/{name}", timeout=60) as answer:
            (folder / name).write_bytes(answer.read())
    return folder


def plain(value: Any) -> Any:
    """A value that both readers give alike: pictures as their pixels, what is missing as None, all else as text."""
    if isinstance(value, FoundFile):
        value = value.read()
    if isinstance(value, bytes):
        try:
            value = Image.open(io.BytesIO(value))
        except OSError:
            value = value.decode()
    if isinstance(value, Image.Image):
        return hashlib.sha256(value.convert("RGB").tobytes()).hexdigest()
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if value is None or value in ("", "None") or value != value else str(value)


def theirs(description: Path, record_set: str, fields: list[str]) -> list[dict]:
    """The library's records, as far as they have these fields."""
    found = []
    for record in mlcroissant.Dataset(str(description)).records(record_set):
        inner = [below for value in record.values() if isinstance(value, dict) for below in value.items()]  # of sub-fields
        named = {key.removeprefix(f"{record_set}/"): value for key, value in [*record.items(), *inner]}
        found.append({name: plain(named[name]) for name in fields})
    return found


def ours(description: Path, record_set: str, scratch: Path) -> list[dict]:
    """Our records, with all fields that are read."""
    described = Description(description)
    chosen = described.sets[record_set]
    fields = [name for name, one in chosen.fields.items() if chosen.data or not isinstance(one.extraction, str)]
    distribution = Distribution(described.nodes, description.parent, {}, scratch)
    found = []
    for _, values in read_records(chosen, fields, distribution, scratch, description, Tally("records")):
        assert not isinstance(values, EntryError), values.message
        found.append({name: plain(value) for name, value in values.items()})
    return found


@pytest.mark.parametrize(("name", "record_set", "count"), SETS)
def test_published_records_are_read_as_the_library_reads_them(
    published: Path, tmp_path: Path, name: str, record_set: str, count: int
) -> None:
    mine = ours(published / name, record_set, tmp_path)
    its = theirs(published / name, record_set, list(mine[0]))
    assert len(mine) == count
    assert sorted(map(json.dumps, mine)) == sorted(map(json.dumps, its))


@pytest.fixture
def records(small_data: SmallData, tmp_path: Path) -> Path:
    """Records of two sources, with a row that is rejected and one that is warned of."""
    rows = [{"image": small_data.add_image(f"{n}.png", n), "prefix": "p", "suffix": f"é{n}"} for n in range(7)]
    small_data.write([*rows, b"{", rows[0]])
    (small_data.folder / "more.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows[:3]))
    data = [f"{small_data.jsonl},weight=1", f"{small_data.folder / 'more.jsonl'},weight=2"]
    run(data=data, checkpoint="embedded:tiny", output=tmp_path / "out", max_reject_fraction=0.5, rows_per_shard=4)
    return tmp_path / "out"


def test_the_description_of_records_is_valid_and_lists_the_same_rows(records: Path) -> None:
    described = mlcroissant.Dataset(str(records / "croissant.json"))
    assert not described.metadata.issues.errors
    listed = [json.loads(line) for line in (records / "rows.jsonl").read_text().splitlines()]
    found = theirs(records / "croissant.json", "rows", list(listed[0]))
    assert found == [{name: str(value) for name, value in row.items()} for row in listed]
    assert len(found) == 11
    assert {row["source"] for row in found} == {"rows.jsonl", "more.jsonl"}


def test_the_description_has_every_file_with_its_hash(records: Path) -> None:
    described = mlcroissant.Dataset(str(records / "croissant.json")).metadata.distribution
    files = {path.name for path in records.iterdir()} - {"croissant.json", "lineage.json"}
    assert {one.content_url for one in described} == files
    assert all(one.sha256 == file_sha256(records / one.content_url) for one in described)
    assert all(one.content_size == f"{(records / one.content_url).stat().st_size} B" for one in described)


def test_our_own_reader_reads_what_we_write(records: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    mine = ours(records / "croissant.json", "rows", tmp_path / "scratch")
    assert mine == theirs(records / "croissant.json", "rows", list(mine[0]))
