"""On gs://, checkpoints are opened without weights and records without shards. These are fetched once, when they are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from components.fetch_checkpoint.__main__ import run as fetch_checkpoint
from components.preflight.__main__ import run as preflight
from components.prepare_data.__main__ import run as prepare_data
from conftest import SmallData
from paligemma.artifacts import record, store
from paligemma.checkpoints.describe import describe_opened
from paligemma.checkpoints.huggingface.write import write_huggingface
from paligemma.checkpoints.open_checkpoint import Checkpoint, open_checkpoint
from paligemma.checkpoints.safetensors_files import INDEX_FILE
from paligemma.checkpoints.stored import PARAMETERS_FILE
from paligemma.data.records import open_records
from paligemma.data.tfrecord import RowReader
from paligemma.errors import DamagedError
from paligemma.storage import gcs
from paligemma.storage.location import GcsLocation
from servers.gcs import GcsServer

PLACE = "gs://bucket/run/checkpoint"


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with GcsServer() as running:
        running.create_bucket("bucket")
        yield running


@pytest.fixture
def fetched(server: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that have been fetched from the bucket since a machine with nothing in its cache started."""
    names: list[str] = []
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_verified", {})
    download = gcs.download_object

    def noted(found: gcs.Object, target: Path, *rest: object) -> None:
        names.append(found.location.name.rpartition("/")[2])
        download(found, target, *rest)

    monkeypatch.setattr(gcs, "download_object", noted)
    return names


def sources(tmp_path: Path) -> dict[str, str]:
    """Where a checkpoint comes from: big_vision's file, and Hugging Face's shards."""
    shards = tmp_path / "shards"
    if not shards.exists():
        shards.mkdir()
        tiny = open_checkpoint("embedded:tiny")
        write_huggingface(shards, tiny.config, tiny.arrays, lambda name, values: values, tiny.tokenizer, shard_bytes=500_000)
    return {"npz": "embedded:tiny", "safetensors": str(shards)}


def assert_same(stored: Checkpoint, local: Checkpoint) -> None:
    assert stored.config == local.config
    assert stored.weights_sha256 == local.weights_sha256
    assert {name: (tuple(a.shape), a.dtype) for name, a in stored.arrays.items()} == {
        name: (tuple(a.shape), a.dtype) for name, a in local.arrays.items()
    }


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("image_size", [0, 64])
def test_weights_are_fetched_once_and_only_when_they_are_read(
    kind: str, image_size: int, fetched: list[str], tmp_path: Path
) -> None:
    source = sources(tmp_path)[kind]
    for output in (f"{PLACE}-{kind}-{image_size}", tmp_path / "local"):
        fetch_checkpoint(source=source, output=output, image_size=image_size)
    local, stored = open_checkpoint(tmp_path / "local"), open_checkpoint(f"{PLACE}-{kind}-{image_size}")
    assert_same(stored, local)
    assert describe_opened(stored) == describe_opened(local)
    assert Path(str(stored.tokenizer)).read_bytes() == Path(str(local.tokenizer)).read_bytes()
    assert set(fetched) - {INDEX_FILE} == {"config.json", PARAMETERS_FILE, "tokenizer.model"}
    for name, array in local.arrays.items():
        np.testing.assert_array_equal(stored.arrays[name][...], array[...])
        np.testing.assert_array_equal(stored.arrays[name][0], array[0])
    stored.verify()
    weights = sorted(name for name in fetched if name.endswith((".npz", ".safetensors")))
    folder = local.weights.parent
    assert weights == sorted(path.name for path in [*folder.glob("*.npz"), *folder.glob("*.safetensors")])


def test_preparation_and_preflight_fetch_no_weights(fetched: list[str], small_data: SmallData, tmp_path: Path) -> None:
    fetch_checkpoint(source="embedded:tiny", output=PLACE)
    rows = [{"image": small_data.add_image(f"{n}.png", n), "prefix": "ocr", "suffix": str(n)} for n in range(3)]
    prepare_data(data=str(small_data.write(rows)), checkpoint=PLACE, output=tmp_path / "records")
    preflight(checkpoint=PLACE, output=tmp_path / "preflight", target="cpu-8", recipe="demo")
    assert "checkpoint.npz" not in fetched
    made_from = {entry.role: entry for entry in record.read_record(tmp_path / "records").inputs}["checkpoint"]
    assert (made_from.uri, made_from.sha256) == (PLACE, store.record_of(PLACE).artifact.tree_sha256)


