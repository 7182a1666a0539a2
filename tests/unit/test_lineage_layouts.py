"""Whatever folders a chain writes to, on a disk or in Cloud Storage, moved or copied: it is found, or said that it cannot."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lineage_runs import row_entry

from paligemma.artifacts.store import input_of, produce
from paligemma.errors import InputError
from paligemma.lineage.impact import impact
from paligemma.lineage.queries import trace
from paligemma.lineage.several_roots import open_roots
from paligemma.lineage.verify import verify
from paligemma.storage import cache, gcs
from paligemma.storage.location import parse_location
from servers.gcs import GcsServer

PHOTO = ("IMG_0004.jpg", "a dog")
STEPS = (
    ("prepare_data", "records", "train records"),
    ("finetune", "tuned-model", "tuned model"),
    ("evaluate", "evaluation", "evaluation"),
    ("publish", "release", ""),
)
_fresh = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with GcsServer() as running:
        running.create_bucket("bucket-of-layouts")
        yield running


@dataclass
class World:
    """Folders on a disk and prefixes in a bucket, and where the records of a chain have got to."""

    disk: Path
    bucket: str
    moved: dict[str, str] = field(default_factory=dict)
    lost: bool = False

    def root(self, number: int) -> str:
        return f"{self.bucket}/root{number}" if number >= 3 else str(self.disk / f"projects/root{number}")

    def now(self, address: str) -> str:
        """Where something is after what was moved."""
        for before, after in self.moved.items():
            if address == before or address.startswith(f"{before}/"):
                address = after + address.removeprefix(before)
        return address

    def move(self, address: str) -> None:
        """Moves a root, or what is in a prefix, to a new place."""
        before, after = self.now(address), f"{self.now(address)}-moved{next(_fresh)}"
        copy(before, after)
        remove(before)
        self.moved[before] = after


def copy(source: str, target: str) -> None:
    if not source.startswith("gs://"):
        if Path(source).exists():
            shutil.copytree(source, target)
        return
    start = parse_location(source)
    for found in list(gcs.list_objects(start)):
        end = f"{target}{found.location.name.removeprefix(start.name)}"
        if target.startswith("gs://"):
            gcs.write_bytes(parse_location(end), gcs.read_bytes(found.location)[0])
        else:
            Path(end).parent.mkdir(parents=True, exist_ok=True)
            Path(end).write_bytes(gcs.read_bytes(found.location)[0])


def remove(source: str) -> None:
    if not source.startswith("gs://"):
        shutil.rmtree(source, ignore_errors=True)
        return
    for found in list(gcs.list_objects(parse_location(source))):
        gcs.delete(found.location)


def make_chain(world: World, roots: list[int], handling: list[str], data: Path) -> str:
    """Makes a release by steps that each write below a root of their own choice; between two, what was made is handled."""
    (component, kind, role), place = STEPS[0], world.root(roots[0])
    made = f"{place}/{kind}"
    with produce(made, kind, component, {}, [input_of("data", data)]) as draft:
        (draft.folder / "rows.jsonl").write_text(f"{json.dumps(row_entry(*PHOTO, 1))}\n")
    for (component, kind, following), root, what in zip(STEPS[1:], roots[1:], handling, strict=True):
        if what == "copy" or what == "copy and move":
            copied = str(world.disk / f"elsewhere/{kind}{next(_fresh)}/artifact")
            copy(made, copied)
            if what == "copy and move":  # what was copied knows the address that its root had
                world.move(place)
                world.lost = True
            made = copied if not made.startswith("gs://") else world.now(made)
        elif what == "move":
            world.move(place)
            made = world.now(made)
        place = world.now(world.root(root))
        inputs = [input_of(role, made)]
        made = f"{place}/{kind}{next(_fresh)}"
        with produce(made, kind, component, {}, inputs) as draft:
            (draft.folder / "file").write_text(component)
        role = following
    return made


LAYOUTS = st.tuples(
    st.lists(st.integers(0, 4), min_size=4, max_size=4),
    st.lists(st.sampled_from(["", "", "copy", "move", "copy and move"]), min_size=3, max_size=3),
    st.lists(st.integers(0, 4), max_size=3, unique=True),
    st.booleans(),
)


@given(layout=LAYOUTS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_chain_is_found_in_any_layout_or_it_is_said_that_it_cannot_be(
    layout: tuple[list[int], list[str], list[int], bool], server: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots, handling, moved_at_last, together = layout
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv(cache.CACHE_VARIABLE, f"{folder}/cache")
        world = World(Path(folder, "disk"), f"gs://bucket-of-layouts/{next(_fresh)}")
        data = Path(folder, "train.jsonl")
        data.write_text("rows\n")
        release = make_chain(world, roots, handling, data)
        for number in moved_at_last:
            world.move(world.root(number))
        if together:
            world.move(str(world.disk / "projects"))
        places = list(dict.fromkeys(world.now(world.root(number)) for number in roots))
        with open_roots(places) as index:  # all that there are: no excuse
            (found,) = impact(index, PHOTO[0])["releases"]
            assert world.now(found["output"]) == world.now(release)
            traced = trace(index, found["record"])
            assert ([step["component"] for step in traced["steps"]], traced["missing"]) == (
                ["publish", "evaluate", "finetune", "prepare_data"],
                [],
            )
        with open_roots([places[0]]) as index:
            answer = impact(index, PHOTO[0])
            named = [one["record"] for one in answer["releases"]] == [found["record"]]
            assert named or answer["not_looked_into"] or world.lost
            assert places[0] in answer["looked_into"]
        with open_roots([world.now(world.root(roots[-1]))]) as index:
            traced = trace(index, found["record"])
            assert len(traced["steps"]) == 4 or traced["missing"]
        for place in places:
            assert verify(place).problems == []


def test_the_layout_of_the_pages_is_one_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps beside each other below one folder, and a registry that keeps its records itself."""
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    world = World(tmp_path, "")
    (tmp_path / "rows.jsonl").write_text("rows\n")
    release = make_chain(world, [0, 0, 0, 1], ["", "", ""], tmp_path / "rows.jsonl")
    with open_roots([world.root(0)]) as index:
        answer = impact(index, PHOTO[0])
    assert [one["output"] for one in answer["releases"]] == [release]
    assert (answer["looked_into"], answer["not_looked_into"]) == ([world.root(0), world.root(1)], [])
    shutil.rmtree(world.root(1))
    with open_roots([world.root(0)]) as index:
        answer = impact(index, PHOTO[0])
    assert (answer["releases"], answer["not_looked_into"]) == ([], [world.root(1)])


def test_a_root_that_nobody_may_write_into_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text("rows\n")

    def refuse(location: object, data: bytes) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("paligemma.artifacts.root_links.write_new_file", refuse)
    world = World(tmp_path, "")
    make_chain(world, [0, 1, 1, 1], ["", "", ""], tmp_path / "rows.jsonl")
    assert f"--root {world.root(0)} will miss {world.root(1)}" in caplog.text


def test_no_name_of_a_root_leads_out_of_a_bucket_or_ends_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text("rows\n")
    world = World(tmp_path, "")
    make_chain(world, [0, 0, 0, 0], ["", "", ""], tmp_path / "rows.jsonl")
    folder = Path(world.root(0), "lineage/roots")
    folder.mkdir()
    (folder / f"{'0' * 64}.json").write_text('{"root": "gs://bucket/../other"}')
    with open_roots([world.root(0)]) as index:
        assert len(impact(index, PHOTO[0])["releases"]) == 1
    (problem,) = verify(world.root(0)).problems
    assert problem.kind == "altered"
    with pytest.raises(InputError, match="no lineage records"):
        open_roots([tmp_path / "nowhere"])
