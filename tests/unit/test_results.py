"""Results by content: what nothing has changed of is not made again, and what anything has changed of is."""

from __future__ import annotations

import contextvars
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from paligemma.artifacts import recording, results
from paligemma.artifacts.record import Input, parse_record
from paligemma.artifacts.recording import recorded, set_place
from paligemma.artifacts.results import Result
from paligemma.artifacts.signing import KEY_VARIABLE
from paligemma.artifacts.store import artifact_at, input_of, localize, produce, record_of
from paligemma.errors import DamagedError
from paligemma.lineage.impact import impact
from paligemma.lineage.index import Index
from paligemma.lineage.queries import trace
from paligemma.lineage.verify import verify
from paligemma.storage import gcs
from paligemma.storage.location import GcsLocation, parse_location
from servers.gcs import GcsServer

DATA = Input(role="data", uri="/data", sha256="a" * 64)
VALUES = {"settings": {"a": 1}, "inputs": [DATA], "also": 1, "fails": False}


class Step:
    """A step that counts how often it makes its artifact, in the runs of a pipeline."""

    def __init__(self, root: str, code: Path) -> None:
        self.root, self.code, self.made = root, code, 0
        code.mkdir(exist_ok=True)
        (code / "main.py").write_text("pass\n")

    def run(self, run: str, reuse: bool = True, **changes: object) -> str:
        return contextvars.copy_context().run(self._run, run, reuse, changes)

    def _run(self, run: str, reuse: bool, changes: dict) -> str:
        set_place(run, "task", self.root, reuse)
        return self.make(
            f"{self.root}/{run}/task/x", **{"settings": {"a": 1}, "inputs": [DATA], "also": 1, "fails": False} | changes
        )

    @staticmethod
    def _text(settings: dict, inputs: list[Input], also: object) -> str:
        return json.dumps([settings, [entry.model_dump() for entry in inputs], also])

    def make(self, output: str, settings: dict, inputs: list[Input], also: object, fails: bool) -> str:
        @recorded("step")
        def step(output: str) -> str:
            result = Result.of("step", self.code, settings, inputs, also=also)
            if (made := result.find()) is not None:
                return made
            with produce(output, "thing", "step", settings, inputs) as draft:
                self.made += 1
                (draft.folder / "text").write_text(self._text(settings, inputs, also))
                (draft.folder / "deep").mkdir()
                (draft.folder / "deep/er").write_text("x")
                if fails:
                    raise ValueError("it fails")
            result.keep()
            return output

        return step(output)


@pytest.fixture
def step(tmp_path: Path) -> Step:
    return Step(str(tmp_path / "root"), tmp_path / "code")


@pytest.fixture
def in_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Step]:
    with GcsServer() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path / "cache"))
        server.create_bucket("bucket")
        yield Step("gs://bucket/root", tmp_path / "code")


def of_run(step: Step, run: str) -> dict:
    folder = parse_location(step.root) / "lineage" / run / "task"
    (name,) = (name for name in recording.folders.list_files(folder) if not name.endswith(".started.json"))
    return parse_record(recording.folders.read_file(folder / name), name).model_dump()


def check_reuse(step: Step) -> None:
    first = step.run("one")
    assert (step.run("two"), step.run("three"), step.made) == (first, first, 1)
    assert localize(first).joinpath("text").is_file()
    for run in ("two", "three"):  # the task's own folder says where the artifact is, and stands for it
        folder = f"{step.root}/{run}/task/x"
        assert artifact_at(folder) == parse_location(first)
        assert localize(folder) == localize(first)
        assert record_of(folder) == record_of(first)
        assert input_of("x", folder) == input_of("x", first)
    made, reused = of_run(step, "one"), of_run(step, "three")
    assert made["cached_from"] is None
    assert reused["cached_from"] == {"run": "one", "task": "task", "attempt": made["attempt"], "record": made["sha256"]}
    assert reused["artifact"] == made["artifact"]
    assert (reused["run"], reused["seconds"]) == ("three", 0.0)
    with Index(parse_location(step.root)) as index:
        found = verify(index)
        assert (found.problems, found.artifacts) == ([], 1)
        assert [one["run"] for one in trace(index, first)["steps"]] == ["one"]
        assert impact(index, first) is not None
        if isinstance(parse_location(first), Path):  # questions about the folder are about the artifact
            assert trace(index, f"{step.root}/two/task/x") == trace(index, first)


