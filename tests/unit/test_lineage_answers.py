"""What a reviewer is told: of a run, of a chain's sources, and of a data file that was moved."""

from __future__ import annotations

from pathlib import Path

import pytest
from lineage_runs import make_run
from typer.testing import CliRunner

from paligemma.errors import InputError
from paligemma.lineage import queries
from paligemma.lineage.impact import impact
from paligemma.lineage.index import Index
from paligemma.storage import cache
from pipelines.cli import app

ROWS = [("1.png", "one"), ("bad.png", "wrong")]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("rows\n")
    return file


def ask(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code or isinstance(done.exception, InputError), done.output
    return done.output


@pytest.mark.parametrize(("release", "task"), [(True, "publish"), (False, "finetune")])
def test_a_trace_of_a_run_is_that_of_what_it_was_for(tmp_path: Path, data: Path, release: bool, task: str) -> None:
    made = make_run(tmp_path / "root", "one", ROWS, data, release=release)
    with Index(tmp_path / "root") as index:
        found = queries.trace(index, "one")
        assert found == queries.trace(index, made[task])
        with pytest.raises(InputError, match="'one' is a run, not an artifact") as error:
            impact(index, "one")
    assert "one/train" in str(error.value)


def test_a_trace_begins_with_its_sources(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIGEMMA_IMAGE", "registry/image@sha256:0123")
    monkeypatch.setenv("PALIGEMMA_GIT_SHA", "f00d")
    made = make_run(tmp_path / "root", "one", ROWS, data, release=True)
    lines = ask("lineage", "trace", made["publish"], "--root", str(tmp_path / "root")).splitlines()
    assert lines[0] == "Sources"
    start = lines[: lines.index("Steps")]
    with Index(tmp_path / "root") as index:
        checkpoint = queries.show(index, "one/fetch")["record"]["artifact"]["tree_sha256"]
        (source,) = queries.trace(index, "one")["sources"]
    assert source["uri"] == str(data)
    for said in (f"data: {data} sha256 {source['sha256']}", checkpoint, "code: f00d", "image: registry/image@sha256:0123"):
        assert any(said in line for line in start), said


def test_a_line_of_a_file_that_was_moved_is_found_by_the_contents_of_the_file(tmp_path: Path, data: Path) -> None:
    made = make_run(tmp_path / "root", "one", ROWS, data)
    moved = tmp_path / "elsewhere/renamed.jsonl"
    moved.parent.mkdir()
    data.rename(moved)
    with Index(tmp_path / "root") as index:
        found = impact(index, f"{moved}:2")
        assert [one["output"] for one in found["models"]] == [made["finetune"]]
        assert found["rows"][0]["image"] == "bad.png"
        moved.write_text("other rows\n")
        with pytest.raises(InputError, match="not an artifact, row or image"):
            impact(index, f"{moved}:2")
