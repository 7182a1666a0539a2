"""Questions about runs: list, show, trace, impact, diff, prune; what a run took over; on a disk and in Cloud Storage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lineage_runs import at_place, make_run, make_step, row_entry

from paligemma.artifacts.record import read_record
from paligemma.artifacts.recording import attempt
from paligemma.artifacts.store import input_of, produce
from paligemma.errors import InputError
from paligemma.lineage import prune, queries
from paligemma.lineage.cache_hits import record_cached
from paligemma.lineage.diff import diff
from paligemma.lineage.impact import impact
from paligemma.lineage.index import Index
from paligemma.lineage.verify import verify
from paligemma.storage import cache, gcs
from paligemma.storage.location import parse_location
from servers.gcs import GcsServer

GOOD = [("1.png", "one"), ("2.png", "two")]
BAD = ("bad.png", "wrong")


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with GcsServer() as running:
        running.create_bucket("bucket-of-lineage")
        yield running


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture(params=["disk", "cloud storage"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "disk":
        return str(tmp_path / "root")
    for name, value in request.getfixturevalue("server").environment().items():
        monkeypatch.setenv(name, value)
    return f"gs://bucket-of-lineage/{tmp_path.name}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("rows\n")
    return file


def outputs(found: list[dict]) -> set[str]:
    return {one["output"] for one in found}


def test_a_row_names_exactly_the_models_trained_on_it(root: str, data: Path) -> None:
    one = make_run(root, "one", [*GOOD, BAD], data, release=True)
    two = make_run(root, "two", [BAD, ("3.png", "three")], data, steps=2)
    make_run(root, "three", GOOD, data, steps=3)
    four = make_run(root, "four", GOOD, data, steps=4, validation=[BAD])
    compared = [("tuned model", f"{root}/three/finetune/tuned-model"), ("champion", one["evaluate"])]
    judged = make_step(root, "three", "evaluate-2", "evaluate", "evaluation", compared)
    make_step(root, "three", "publish", "publish", "release", [("evaluation", judged)])  # better than the one with the row
    row = row_entry(*BAD, 1)
    with Index(root) as index:
        for name in (row["row_id"], row["row_id"][:8], row["image_sha256"], "bad.png"):
            found = impact(index, name)
            assert outputs(found["models"]) == {one["finetune"], two["finetune"]}
            assert outputs(found["validated"]) == {four["finetune"]}
            assert outputs(found["evaluations"]) == {one["evaluate"], two["evaluate"], four["evaluate"]}
            assert outputs(found["releases"]) == {one["publish"]}
            # Its records, but not those that were only compared with them.
            assert outputs(found["others"]) == {one["train"], two["train"], four["validation"]}
        assert found["kind"] == "image"
        assert impact(index, row["row_id"])["kind"] == "row"
        of_line = impact(index, f"{data}:3")  # of every run that read the file, whatever was in it then
        assert of_line["rows"][0]["image"] == "bad.png"
        with pytest.raises(InputError, match="not an artifact, row or image"):
            impact(index, "f" * 64)


def make_records(root: str, run: str, data: Path, rejected: list[tuple[int, str, str]], rows: list[tuple[str, str]]) -> str:
    """Records of a file some of whose lines were rejected."""
    output = f"{root}/{run}/train/records"
    remarks = [{"line": line, "row_id": None, "code": code, "message": said, "image": None} for line, code, said in rejected]
    with at_place(run, "train", root), produce(output, "records", "prepare_data", {}, [input_of("data", data)]) as draft:
        (draft.folder / "rejected.jsonl").write_text("".join(f"{json.dumps(remark)}\n" for remark in remarks))
        entries = [row_entry(image, words, line) for line, (image, words) in enumerate(rows, start=1)]
        (draft.folder / "rows.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return output


def test_a_line_that_was_rejected_says_where_and_why(root: str, data: Path) -> None:
    one = make_records(root, "one", data, [(3, "json_invalid", "Expecting value"), (4, "suffix_empty", "it is empty")], GOOD)
    make_records(root, "two", data, [], [*GOOD, BAD])  # the file was mended, or the reader
    with Index(root) as index:
        of_both = impact(index, f"{data}:3")
        rejected = {
            "run": "one",
            "task": "train",
            "output": one,
            "line": 3,
            "code": "json_invalid",
            "message": "Expecting value",
        }
        assert of_both["rejected"] == [rejected]
        assert of_both["rows"][0]["image"] == "bad.png"
        of_one = impact(index, f"{data}:4")
        assert (of_one["kind"], of_one["rows"], of_one["models"], of_one["others"]) == ("row", [], [], [])
        assert [found["code"] for found in of_one["rejected"]] == ["suffix_empty"]
        assert impact(index, f"{data}:1")["rejected"] == []
        with pytest.raises(InputError, match="not an artifact, row or image"):
            impact(index, f"{data}:5")


def test_a_list_of_rejected_rows_that_was_altered_answers_nothing(
    tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_records(str(tmp_path / "root"), "one", data, [(3, "json_invalid", "Expecting value")], GOOD)
    list_ = Path(made) / "rejected.jsonl"
    list_.write_text(list_.read_text().replace('"line": 3', '"line": 9'))
    with Index(tmp_path / "root") as index, pytest.raises(InputError, match="not an artifact, row or image"):
        impact(index, f"{data}:9")
    assert "rejected.jsonl was altered" in caplog.text
    list_.unlink()
    with Index(tmp_path / "root") as index, pytest.raises(InputError, match="not an artifact, row or image"):
        impact(index, f"{data}:3")
    assert "rejected.jsonl is gone" in caplog.text


def test_an_image_file_is_found_by_its_contents(root: str, data: Path, tmp_path: Path) -> None:
    made = make_run(root, "one", [*GOOD, BAD], data)
    (tmp_path / "renamed.png").write_bytes(b"bad.png")  # what row_entry hashes
    with Index(root) as index:
        assert outputs(impact(index, str(tmp_path / "renamed.png"))["models"]) == {made["finetune"]}


def test_an_artifact_and_a_source_name_what_was_made_of_them(root: str, data: Path, tmp_path: Path) -> None:
    made = make_run(root, "one", GOOD, data, release=True)
    with Index(root) as index:
        of_model = impact(index, made["finetune"])
        assert outputs(of_model["evaluations"]) == {made["evaluate"]}
        assert outputs(of_model["releases"]) == {made["publish"]}
        assert of_model["models"] == []
        of_data = impact(index, str(data))
        assert of_data["kind"] == "source"
        assert outputs(of_data["models"]) == {made["finetune"]}
        by_hash = impact(index, hashlib.sha256(data.read_bytes()).hexdigest()[:10])
        assert by_hash["models"] == of_data["models"]


def test_a_trace_reaches_the_sources_with_code_and_parameters(root: str, data: Path) -> None:
    made = make_run(root, "one", GOOD, data, release=True, steps=7)
    with Index(root) as index:
        found = queries.trace(index, "one/publish")
        assert found == queries.trace(index, made["publish"])
    by_task = {step["task"]: step for step in found["steps"]}
    assert by_task.keys() == {"publish", "finetune", "evaluate", "validation", "train", "fetch"}
    assert by_task["finetune"]["parameters"] == {"steps": 7, "optimizer": {"name": "sgd"}}
    assert all(len(step["git_sha"]) == 40 for step in found["steps"])
    (source,) = found["sources"]
    assert (source["uri"], source["sha256"]) == (str(data), hashlib.sha256(data.read_bytes()).hexdigest())
    assert found["missing"] == []


def test_a_difference_is_in_parameters_metrics_sources_and_rows(root: str, data: Path) -> None:
    make_run(root, "one", [*GOOD, BAD], data)
    data.write_text("other rows\n")
    make_run(root, "two", [("1.png", "uno"), GOOD[1], ("3.png", "three")], data, steps=2)
    with Index(root) as index:
        tasks = diff(index, "one", "two")["tasks"]
        assert diff(index, "one", "one")["tasks"]["train"] == {}
    assert tasks["finetune"]["parameters"] == [{"key": "steps", "before": 1, "after": 2}]
    assert tasks["finetune"]["metrics"] == [{"key": "final_loss", "before": 1.0, "after": 0.5}]
    assert [one["key"] for one in tasks["train"]["sources"]] == ["data"]
    rows = tasks["train"]["rows"]
    assert (rows["added"], rows["removed"], rows["changed"]) == (1, 1, 1)
    assert rows["examples"]["added"][0]["image"] == "3.png"
    assert rows["examples"]["removed"][0]["image"] == "bad.png"
    assert rows["examples"]["changed"][0]["after"]["row"] == row_entry("1.png", "uno", 1)["row_id"][:32]
    assert tasks["validation"] == {}


def test_an_index_takes_in_what_was_added_and_only_that(root: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(root, "one", GOOD, data)
    with Index(root) as index:
        assert [run["run"] for run in queries.list_runs(index)] == ["one"]
    read: list[str] = []
    was = Index.read
    monkeypatch.setattr(Index, "read", lambda self, path: read.append(path) or was(self, path))
    make_run(root, "two", GOOD, data, release=True)
    with Index(root) as index:
        assert [run["run"] for run in queries.list_runs(index)] == ["two", "one"]
        assert [run["run"] for run in queries.list_runs(index, component="publish")] == ["two"]
    assert {path.partition("/")[0] for path in read} == {"two"}
    with Index(root) as index:
        assert len(read) == 6
        assert queries.list_runs(index, limit=1)[0]["released"]


def test_processes_that_open_a_root_at_once_all_answer(tmp_path: Path, data: Path) -> None:
    make_run(tmp_path / "root", "one", GOOD, data)
    code = "import sys\nfrom paligemma.lineage.index import Index\nwith Index(sys.argv[1]): pass"
    command = [sys.executable, "-c", code, str(tmp_path / "root")]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in started] == [(b"", 0)] * 4


@pytest.mark.parametrize("left", [b"no database", b""])
def test_a_damaged_index_is_made_anew(tmp_path: Path, data: Path, left: bytes) -> None:
    make_run(tmp_path / "root", "one", GOOD, data)
    with Index(tmp_path / "root"):
        (kept,) = (tmp_path / "cache/lineage").glob("*.sqlite")
    kept.write_bytes(left)
    with Index(tmp_path / "root") as index:
        assert queries.run_summary(index, "one")["tasks"] == 5


def test_a_mark_that_goes_while_it_is_read_is_left_out(root: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(root, "one", GOOD, data)
    was = Index.read

    def read(self: Index, path: str) -> bytes | None:
        if path.startswith("one/finetune/"):
            return None
        return was(self, path)

    monkeypatch.setattr(Index, "read", read)
    with Index(root) as index:
        assert queries.run_summary(index, "one")["tasks"] == 4


def test_more_records_than_are_read_at_once_are_all_taken_in(root: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paligemma.lineage.index._BATCH", 2)
    made = make_run(root, "one", GOOD, data, release=True)
    with Index(root) as index:
        assert {step["output"] for step in queries.trace(index, made["publish"])["steps"]} == set(made.values())


def test_a_thorough_look_finds_what_another_program_put_there(tmp_path: Path, data: Path) -> None:
    make_run(tmp_path / "root", "one", GOOD, data)
    folder = tmp_path / "root/lineage/one"
    os.utime(folder, (1, 1))
    with Index(tmp_path / "root"):
        pass
    make_run(tmp_path / "other", "one", GOOD, data)
    (record,) = (tmp_path / "other/lineage/one/train").iterdir()
    shutil.copy(record, folder / "train")
    os.utime(folder, (1, 1))
    counts = []
    for thorough in (False, True):
        with Index(tmp_path / "root", thorough) as index:
            counts.append(index.ask("SELECT COUNT(*) FROM records")[0][0])
    assert counts == [5, 6]


def test_a_run_is_as_its_last_attempts_left_it(root: str, data: Path) -> None:
    def fail() -> None:
        with at_place("one", "finetune", root), attempt("finetune", f"{root}/one/finetune/tuned-model", {}):
            raise InputError("The loss is not finite.")

    with pytest.raises(InputError):
        fail()
    with Index(root) as index:
        (run,) = queries.list_runs(index)
        assert (run["status"], run["failed"]) == ("failed", ["finetune"])
    make_run(root, "one", GOOD, data)
    with Index(root) as index:
        (run,) = queries.list_runs(index)
        assert (run["status"], run["tasks"], run["attempts"]) == ("succeeded", 5, 6)
        (step,) = (step for step in queries.show(index, "one")["steps"] if step["task"] == "finetune")
        assert [one["status"] for one in step["attempts"]] == ["failed", "succeeded"]
        assert step["attempts"][0]["error"] == {"kind": "InputError", "message": "The loss is not finite."}


def test_a_step_that_makes_two_artifacts_is_known_by_the_last(root: str, data: Path) -> None:
    make_run(root, "one", GOOD, data)
    with at_place("one", "publish", root), attempt("publish", f"{root}/registry", {}):
        for component in ("export", "publish"):
            with produce(f"{root}/registry/{component}", component, component, {}, []) as draft:
                (draft.folder / "file").write_text(component)
    with Index(root) as index:
        assert queries.run_summary(index, "one")["released"]
        step = queries.run_tasks(index, "one")[-1]
        assert (step["component"], [made["type"] for made in step["artifacts"]]) == ("publish", ["export", "publish"])
        assert queries.show(index, "one/publish")["record"]["producer"]["component"] == "publish"


def test_names_that_fit_nothing_or_several_are_refused(root: str, data: Path) -> None:
    make_run(root, "one", GOOD, data)
    with Index(root) as index:
        with pytest.raises(InputError, match="did you mean 'one'"):
            queries.run_tasks(index, "onee")
        with pytest.raises(InputError, match="no artifact"):
            queries.show(index, "nothing")
        record = queries.show(index, "one/train")["record"]
        assert queries.show(index, record["sha256"][:12])["record"] == record
        assert queries.show(index, record["artifact"]["tree_sha256"])["record"] == record
        assert {one["task"] for one in queries.show(index, "one/train")["used_by"]} == {"validation", "finetune"}


def test_a_release_goes_by_its_version_and_an_artifact_by_its_place_below_the_root(root: str, data: Path) -> None:
    made = make_run(root, "one", GOOD, data)
    with at_place("one", "publish", root):
        inputs = [input_of("tuned model", made["finetune"])]
        with produce(f"{root}/registry/releases/0123456789ab/release", "release", "publish", {}, inputs) as draft:
            (draft.folder / "card.md").write_text("card\n")
    with Index(root) as index:
        for name in ("0123456789ab", "registry/releases/0123456789ab", f"{root}/registry/releases/0123456789ab/"):
            assert queries.trace(index, name)["artifact"]["task"] == "publish"
        assert queries.trace(index, "one/finetune/tuned-model")["artifact"]["output"] == made["finetune"]
        assert outputs(impact(index, "finetune/tuned-model")["releases"]) == {f"{root}/registry/releases/0123456789ab/release"}
        with pytest.raises(InputError, match="no artifact 'model'"):  # whole names only
            queries.trace(index, "model")


def test_a_root_without_records_is_refused(tmp_path: Path, data: Path) -> None:
    make_run(tmp_path / "deep/root", "one", GOOD, data)
    with pytest.raises(InputError, match="deep/root"):
        Index(tmp_path)


def test_what_a_run_took_over_from_another_gets_a_record(root: str, data: Path) -> None:
    first = make_run(root, "one", GOOD, data)
    base, train = ("checkpoint", first["fetch"]), ("train records", first["train"])
    make_step(root, "two", "finetune", "finetune", "tuned-model", [base, train])
    with Index(root) as index:
        assert {record.task for record in record_cached(index, "two")} == {"fetch", "train"}
    with Index(root) as index:
        assert record_cached(index, "two") == []  # once is enough
        run = queries.run_summary(index, "two")
        assert (run["cached"], run["tasks"], run["status"]) == (["fetch", "train"], 3, "succeeded")
        (step,) = (step for step in queries.run_tasks(index, "two") if step["task"] == "train")
        original = queries.show(index, "one/train")["record"]
        assert step["cached_from"] == {
            "run": "one", "task": "train", "attempt": original["attempt"], "record": original["sha256"]
        }  # fmt: skip
        assert verify(index).problems == []


def test_only_what_no_release_was_made_from_is_pruned(root: str, data: Path) -> None:
    released = make_run(root, "one", GOOD, data, release=True)
    other = make_run(root, "two", [BAD], data, steps=2)
    with Index(root) as index:
        assert prune.plan(index, older_than_days=1)["delete"] == []
        planned = prune.plan(index, older_than_days=0)
        assert {entry["place"] for entry in planned["delete"]} == set(other.values())
        prune.delete(index, planned)
    with Index(root) as index:
        assert prune.plan(index, older_than_days=0)["delete"] == []
        found = verify(index)
        assert found.problems == []
        assert set(found.pruned) == set(other.values())
        # What was in it is still known.
        assert outputs(impact(index, "bad.png")["models"]) == {other["finetune"]}
        assert len(queries.trace(index, released["publish"])["steps"]) == 6


@pytest.mark.parametrize("root", ["cloud storage"], indirect=True)
@pytest.mark.parametrize("replaced", ["lineage.json", "file"])
def test_what_was_replaced_after_it_was_looked_at_is_kept_and_said(
    root: str, data: Path, replaced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(root, "one", GOOD, data, release=True)
    other = make_step(root, "two", "fetch", "fetch_checkpoint", "checkpoint", text="weights")
    (theirs,) = (found.location for found in gcs.list_objects(parse_location(other)) if found.location.name.endswith(replaced))
    real = prune.keep_file

    def then_somebody_writes(*arguments: object) -> object:
        gcs.write_bytes(theirs, b"theirs")
        return real(*arguments)

    monkeypatch.setattr(prune, "keep_file", then_somebody_writes)
    with Index(root) as index:
        planned = prune.plan(index, older_than_days=0)
        prune.delete(index, planned)
    assert gcs.read_bytes(theirs)[0] == b"theirs"
    left = [found.location for found in gcs.list_objects(parse_location(other))]
    (kept,) = planned["not_ours"]
    assert kept["why"] == "somebody rewrote it meanwhile"
    if replaced == "file":  # the rest of the artifact is gone
        assert (left, kept["place"], len(planned["delete"])) == ([theirs], str(theirs), 1)
    else:  # another artifact is there: nothing of it is touched
        assert (len(left), kept["place"], planned["delete"], planned["bytes"]) == (2, other, [], 0)


def test_releases_below_another_root_count(root: str, data: Path) -> None:
    made = make_run(root, "one", GOOD, data)
    other = make_run(root, "two", [BAD], data, steps=2)
    make_step(f"{root}-registry", "by-hand", "publish", "publish", "release", [("tuned model", made["finetune"])])
    with Index(root) as index, Index(f"{root}-registry") as registry:
        planned = prune.plan(index, 0, [registry])
        assert {entry["place"] for entry in planned["delete"]} == {*other.values(), made["evaluate"]}
        assert planned["releases"] == 1


def test_nothing_is_pruned_where_nothing_is_released(root: str, data: Path) -> None:
    make_run(root, "one", GOOD, data)
    with Index(root) as index, pytest.raises(InputError, match="no release"):
        prune.delete(index, prune.plan(index, older_than_days=0))


def test_a_copied_root_answers_and_verifies_on_its_own(tmp_path: Path, data: Path) -> None:
    made = make_run(tmp_path / "root", "one", GOOD, data)
    os.rename(tmp_path / "root", tmp_path / "copy")
    with Index(tmp_path / "copy") as index:
        assert verify(index).problems == []
        for name in (made["finetune"], str(tmp_path / "copy/one/finetune/tuned-model")):
            found = queries.trace(index, name)
            assert (found["artifact"]["task"], found["missing"]) == ("finetune", [])


def test_a_copy_is_verified_and_pruned_where_it_is(tmp_path: Path, data: Path) -> None:
    root, copy = tmp_path / "root", tmp_path / "copy"
    made = make_run(root, "one", GOOD, data)
    with at_place("one", "publish", str(root)):  # not at RUN/TASK, as releases are
        inputs = [input_of("tuned model", made["finetune"])]
        with produce(root / "registry/releases/v1/release", "release", "publish", {}, inputs) as draft:
            (draft.folder / "card.md").write_text("card\n")
    make_run(root, "two", [BAD], data)
    shutil.copytree(root, copy)
    with Index(copy) as index:
        assert verify(index).problems == []
        (copy / "registry/releases/v1/release/card.md").write_text("other\n")
        (copy / "one/train/records/file").write_text("other")
        shutil.rmtree(copy / "two/fetch/checkpoint")
        wrong = ["one/train/records/file", "registry/releases/v1/release/card.md", "two/fetch/checkpoint"]
        assert sorted(problem.where for problem in verify(index).problems) == [str(copy / name) for name in wrong]
        prune.delete(index, prune.plan(index, older_than_days=0))
    assert not (copy / "two/finetune/tuned-model").exists()
    with Index(root) as index:
        assert verify(index).problems == []  # nothing of the original was touched


@pytest.mark.parametrize("root", ["cloud storage"], indirect=True)
def test_a_copy_of_a_bucket_on_a_disk_verifies(root: str, data: Path, tmp_path: Path) -> None:
    make_run(root, "one", GOOD, data, release=True)
    for found in gcs.list_objects(parse_location(root)):
        file = tmp_path / "copy" / found.location.name.removeprefix(f"{tmp_path.name}/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gcs.read_bytes(found.location)[0])
    with Index(tmp_path / "copy") as index:
        found = verify(index)
        assert (found.problems, found.artifacts) == ([], 6)


def test_answers_are_json(root: str, data: Path) -> None:
    make_run(root, "one", GOOD, data)
    with Index(root) as index:
        for answer in (queries.list_runs(index), queries.show(index, "one"), queries.show(index, "one/train")):
            assert json.loads(queries.to_json(answer)) == answer


def test_the_record_of_a_copy_in_the_cache_is_that_of_its_address(root: str, data: Path) -> None:
    made = [make_run(root, run, GOOD, data) for run in ("one", "two")]  # the same checkpoint, fetched twice
    with Index(root) as index:
        used = [queries.show(index, f"{run}/finetune")["record"]["inputs"][0]["run"] for run in ("one", "two")]
    assert used == ["one", "two"]
    if not root.startswith("gs://"):
        assert read_record(made[1]["fetch"]).run == "two"
