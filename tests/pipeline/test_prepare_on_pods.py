"""Data preparation over ParallelFor, with KFP's local runner."""

from __future__ import annotations

from pathlib import Path

import pytest
from kfp import local

from components.prepare_data.__main__ import run
from components.prepare_data.distributed import join_groups, list_groups, prepare_group
from conftest import SmallData
from paligemma.artifacts.record import read_record
from paligemma.errors import DamagedError, InputError
from pipelines.prepare import prepare_pipeline

SETTINGS = {"max_text_tokens": 128, "over_long": "reject", "rows_per_shard": 4, "compression": "webp"}


@pytest.fixture
def data(small_data: SmallData) -> Path:
    rows = [{"image": small_data.add_image(f"{n % 5}.png", n % 5), "prefix": "ocr", "suffix": str(n % 7)} for n in range(18)]
    return small_data.write([*rows, b"{"])


def alone(data: Path, output: Path) -> str:
    run(data=data, checkpoint="embedded:tiny", output=output, rows_per_shard=4)
    return read_record(output).artifact.tree_sha256


def test_pods_give_the_same_bytes_as_one_machine(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), workspace_root=str(root / "workspace"))
    task = prepare_pipeline(data=str(data), source="embedded:tiny", pods=2, rows_per_shard=4)
    record = read_record(Path(task.output.uri), "records")
    assert record.artifact.tree_sha256 == alone(data, tmp_path / "alone")


def test_groups_hold_every_shard_once(data: Path) -> None:
    assert list_groups(str(data), 4, 2) == ["0:2", "2:5"]
    assert list_groups(str(data), 4, 100) == ["0:1", "1:2", "2:3", "3:4", "4:5"]


def test_groups_of_something_else_are_not_joined(data: Path, tmp_path: Path) -> None:
    groups = [tmp_path / "a", tmp_path / "b"]

    def join(parts: list[Path]) -> None:
        join_groups(parts, str(data), "embedded:tiny", "", str(tmp_path / "out"), SETTINGS, "train", 0.1, "")

    prepare_group("0:2", str(data), "embedded:tiny", "", groups[0], SETTINGS, 1)
    with pytest.raises(DamagedError, match="Lines 9 to 12 are not prepared"):
        join(groups[:1])
    prepare_group("2:5", str(data), "embedded:tiny", "", groups[1], {**SETTINGS, "max_text_tokens": 100}, 1)
    with pytest.raises(InputError, match="prepared from other data, or with other settings"):
        join(groups)
    prepare_group("2:5", str(data), "embedded:tiny", "", tmp_path / "c", SETTINGS, 1)
    join([groups[0], tmp_path / "c"])
    assert read_record(tmp_path / "out").artifact.tree_sha256 == alone(data, tmp_path / "alone")
