"""Any text at every place where a name from outside becomes a path: nothing but the place itself is touched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lineage_runs import at_place, make_step

from components.fetch_checkpoint.__main__ import run as fetch
from paligemma.artifacts.record import File, record_sha256, tree_sha256
from paligemma.artifacts.recording import RUN_VARIABLE, TASK_VARIABLE, safe_name
from paligemma.artifacts.store import localize, produce
from paligemma.checkpoints.safetensors_files import read_index
from paligemma.checkpoints.tuned import Base
from paligemma.data.records import Shard
from paligemma.errors import DamagedError, InputError
from paligemma.foreign_json import parse_model
from paligemma.lineage.last_seen import read_seen
from paligemma.lineage.record_folder import is_kept_path, parse_prune_mark
from paligemma.storage import cache, gcs, versions
from paligemma.storage.location import GcsLocation, parse_location
from servers.gcs import GcsServer

sys.path.insert(0, str(Path(__file__).parent))

from roots import snapshot

PIECES = st.sampled_from(["..", ".", "/", "\\", "a", "0", "C:", "\n", "~", "lineage", "gs:", "-", "_", "é", "version-", "\x1b"])
NAMES = st.one_of(
    st.text(max_size=40),
    st.lists(PIECES, max_size=8).map("".join),
    st.lists(PIECES, max_size=8).map("/".join),
    st.lists(st.just(".."), min_size=1, max_size=20).map(lambda parts: "/".join([*parts, "tmp", "paligemma-was-here"])),
)
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
few = settings(max_examples=20, suppress_health_check=SLOW)


@pytest.fixture(scope="module")
def bucket() -> Iterator[GcsLocation]:
    with GcsServer() as server, pytest.MonkeyPatch.context() as patch:
        server.create_bucket("names")
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield GcsLocation("names", "")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's files are, beside the cache; the current folder, for paths that are relative."""
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    home = tmp_path / "home"
    (home / "below").mkdir(parents=True)
    (home / "thesis.txt").write_text("years of work\n")
    monkeypatch.chdir(home / "below")
    return home


def outside(home: Path) -> dict:
    """All that nobody may touch: all but the cache."""
    return {name: what for name, what in snapshot(home.parent).items() if name != "cache" and not name.startswith("cache/")}


FIELDS = ["path", "version", "tree_sha256", "file sha256", "run", "uri"]


@given(NAMES, st.sampled_from(FIELDS))
@example("/tmp/paligemma-was-here", "path")
@example("../../../../../../../../tmp/paligemma-was-here", "path")
@example("../../thesis.txt", "path")
@example("../../../home/x", "tree_sha256")
@example("../other", "version")
@settings(max_examples=20, suppress_health_check=SLOW)
def test_an_artifact_in_cloud_storage_writes_into_the_cache_only(
    home: Path, bucket: GcsLocation, name: str, field: str
) -> None:
    place = bucket / "evil"
    data = b"evil"
    path = name if field == "path" else "file"
    with at_place("run", "task", str(home.parent / "cache/made")):
        make_step(str(home.parent / "cache/made"), "run", "task", "make", "thing")
    values = json.loads((home.parent / "cache/made/run/task/thing/lineage.json").read_bytes())
    file = {"path": path, "bytes": len(data), "sha256": name if field == "file sha256" else hashlib.sha256(data).hexdigest()}
    fitting = tree_sha256([File.model_construct(**file)]) if name.isprintable() else "0" * 64
    values["artifact"] |= {"files": [file], "bytes": len(data), "uri": str(place), "version": "0" * 16, "tree_sha256": fitting}
    values["output"] = str(place)
    target = values if field == "run" else values["artifact"]
    if field in ("version", "tree_sha256", "run", "uri"):
        target[field] = name
    values["sha256"] = record_sha256(values)
    for version in {str(values["artifact"]["version"]), "0" * 16}:
        upload(f"{place.name}/version-{version}/{path}", data)
    gcs.write_bytes(place / "lineage.json", json.dumps(values).encode())
    before = outside(home)
    with contextlib.suppress(InputError, DamagedError):
        localize(str(place))
    assert outside(home) == before
    assert not Path("/tmp/paligemma-was-here").exists()
    assert not Path("/home/x").exists()


def upload(name: str, data: bytes) -> None:
    try:
        gcs.write_bytes(GcsLocation("names", name), data)
    except Exception:
        return  # a name that the service does not take


