"""The rows of Google's notebook for fine-tuning PaliGemma, letter by letter, through the whole DAG.

GoogleCloudPlatform/vertex-ai-samples, notebooks/community/model_garden/model_garden_jax_paligemma_finetuning.ipynb, cell "Data
preparation": the file is JSONL, and an image is "a GCS path or a URL". Its second form has names only, beside a folder of
images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.prepare_data.__main__ import run as prepare
from conftest import XLA_FLAGS, SmallData
from paligemma.artifacts.record import read_record
from paligemma.artifacts.store import localize
from paligemma.data.records import open_records
from paligemma.lineage.impact import impact
from paligemma.lineage.index import Index
from paligemma.storage import cache, gcs
from paligemma.storage.location import GcsLocation
from paligemma.web_client import HOSTS_VARIABLE
from pipelines.run_local import run_pipeline
from servers.gcs import GcsServer
from servers.https import HttpsServer, Tunnel
from servers.local_http import Exchange

ROWS = b"""\
{"image": "gs://bucket-name/image.jpg", "prefix": "What animal is this?", "suffix": "cat"}
{"image": "https://google.com/image.jpg", "prefix": "What drink is this?", "suffix": "soda"}
"""
DATA = GcsLocation("longcap100", "data_train90.jsonl")


@pytest.fixture
def pictures(small_data: SmallData) -> dict[str, bytes]:
    names = [small_data.add_image(name, seed) for seed, name in enumerate(("a.png", "b.png"))]
    return {name: (small_data.folder / name).read_bytes() for name in names}


@pytest.fixture
def asked(pictures: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Both buckets, and the site; the hosts and pages that were asked for on the web."""
    monkeypatch.setenv("XLA_FLAGS", XLA_FLAGS)
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    pages: list[str] = []

    def serve(exchange: Exchange) -> None:
        pages.append(exchange.headers["Host"] + exchange.target)
        exchange.answer(200, [], pictures["b.png"])

    (tmp_path / "tls").mkdir()
    with GcsServer() as server, HttpsServer(serve, tmp_path / "tls", "google.com") as site, Tunnel(site.port) as tunnel:
        for name, value in (server.environment() | site.environment() | tunnel.environment()).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv(HOSTS_VARIABLE)
        for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for bucket in ("bucket-name", DATA.bucket):
            server.create_bucket(bucket)
        gcs.write_bytes(DATA, ROWS)
        gcs.write_bytes(GcsLocation("bucket-name", "image.jpg"), pictures["a.png"])
        yield pages


def test_they_go_through_the_whole_dag(asked: list[str], pictures: dict[str, bytes], tmp_path: Path) -> None:
    parameters: dict[str, object] = {
        "source": "embedded:tiny",
        "train_data": str(DATA),
        "validation_data": str(DATA),
        "recipe": "steps: 4\nbatch_size: 2\nremat: none",
        "decoding": "max_new_tokens: 4",
    }
    outputs = run_pipeline(parameters, tmp_path / "root")
    records = open_records(outputs.artifacts["prepare-data"])
    assert (records.dataset.rows, records.dataset.rejected) == (2, {})
    listed = [
        json.loads(line) for line in (localize(outputs.artifacts["prepare-data"]) / "rows.jsonl").read_text().splitlines()
    ]
    assert [row["image_file"] for row in listed] == ["gs://bucket-name/image.jpg", "https://google.com/image.jpg"]
    assert [row["image_sha256"] for row in listed] == [hashlib.sha256(pictures[name]).hexdigest() for name in sorted(pictures)]
    assert set(asked) == {"google.com/image.jpg"}
    metrics = json.loads((localize(outputs.tuned_evaluation) / "metrics.json").read_text())
    assert metrics["examples"] == 2
    assert read_record(localize(outputs.tuned)).artifact.type == "tuned-model"
    with Index(tmp_path / "root") as index:
        for name in ("gs://bucket-name/image.jpg", "https://google.com/image.jpg"):
            found = impact(index, name)
            assert found["kind"] == "image"
            assert [model["output"] for model in found["models"]] == [outputs.tuned]


def test_names_beside_a_folder_of_images_are_its_second_form(
    asked: list[str], pictures: dict[str, bytes], tmp_path: Path
) -> None:
    gcs.write_bytes(DATA, ROWS.replace(b"gs://bucket-name/", b"").replace(b"https://google.com/", b"more/"))
    for name in ("image.jpg", "more/image.jpg"):
        gcs.write_bytes(GcsLocation("longcap100", name), pictures["a.png"])
    prepare(str(DATA), "embedded:tiny", tmp_path / "records", images="gs://longcap100", workers=1)
    assert open_records(tmp_path / "records").dataset.rows == 2
    assert asked == []
