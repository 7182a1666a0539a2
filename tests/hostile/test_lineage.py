"""Roots that somebody else wrote to: what is deleted, what is believed, and what reaches a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from random import Random

import pytest
from lineage_runs import make_run, make_step
from typer.testing import CliRunner

from components.prepare_data.stages import FINGERPRINT_FILE, open_inputs, work_folder
from conftest import SmallData
from paligemma.artifacts.record import parse_record, read_record, record_sha256
from paligemma.artifacts.recording import PRICE_VARIABLE, attempt
from paligemma.artifacts.signing import read_public_key
from paligemma.errors import DamagedError, InputError
from paligemma.lineage.index import Index
from paligemma.lineage.prune import delete, plan
from paligemma.lineage.verify import verify
from paligemma.storage.cache import CACHE_VARIABLE
from paligemma.terminal import printable, printable_json
from paligemma.training.resume_check import FINGERPRINT_FILE as STATE_FINGERPRINT
from paligemma.training.state import remove_state
from pipelines.commands.lineage import app

sys.path.insert(0, str(Path(__file__).parent))

from baits import forge_step
from roots import Case, signing, snapshot


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A signed root of two runs, one of them released, and a user's folder beside it."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    made = Case(tmp_path)
    made.make_keys()
    made.home.mkdir()
    (made.home / "thesis.txt").write_text("years of work\n")
    (tmp_path / "rows.jsonl").write_text("rows\n")
    with signing(made.key):
        make_run(made.root, "one", [("1.png", "one")], tmp_path / "rows.jsonl", release=True)
        make_run(made.root, "two", [("2.png", "two")], tmp_path / "rows.jsonl", steps=2)
    return made


def pruned(case: Case) -> dict:
    """What `prune --delete` did."""
    with Index(case.root) as index:
        planned = plan(index, 0)
        delete(index, planned)
    return planned


def why(planned: dict, place: Path) -> str:
    (found,) = (one["why"] for one in planned["not_ours"] if one["place"] == str(place))
    return found


def test_what_a_forged_record_names_outside_the_root_stays(case: Case) -> None:
    forge_step(case, case.home, Random(1))
    before = snapshot(case.home)
    assert why(pruned(case), case.home) == "it is not below this root"
    assert snapshot(case.home) == before


@pytest.mark.parametrize("name", [".", "lineage", "lineage/one", "one", "../home", "one/../../home"])
def test_no_record_has_the_root_or_what_is_kept_deleted(case: Case, name: str) -> None:
    forge_step(case, Path(f"{case.root}/{name}"), Random(1))
    before, kept = snapshot(case.home), snapshot(case.root / "lineage/one")
    pruned(case)
    assert snapshot(case.home) == before
    assert snapshot(case.root / "lineage/one") == kept
    assert (case.root / "one/publish/release/file").is_file()


def test_a_place_that_was_used_for_something_else_since_stays(case: Case) -> None:
    place = case.root / "two/train/records"
    shutil.rmtree(place)
    place.mkdir()
    (place / "thesis.txt").write_text("years of work\n")
    assert why(pruned(case), place) == "there is no lineage.json"
    assert (place / "thesis.txt").is_file()


def test_another_artifact_in_the_place_stays(case: Case) -> None:
    place = case.root / "two/train/records"
    shutil.rmtree(place)
    shutil.copytree(case.root / "two/fetch/checkpoint", place)
    assert why(pruned(case), place) == "the lineage.json there is another one"
    assert (place / "file").is_file()


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "sub/notes.txt"])
def test_an_artifact_with_a_file_of_the_users_stays_whole(case: Case, name: str) -> None:
    place = case.root / "two/train/records"
    (place / name).parent.mkdir(exist_ok=True)
    (place / name).write_text("mine\n")
    assert f"it holds {name.partition('/')[0]}" in why(pruned(case), place)
    assert {path.name for path in place.iterdir()} >= {"file", "rows.jsonl", "lineage.json", name.partition("/")[0]}


@pytest.mark.parametrize("link", ["two/train/records", "two/train", "two"])
def test_nothing_behind_a_link_is_deleted(case: Case, link: str) -> None:
    (case.root / link).rename(case.home / "moved")
    (case.root / link).symlink_to(case.home / "moved")
    before = snapshot(case.home)
    assert "is a link, or no folder" in why(pruned(case), case.root / "two/train/records")
    assert snapshot(case.home) == before


def test_a_file_that_is_a_link_is_not_deleted_through(case: Case) -> None:
    place = case.root / "two/train/records"
    (place / "file").unlink()
    (place / "file").symlink_to(case.home / "thesis.txt")
    assert "it holds file" in why(pruned(case), place)
    assert (case.home / "thesis.txt").is_file()


def test_a_record_of_a_folder_with_a_released_artifact_in_it_deletes_nothing(case: Case) -> None:
    forge_step(case, case.root / "one/publish", Random(3))
    (record,) = (case.root / "lineage/bait/bait").iterdir()
    shutil.copy(record, case.root / "one/publish/lineage.json")
    assert why(pruned(case), case.root / "one/publish") == "another artifact is in it"
    assert (case.root / "one/publish/release/file").is_file()


def test_pruning_that_was_interrupted_is_finished_by_the_next(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def interrupted(self: Path, missing_ok: bool = False) -> None:
        if self.name == "lineage.json":
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", interrupted)
    with signing(case.key), pytest.raises(KeyboardInterrupt):
        pruned(case)
    monkeypatch.undo()
    key = read_public_key(case.public)
    assert "this was pruned, and something is there" in {problem.what for problem in verify(case.root, key).problems}
    with signing(case.key):
        pruned(case)
    assert verify(case.root, key).problems == []
    assert not (case.root / "two/train/records").exists()
    assert len(list(case.root.glob("lineage/*/*/*.pruned.json"))) == 5  # one of each


def test_only_who_remembers_can_tell_that_the_newest_records_are_gone(case: Case, tmp_path: Path) -> None:
    words = ["verify", "--root", str(case.root), "--key", str(case.public), "--seen", str(tmp_path / "seen.json")]
    assert CliRunner().invoke(app, words).exit_code == 0
    shutil.rmtree(case.root / "lineage/two")
    shutil.rmtree(case.root / "two")
    (rows,) = (path for path in (case.root / "lineage/rows").iterdir() if "2.png" in path.read_text())
    rows.unlink()
    assert verify(case.root, read_public_key(case.public)).problems == []
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 3
    assert found.output.count("a record that was seen here before is gone") == 5
    assert CliRunner().invoke(app, words).exit_code == 3  # what was seen is not forgotten


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"attempt": 1' + b"0" * 30 + b"}", b'{"pruned": 1' + b"0" * 30 + b"}", b""])
def test_a_record_that_cannot_be_read_is_named_and_the_rest_is_answered(case: Case, data: bytes) -> None:
    names = ["x.json", "x.pruned.json", "x.started.json"]
    for name in names:
        (case.root / "lineage/one/fetch" / name).write_bytes(data)
    answers = {
        "list": "two",
        "show one": "train",
        "trace one/publish": "checkpoint",
        "diff one two": "train",
        "prune": "1 releases",
    }
    for words, said in answers.items():
        found = CliRunner().invoke(app, [*words.split(), "--root", str(case.root)])
        assert found.exit_code == 0
        assert all(f"no record: {case.root}/lineage/one/fetch/{name}: " in found.stderr for name in names)
        assert said in found.stdout


def test_a_fifo_among_the_records_is_named_and_not_opened(case: Case) -> None:
    os.mkfifo(case.root / "lineage/one/fetch/x.json")
    found = CliRunner().invoke(app, ["list", "--root", str(case.root)])
    assert (found.exit_code, "it is a FIFO, not a file" in found.stderr, "one" in found.stdout) == (0, True, True)


def test_an_index_in_the_root_is_not_read(case: Case) -> None:
    place = case.root / "lineage/.index.sqlite"
    place.symlink_to(case.home / "thesis.txt")
    with Index(case.root) as index:
        assert index.ask("SELECT COUNT(*) FROM records")[0][0] == 11
    assert (case.home / "thesis.txt").read_text() == "years of work\n"


STEERING = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\r\nall as recorded"


def test_text_of_a_record_steers_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PALIGEMMA_IMAGE", STEERING)
    root = tmp_path / "root"
    for run in ("one", "two"):
        parameters = {STEERING: f"{STEERING}{run}"}
        make_step(root, run, "fetch", STEERING, "thing", parameters=parameters, metrics={STEERING: 1.0})
    (root / "one/fetch/thing" / "more\x1b[2J\nall as recorded").write_text("x")
    questions = [["list"], ["show", "one"], ["show", "one/fetch"], ["trace", "one/fetch"], ["diff", "one", "two"], ["verify"]]
    for words in questions + [[*words, "--json"] for words in questions]:
        found = CliRunner().invoke(app, [*words, "--root", str(root)])
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", found.output), words
        if "--json" in words:
            json.loads(found.stdout)
        elif words != ["list"]:
            assert "all as recorded" not in found.output.splitlines()


def test_errors_steer_no_terminal() -> None:
    said = str(DamagedError(f"{STEERING} is damaged.", where=STEERING, expected=STEERING))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said)
    assert printable("a\tb\x1b\udc80é漢") == "a\tb\\x1b\\udc80é漢"
    assert json.loads(printable_json(json.dumps(STEERING, ensure_ascii=False))) == STEERING


def test_a_state_is_removed_and_what_is_beside_it_is_not(tmp_path: Path) -> None:
    for name in ("step-00000200-5f0c91d2", "step-by-step", "notes"):
        (tmp_path / "state" / name).mkdir(parents=True)
        (tmp_path / "state" / name / "checkpoint.json").write_text("{}")
    (tmp_path / "home").mkdir()
    (tmp_path / "state/step-00000300-5f0c91d2").symlink_to(tmp_path / "home")
    remove_state(tmp_path / "state")
    assert (tmp_path / "state/step-00000200-5f0c91d2").is_dir()  # no fingerprint: not ours
    (tmp_path / "state" / STATE_FINGERPRINT).write_text("{}")
    remove_state(tmp_path / "state")
    left = {path.name for path in (tmp_path / "state").iterdir()}
    assert left == {"step-by-step", "notes", "step-00000300-5f0c91d2"}
    assert (tmp_path / "home").is_dir()


@pytest.mark.parametrize("kind", ["a folder", "a link"])
def test_unfinished_work_does_not_take_the_place_of_the_users(tmp_path: Path, kind: str, small_data: SmallData) -> None:
    rows = small_data.write([{"image": small_data.add_image("0.png"), "prefix": "ocr", "suffix": "0"}])
    inputs = open_inputs(str(rows), "embedded:tiny", "", "train", "")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years of work\n")
    place = tmp_path / ".out.work"
    place.symlink_to(tmp_path / "home") if kind == "a link" else (tmp_path / "home").rename(place)
    with pytest.raises(InputError, match="something else"):
        work_folder(str(tmp_path / "out"), inputs, {"compression": "none"})
    assert (place / "thesis.txt").is_file()
    place.unlink() if kind == "a link" else shutil.rmtree(place)
    folder = work_folder(str(tmp_path / "out"), inputs, {"compression": "none"})
    (folder / "00000.facts").write_text("x")
    assert work_folder(str(tmp_path / "out"), inputs, {"compression": "none", "other": 1}) == folder
    assert [path.name for path in folder.iterdir()] == [FINGERPRINT_FILE]


@pytest.mark.parametrize("price", ["free", "nan", "inf", "-1"])
def test_a_price_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, price: str) -> None:
    monkeypatch.setenv(PRICE_VARIABLE, price)
    with pytest.raises(InputError, match="is not a price"), attempt("make", tmp_path / "a", {}):
        pass


def test_a_record_that_contradicts_itself_is_refused(case: Case) -> None:
    (path,) = case.records("one", "train")
    record = parse_record(path.read_bytes(), path)
    values = json.loads(path.read_bytes())

    def refused(change: dict, artifact: dict | None = None) -> str:
        forged = values | change
        forged["artifact"] = {**values["artifact"], **artifact} if artifact else forged["artifact"]
        forged["sha256"] = record_sha256(forged)
        with pytest.raises(DamagedError) as caught:
            parse_record(json.dumps(forged).encode(), "x")
        return caught.value.what

    assert "has no artifact" in refused({"artifact": None})
    assert "has an artifact" in refused({"status": "failed"})
    assert "has no end" in refused({"finished": None})
    assert "not its output" in refused({"output": "/elsewhere"})
    assert "not that of its files" in refused({}, {"bytes": 1})
    assert "not that of its files" in refused({}, {"tree_sha256": "0" * 64})
    first = values["artifact"]["files"][0]
    assert "have one name" in refused({}, {"files": [first, first]})
    assert "have one name" in refused({}, {"files": [first, first | {"path": f"{first['path']}/below"}]})
    assert "or the record's" in refused({}, {"files": [first | {"path": "lineage.json"}]})
    del values["metrics"]
    assert "lacks a field" in refused({})
    assert read_record(Path(record.output)) == record
