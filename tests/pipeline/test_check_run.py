"""What a run is given is looked at before its first step, in Cloud Storage too; see test_mistakes.py for what users see."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import SmallData
from paligemma import retry
from paligemma.errors import InputError
from paligemma.storage import gcs
from paligemma.storage.location import GcsLocation
from pipelines.check_run import check_run
from pipelines.finetune import finetune_pipeline
from servers.gcs import GcsServer

BUCKET = GcsLocation("bucket-of-checks", "")


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with GcsServer() as running:
        running.create_bucket(BUCKET.bucket)
        yield running


@pytest.fixture
def data(small_data: SmallData) -> Path:
    return small_data.write([{"image": small_data.add_image(f"{n}.png", n), "prefix": "ocr", "suffix": "x"} for n in range(4)])


def given(data: object, **more: object) -> dict[str, object]:
    """The pipeline's parameters: its defaults, and these."""
    inputs = finetune_pipeline.component_spec.inputs
    rest = {name: one.default for name, one in inputs.items() if one.optional}
    return {**rest, "source": "embedded:tiny", "train_data": str(data), "validation_data": str(data), **more}


def test_a_batch_that_is_larger_than_the_data_is_said(data: Path) -> None:
    (said,) = check_run(given(data))
    assert said == "the recipe's batch_size is 8, the training data has 4 rows: a step sees rows several times"
    assert check_run(given(data, recipe="batch_size: 4")) == []


def test_decoding_settings_are_looked_at_before_anything_runs(data: Path) -> None:
    assert check_run(given(data, recipe="batch_size: 4", decoding="beams: 4")) == []
    with pytest.raises(InputError, match=r"(?s)draws no samples.*where:    the parameter decoding"):
        check_run(given(data, decoding="{beams: 4, best_of: 2}"))


def test_rows_that_cannot_be_used_are_said(data: Path) -> None:
    data.write_text(data.read_text().replace("2.png", "9.png"))
    for said in check_run(given(data, recipe="batch_size: 4")):
        assert said.endswith("1 of the first 4 rows cannot be used, e.g. line 3: image_missing, there is no '9.png'")


def test_another_source_takes_the_place_of_one_that_is_not_there(data: Path) -> None:
    check_run(given(data, source="/none,embedded:tiny"))
    with pytest.raises(InputError, match="/none/either"):
        check_run(given(data, source="/none,/none/either"))


def test_what_is_on_gs_is_looked_up(data: Path, server: GcsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.002, maximum=0.02, timeout=1.0))
    gcs.upload(data, BUCKET / "data/rows.jsonl")
    whole = given(BUCKET / "data/rows.jsonl", artifact_root=f"{BUCKET}artifacts", registry=f"{BUCKET}registry")
    assert len(check_run(whole)) == 1
    for flag, place, said in [
        ("train_data", "data/row.jsonl", "There is no gs://bucket-of-checks/data/row.jsonl"),
        ("validation_data", "data", "data is a folder"),
        ("source", "none", "There is no gs://bucket-of-checks/none"),
        ("tokenizer", "none", "There is no gs://bucket-of-checks/none"),
        ("images", "photos", "There is no gs://bucket-of-checks/photos"),
        ("mask_decoder", "none", "There is no gs://bucket-of-checks/none"),
    ]:
        with pytest.raises(InputError, match=said):
            check_run({**whole, flag: f"{BUCKET}{place}"})
    for flag in ("artifact_root", "registry", "source"):
        with pytest.raises(InputError, match="no bucket bucket-of-nobody"):
            check_run({**whole, flag: "gs://bucket-of-nobody/x"})