def test_a_checkpoint_that_is_replaced_while_it_is_in_use_is_not_mixed_with_the_new_one(
    fetched: list[str], tmp_path: Path
) -> None:
    place = f"{PLACE}-replaced"
    fetch_checkpoint(source="embedded:tiny", output=place)
    stored = open_checkpoint(place)
    fetch_checkpoint(source="embedded:tiny", output=place, image_size=64)
    with pytest.raises(DamagedError, match="artifact was replaced"):
        stored.arrays["llm/final_norm/scale"][...]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda said: said["arrays"]["llm/final_norm/scale"].update(dtype="float32"), "not as parameters.json describes"),
        (lambda said: said["arrays"]["llm/final_norm/scale"].update(dtype="float9"), "unknown dtype"),
        (lambda said: said.update(weights="other.npz"), "no file other.npz"),
        (lambda said: said["arrays"].pop("llm/final_norm/scale"), "llm/final_norm/scale"),
        (lambda said: said["arrays"]["llm/final_norm/scale"].update(shape=[-1]), "greater than or equal to 0"),
    ],
)
def test_a_description_that_is_not_of_the_weights_is_refused(
    change, says: str, fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.fetch_checkpoint import main

    write = main.write_description

    def wrong(folder: Path, *rest: object) -> None:
        write(folder, *rest)
        said = json.loads((folder / PARAMETERS_FILE).read_text())
        change(said)
        (folder / PARAMETERS_FILE).write_text(json.dumps(said))

    monkeypatch.setattr(main, "write_description", wrong)
    place = f"{PLACE}-wrong-{abs(hash(says))}"
    fetch_checkpoint(source="embedded:tiny", output=place)
    with pytest.raises(DamagedError, match=says):
        open_checkpoint(place).arrays["llm/final_norm/scale"][...]


def test_an_artifact_of_an_earlier_version_has_no_description(
    fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.fetch_checkpoint import main

    monkeypatch.setattr(main, "write_description", lambda *_: None)
    fetch_checkpoint(source="embedded:tiny", output=f"{PLACE}-earlier")
    stored = open_checkpoint(f"{PLACE}-earlier")
    assert "checkpoint.npz" in fetched
    assert_same(stored, open_checkpoint("embedded:tiny"))


def test_a_damaged_object_is_not_read(fetched: list[str], tmp_path: Path) -> None:
    place = f"{PLACE}-damaged"
    fetch_checkpoint(source="embedded:tiny", output=place)
    stored = open_checkpoint(place)
    [weights] = [
        one for one in gcs.list_objects(GcsLocation("bucket", "run/checkpoint-damaged")) if one.location.name.endswith("npz")
    ]
    data = bytearray(gcs.read_bytes(weights.location, most=10_000_000)[0])
    data[len(data) // 2] ^= 1
    gcs.write_bytes(weights.location, bytes(data))
    with pytest.raises(DamagedError):
        stored.arrays["llm/final_norm/scale"][...]


def test_shards_are_fetched_when_the_first_row_is_read(fetched: list[str], small_data: SmallData, tmp_path: Path) -> None:
    place = "gs://bucket/run/records"
    rows = [{"image": small_data.add_image(f"{n}.png", n), "prefix": "ocr", "suffix": str(n)} for n in range(3)]
    prepare_data(data=str(small_data.write(rows)), checkpoint="embedded:tiny", output=place)
    records = open_records(place)
    assert records.dataset.rows == 3
    assert fetched == ["dataset.json"]
    reader = RowReader(records)
    assert [reader.read(row).suffix for row in range(3)] == ["0", "1", "2"]
    assert "train-00000-of-00001.tfrecord" in fetched
    replaced = open_records(place)
    prepare_data(data=str(small_data.write(rows[1:])), checkpoint="embedded:tiny", output=place)
    with pytest.raises(DamagedError, match="artifact was replaced"):
        _ = replaced.shard_paths