def test_what_was_made_once_is_not_made_again(step: Step) -> None:
    check_reuse(step)
    assert [path.name for path in (Path(step.root) / "two").rglob("*") if path.is_file()] == ["location.json"]


def test_a_task_that_took_over_what_is_gone_makes_it_anew(step: Step) -> None:
    first = step.run("one")
    step.run("two")
    shutil.rmtree(first)
    again = step.run("two")
    assert (again, step.made) == (f"{step.root}/two/task/x", 2)
    assert localize(again) == Path(again)
    assert not (Path(again) / "location.json").exists()


@pytest.mark.parametrize("said", ["", "{", "[]", "{}", '{"location": 3}', '{"location": ""}'])
def test_a_folder_that_does_not_say_where_its_artifact_is_is_damaged(said: str, tmp_path: Path) -> None:
    (tmp_path / "location.json").write_text(said)
    with pytest.raises(DamagedError, match=r"location"):
        localize(tmp_path)


def test_nor_in_cloud_storage(in_bucket: Step) -> None:
    check_reuse(in_bucket)
    found = [one.location.name.split("/")[1] for one in gcs.list_objects(GcsLocation("bucket", "root"))]
    assert set(found) == {"one", "two", "three", "lineage", "results"}
    last = [one.location.name for one in gcs.list_objects(GcsLocation("bucket", "root/three"))]
    assert last == ["root/three/task/x/location.json"]


def test_a_run_that_is_not_to_reuse_makes_it_and_later_runs_take_that(step: Step) -> None:
    first = step.run("one")
    second = step.run("two", reuse=False)
    assert first != second
    assert step.run("three") == second
    assert step.made == 2


def test_a_step_that_is_run_by_hand_makes_what_it_is_asked_to_make(step: Step, tmp_path: Path) -> None:
    step.run("one")
    assert step.make(str(tmp_path / "own"), **VALUES) == str(tmp_path / "own")
    assert step.made == 2
    assert not (tmp_path / "results").exists()


def test_what_failed_is_not_a_result(step: Step) -> None:
    with pytest.raises(ValueError, match="it fails"):
        step.run("one", fails=True)
    assert step.run("two").endswith("two/task/x")
    assert step.made == 2


def edit(path: Path, text: str) -> Callable[[], None]:
    return lambda: path.write_text(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"a": 2}},
        {"settings": {"a": 1.5}},
        {"settings": {"a": 1, "b": None}},
        {"settings": {}},
        {"inputs": [DATA.model_copy(update={"sha256": "b" * 64})]},
        {"inputs": [DATA.model_copy(update={"role": "other"})]},
        {"inputs": [DATA, DATA]},
        {"inputs": []},
        {"also": 2},
        {"also": None},
    ],
    ids=str,
)
def test_another_setting_or_input_is_another_result(step: Step, changes: dict) -> None:
    first = step.run("one")
    assert step.run("two", **changes) != first
    assert step.run("three") == first


def test_the_same_input_elsewhere_is_the_same_result(step: Step) -> None:
    first = step.run("one")
    moved = DATA.model_copy(update={"uri": "gs://b/data", "run": "r", "record": "c" * 64})
    assert step.run("two", inputs=[moved]) == first