@given(st.lists(NAMES, min_size=1, max_size=3), NAMES)
@few
def test_a_manifest_in_cloud_storage_names_files_below_its_folder(
    home: Path, bucket: GcsLocation, names: list[str], version: str
) -> None:
    gcs.write_bytes(bucket / "versions/manifest", b"{}")
    for name in names:
        upload(f"versions/version-{version}/{name}", b"x")
    folder = home.parent / "cache/fetched"
    folder.mkdir(parents=True, exist_ok=True)
    before = outside(home)
    with contextlib.suppress(InputError, DamagedError):
        versions.fetch(bucket / "versions", folder, "manifest", lambda data: (version, names))
    assert outside(home) == before


@given(NAMES, NAMES)
@few
def test_runs_and_tasks_of_the_environment_are_folders_below_lineage(home: Path, run: str, task: str) -> None:
    root = home.parent / "cache/root"
    before = outside(home)
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in ((RUN_VARIABLE, run), (TASK_VARIABLE, task)):
            patch.setenv(variable, value.replace("\0", ""))
        with produce(root / "made", "thing", "make", {}, []) as draft:
            (draft.folder / "file").write_text("x")
    assert outside(home) == before
    records = [str(path.relative_to(root / "lineage")) for path in (root / "lineage").rglob("*.json")]
    assert records
    assert all(is_kept_path(path) for path in records)


@given(NAMES)
def test_a_safe_name_is_one_part_of_a_path(name: str) -> None:
    safe = safe_name(name)
    assert safe == Path(safe).name
    assert is_kept_path(f"{safe}/{safe}/x.json")
    assert safe_name(safe) == safe


def test_long_names_stay_apart_and_short_enough() -> None:
    one, other = safe_name("a" * 300), safe_name("a" * 301)
    assert one != other
    assert len(one) < 255
    assert safe_name("rows") == "rows_"  # lists of rows are in that folder


@given(NAMES.filter(bool))
@few
def test_an_expected_hash_is_a_hash(home: Path, text: str) -> None:
    before = outside(home)
    with pytest.raises(InputError, match="The expected hash cannot be used"):
        fetch.__wrapped__(output=str(home.parent / "cache/checkpoint"), sha256=text)
    assert outside(home) == before


@given(NAMES)
def test_shards_bases_and_weight_files_are_below_their_folder(text: str) -> None:
    shard = json.dumps({"file": text, "rows": 1, "bytes": 1, "sha256": "0" * 64})
    base = json.dumps({"uri": "x", "weights_file": text, "weights_sha256": "0" * 64})
    for model, data, field in ((Shard, shard, "file"), (Base, base, "weights_file")):
        try:
            found = getattr(parse_model(data, "x", model, "It"), field)
        except DamagedError:
            continue
        assert Path("/top/x") in (Path("/top/x") / found).parents
        assert ".." not in found.split("/")
    for hashed in ({"file": "x", "rows": 1, "bytes": 1, "sha256": text},):
        with pytest.raises(DamagedError):
            parse_model(json.dumps(hashed), "x", Shard, "It")


@given(NAMES)
@few
def test_an_index_of_weights_names_files_beside_it(home: Path, text: str) -> None:
    path = home / "model.safetensors.index.json"
    for name in (text, f"{text}.safetensors"):
        path.write_text(json.dumps({"weight_map": {"a": name}}))
        try:
            found = read_index(path)["a"]
        except DamagedError:
            continue
        assert (path.parent / found).parent == path.parent
        assert "\0" not in found


@given(NAMES)
def test_marks_of_what_was_pruned_name_hashes(text: str) -> None:
    mark = json.dumps({"pruned": text, "at": "2026-11-26T12:00:00+00:00", "signature": None}, indent=2) + "\n"
    with pytest.raises(DamagedError):
        parse_prune_mark(mark.encode(), "x")


def test_what_was_seen_is_read_back_or_refused(tmp_path: Path) -> None:
    assert read_seen(tmp_path / "none.json") == {}
    (tmp_path / "seen.json").write_text(json.dumps({"records": {"../x": "0" * 64}}))
    with pytest.raises(InputError, match="What was seen before is wrong"):
        read_seen(tmp_path / "seen.json")


@given(NAMES)
def test_a_location_is_one_or_is_refused(text: str) -> None:
    for said in (text, f"gs://{text}", f"gs://bucket/{text}"):
        try:
            location = parse_location(said)
        except InputError:
            continue
        if isinstance(location, GcsLocation):
            assert not {"", ".", ".."} & set(location.name.split("/")) or not location.name
            assert str(location).rstrip("/") == said.rstrip("/") or location.name == said.removeprefix(
                f"gs://{location.bucket}"
            ).strip("/")
        else:
            os.fspath(location)
