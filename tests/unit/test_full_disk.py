"""A disk without room: every step says how much is free, how much is needed and where, and nobody sees a traceback.

The disk is full only in name here; `make full-disk` has one that is.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from lineage_runs import make_run

from components.fetch_checkpoint.__main__ import run as fetch_checkpoint
from components.finetune.__main__ import run as finetune
from paligemma.artifacts.recording import recorded
from paligemma.checkpoints.export import export
from paligemma.checkpoints.sources import kaggle
from paligemma.command_line import run_app
from paligemma.errors import InputError
from paligemma.evaluation.kept_predictions import KeptPredictions
from paligemma.evaluation.predict import Prediction
from paligemma.lineage.index import Index
from paligemma.lineage.queries import list_runs
from paligemma.storage import cache
from paligemma.training.state import StateStore

FREE = 3_000_000


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every disk has three megabytes left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=FREE))


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    fetch_checkpoint(output=str(tmp_path / "checkpoint"))
    return str(tmp_path / "checkpoint")


def refused(step: Callable[[], object], place: Path) -> float:
    """The megabytes that the error of a step asks for before any work is done."""
    with pytest.raises(InputError) as caught:
        step()
    said = str(caught.value)
    assert f"There is not enough room in {place}" in said
    assert "found 3.0 MB" in said
    assert "to do:    free some" in said
    (needed,) = re.findall(r"expected: (\d+\.\d) MB free", said)
    return float(needed)


@pytest.mark.usefixtures("small_disk")
def test_what_a_checkpoint_and_an_export_need_is_known_before_they_are_written(tmp_path: Path, monkeypatch) -> None:
    fetched = refused(lambda: fetch_checkpoint(output=str(tmp_path / "fetched")), tmp_path)
    exported = refused(lambda: export("embedded:tiny", tmp_path / "exported", "big_vision", "float32"), tmp_path)
    assert fetched > 67 + 2  # half precision, and what is to stay free
    assert exported > fetched + 2
    assert {path.name for path in tmp_path.iterdir()} == {"lineage"}


@pytest.mark.usefixtures("small_disk")
def test_what_training_needs_is_known_before_it_begins(tmp_path: Path, records: Path, monkeypatch) -> None:
    needed = refused(
        lambda: finetune(checkpoint="embedded:tiny", records=str(records), output=str(tmp_path / "tuned"), set_=["steps=1"]),
        tmp_path,
    )
    assert needed > 67
    assert not (tmp_path / "tuned").exists()


def test_a_state_that_finds_no_room_says_how_much_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StateStore(tmp_path / "state", {}) as store:
        monkeypatch.setattr(store, "_checkpointer", SimpleNamespace(save=full, close=lambda: None))
        with pytest.raises(InputError, match=r"no room left in .*state(.|\n)*expected: (68|71)\.\d MB free, found \d+"):
            store.save(1, {"w": np.zeros(1_000_000, np.float32)})


def test_what_orbax_says_only_when_it_is_closed_is_our_error_and_no_later_one_hides_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match="no room left"), StateStore(tmp_path / "state", {}) as store:
        monkeypatch.setattr(store, "_checkpointer", SimpleNamespace(close=full))

    def fail() -> None:
        with StateStore(tmp_path / "state", {}) as store:
            monkeypatch.setattr(store, "_checkpointer", SimpleNamespace(close=full))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "no room left" in caplog.text


def test_predictions_that_cannot_be_kept_name_their_own_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptPredictions(tmp_path / "kept", {})
    monkeypatch.setattr("paligemma.evaluation.kept_predictions.write_file", full)
    with pytest.raises(InputError, match=rf"not enough room in {tmp_path}.*\n.*more than the .* that were free"):
        kept.add([(0, Prediction("0" * 64, "ocr", "1", ("1",), "1", -1.5, 0.0, 2))], 1.0)


def test_a_download_by_kagglehub_names_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kagglehub

    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    monkeypatch.setenv("KAGGLE_USERNAME", "x")
    monkeypatch.setenv("KAGGLE_KEY", "x")
    monkeypatch.setattr(kagglehub, "model_download", full)
    with pytest.raises(InputError, match=rf"not enough room in {tmp_path}"):
        kaggle.fetch("kaggle://google/paligemma/jax/paligemma-3b-pt-224/1", "float16")


def test_a_step_that_fills_the_disk_anywhere_leaves_a_record_that_says_so(tmp_path: Path) -> None:
    @recorded("step")
    def step(output: str) -> None:
        full()

    with pytest.raises(InputError, match=r"not enough room .*\n.*more than the .* that were free"):
        step(output=str(tmp_path / "out"))
    with Index(tmp_path) as index:
        assert [run["status"] for run in list_runs(index)] == ["failed"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_command_that_is_no_step_says_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, code: int
) -> None:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        raise OSError(code, os.strerror(code), str(tmp_path / "page.html"))

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    assert ended.value.code == 2
    assert f"not enough room in {tmp_path}" in capsys.readouterr().err


def test_a_root_is_answered_although_its_index_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text("rows\n")
    make_run(tmp_path / "root", "one", [("1.png", "one")], tmp_path / "rows.jsonl")
    real = Index._add_record
    left = [3]

    def fill_up(self: Index, *arguments: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise sqlite3.OperationalError("database or disk is full")
        real(self, *arguments)

    monkeypatch.setattr(Index, "_add_record", fill_up)
    with Index(tmp_path / "root") as index:
        assert [run["tasks"] for run in list_runs(index)] == [5]
    assert "the index is not kept" in caplog.text