def test_other_code_or_another_package_is_another_result(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [step.run("one")]

    def again() -> None:
        results._code_sha256.cache_clear()
        results._versions.cache_clear()
        places.append(step.run(f"run-{len(places)}"))
        assert places[-1] not in places[:-1]

    (step.code / "main.py").write_text("pass \n")
    again()
    (step.code / "more.py").write_text("")
    again()
    (step.code / "more.py").rename(step.code / "most.py")
    again()
    monkeypatch.setattr(results, "_sources", lambda folder: [] if folder.name == "paligemma" else [step.code / "main.py"])
    again()
    monkeypatch.setattr(results.metadata, "version", lambda name: "7" if name == "jax" else "1")
    again()
    monkeypatch.setattr(results.metadata, "version", lambda name: "8" if name == "jax" else "1")
    again()
    results._code_sha256.cache_clear()
    results._versions.cache_clear()


def test_every_package_that_may_change_an_artifact_is_installed() -> None:
    assert results._versions().keys() == set(results._PACKAGES)


@pytest.mark.parametrize(
    "damage",
    [
        lambda made: (made / "text").write_text("[1" + (made / "text").read_text()[2:]),
        lambda made: (made / "text").unlink(),
        lambda made: (made / "deep/er").unlink(),
        lambda made: (made / "more").touch(),
        lambda made: (made / "lineage.json").unlink(),
        lambda made: (made / "lineage.json").write_text("{}"),
        lambda made: made.rename(made.with_name("moved")),
    ],
    ids=["byte", "file gone", "deep file gone", "file more", "record gone", "record damaged", "moved"],
)
def test_an_artifact_that_is_not_whole_is_made_anew(step: Step, damage: Callable[[Path], None]) -> None:
    first = Path(step.run("one"))
    damage(first)
    second = step.run("two")
    assert (second, step.made) == (f"{step.root}/two/task/x", 2)
    assert step.run("three") == second


@pytest.mark.parametrize("damage", ["written again", "gone", "record gone"])
def test_in_cloud_storage_too(in_bucket: Step, damage: str) -> None:
    first = parse_location(in_bucket.run("one"))
    objects = {one.location.name.rpartition("/")[2]: one.location for one in gcs.list_objects(first)}
    if damage == "written again":  # with the same bytes: nobody can tell without reading them
        gcs.write_bytes(objects["text"], gcs.read_bytes(objects["text"])[0])
    else:
        gcs.delete(objects["text" if damage == "gone" else "lineage.json"])
    assert in_bucket.run("two") != str(first)
    assert in_bucket.made == 2


NOTES = ["", "x", "[]", "{}", "null", '{"format": 2}', '{"format": 1, "location": 5, "record": "x"}', '{"a": ' * 100, "\udc80"]


@pytest.mark.parametrize("note", NOTES)
def test_a_note_that_says_nothing_of_use_is_passed_over(step: Step, note: str) -> None:
    step.run("one")
    (path,) = (Path(step.root) / "results").iterdir()
    path.write_text(note, errors="surrogateescape")
    assert step.run("two").endswith("two/task/x")
    assert step.made == 2


def test_a_note_cannot_lead_out_of_the_root_or_to_another_steps_artifact(step: Step, tmp_path: Path) -> None:
    elsewhere = Step(str(tmp_path / "elsewhere"), tmp_path / "code")
    foreign, own = elsewhere.run("one"), step.run("one")
    (note,) = (Path(step.root) / "results").iterdir()
    (theirs,) = (Path(elsewhere.root) / "results").iterdir()
    assert json.loads(theirs.read_text())["location"] == foreign
    note.write_bytes(theirs.read_bytes())
    assert step.run("two").endswith("root/two/task/x")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"location": f"{step.root}/../elsewhere/one/task/x"}))
    assert step.run("three").endswith("root/three/task/x")
    other = step.run("four", also="other")  # this step's, but of other values
    kept = json.loads(note.read_text()) | {"location": other}
    note.write_text(json.dumps(kept))  # with the record of the right one
    assert step.run("five").endswith("root/five/task/x")
    assert own.endswith("one/task/x")


def test_with_a_key_only_what_it_signed_is_reused(step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsigned = step.run("one")
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    signed = step.run("two")
    assert signed != unsigned
    assert step.run("three") == signed
    assert of_run(step, "three")["signature"] is not None
    other = step.run("four", also="other")
    notes = {json.loads(note.read_text())["location"]: note for note in (Path(step.root) / "results").iterdir()}
    notes[signed].write_bytes(notes[other].read_bytes())  # signed, but as another result
    assert step.run("five").endswith("root/five/task/x")


def test_of_two_at_once_each_makes_its_own_and_later_ones_take_one(step: Step) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(step.run, [f"run-{n}" for n in range(4)]))
    assert step.run("last") in made
    assert all(Path(place, "text").is_file() for place in made)
    with Index(parse_location(step.root)) as index:
        assert verify(index).problems == []
