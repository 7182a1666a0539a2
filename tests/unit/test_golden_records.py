"""Records that an earlier version wrote are read and verified for ever; see golden_records/README.md."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paligemma.artifacts.record import parse_record
from paligemma.artifacts.signing import read_public_key
from paligemma.checkpoints.open_checkpoint import resolve_embedded
from paligemma.lineage.index import Index
from paligemma.lineage.queries import run_summary, trace
from paligemma.lineage.verify import verify

GOLDEN = Path(__file__).parent / "golden_records"
KEY = GOLDEN / "key.pub"


@pytest.fixture(params=["unsigned", "signed"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    root = tmp_path / request.param
    shutil.copytree(GOLDEN / request.param, root)
    for name in ("checkpoint.npz", "tokenizer.model"):
        shutil.copy(resolve_embedded("embedded:tiny") / name, root / "first/fetch/checkpoint" / name)
    return root


def test_roots_of_an_earlier_version_verify(root: Path) -> None:
    key = read_public_key(KEY) if root.name == "signed" else None
    with Index(root, thorough=True) as index:
        found = verify(index, key)
    assert found.problems == []
    assert (found.records, found.artifacts) == (10, 4)
    assert found.pruned == [f"/tmp/golden/{root.name}/second/finetune/tuned-model"]
    assert found.replaced == [f"/tmp/golden/{root.name}/first/train/records"]
    assert len(found.unfinished) == 1


def test_they_answer_questions(root: Path) -> None:
    with Index(root) as index:
        assert run_summary(index, "second")["cached"] == ["fetch", "train"]
        traced = trace(index, "first/publish")
    assert [step["component"] for step in traced["steps"]] == ["publish", "finetune", "fetch_checkpoint", "prepare_data"]
    assert traced["steps"][1]["parameters"] == {"learning_rate": 1e-05, "clip": None, "seed": 2**63 - 1}
    assert traced["missing"] == []


def test_a_record_from_cloud_storage_is_read() -> None:
    path = GOLDEN / "in-cloud-storage.json"
    artifact = parse_record(path.read_bytes(), path).artifact
    assert artifact.uri == "gs://bucket/root/first/fetch/checkpoint"
    assert len(artifact.version) == 16
