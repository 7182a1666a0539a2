"""A registry that somebody else wrote to: one bad release or pointer is named, and everything else is answered."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paligemma import retry
from paligemma.artifacts.store import produce
from paligemma.errors import DamagedError, InputError
from paligemma.registry.releases import (
    Manifest,
    formats_in,
    list_releases,
    promote,
    read_champion,
    read_champion_release,
    read_release,
    release_part,
    roll_back,
    verify_release,
    versions,
)
from paligemma.storage import cache, files
from paligemma.storage.location import Location, parse_location
from pipelines.cli import app
from servers.gcs import GcsServer

BUCKET = "bucket-of-releases"


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with GcsServer() as running:
        running.create_bucket(BUCKET)
        yield running


@pytest.fixture(params=["disk", "bucket"])
def registry(request: pytest.FixtureRequest, server: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registry with the releases `one` and `two`; `two` is the champion, `one` was it before."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.002, maximum=0.02, timeout=1.0))
    return two_releases(str(tmp_path / "registry") if request.param == "disk" else f"gs://{BUCKET}/{tmp_path.name}")


@pytest.fixture
def on_disk(tmp_path: Path) -> str:
    """The same in a folder."""
    return two_releases(str(tmp_path / "registry"))


def two_releases(place: str) -> str:
    for version in ("one", "two"):
        promote(release(place, version), read_champion(place))
    return place


def release(registry: str, version: str, score: object = 0.5):
    with produce(str(release_part(registry, version, "big_vision")), "checkpoint", "test", {}, []) as draft:
        (draft.folder / "checkpoint.npz").write_text(f"weights of {version}")
    with produce(str(release_part(registry, version, "release")), "release", "test", {}, []) as draft:
        manifest = Manifest(version=version, formats=list(formats_in(registry, version, ["big_vision"])))
        (draft.folder / "manifest.json").write_text(manifest.model_dump_json())
        (draft.folder / "evaluation").mkdir()
        metrics = {"primary": "exact_match", "metrics": {"exact_match": {"value": score, "low": 0.4, "high": 0.6}}}
        (draft.folder / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    return read_release(registry, version)


def champion_file(registry: str) -> Location:
    return parse_location(registry) / "champion.json"


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and what was printed; our errors are what the program would end with."""
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, InputError | DamagedError):
        return result.exception.exit_code, str(result.exception)
    assert result.exception is None, result.exception
    return result.exit_code, result.output


def champion(release: object = "two", tree: object = "0" * 64, history: object = ()) -> bytes:
    return json.dumps({"value": {"release": release, "tree_sha256": tree, "history": history}, "move": "x"}).encode()


DAMAGED = {
    "nothing": b"",
    "no JSON": b"two",
    "deep": b"[" * 100_000,
    "no pointer": b"{}",
    "a number too long": b'{"value": ' + b"1" * 10_000 + b"}",
    "a pointer to nothing we know": b'{"value": 5, "move": "x"}',
    "a path": champion("../../x"),
    "an absolute path": champion("/etc"),
    "a name with a control character": champion("a\x1b[2J"),
    "no hash": champion(tree="../x"),
    "a path in its history": champion(history=["../../x"]),
    "too large": b'{"value": "' + b"x" * 2_000_000 + b'"}',
}


@pytest.mark.parametrize("contents", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_champion_is_listed_and_a_named_release_takes_its_place(on_disk: str, contents: bytes) -> None:
    check_that_a_damaged_champion_can_be_mended(on_disk, contents)


def test_so_it_is_in_a_bucket(registry: str) -> None:
    for contents in (DAMAGED["deep"], DAMAGED["a path"], DAMAGED["too large"]):
        check_that_a_damaged_champion_can_be_mended(registry, contents)


def check_that_a_damaged_champion_can_be_mended(registry: str, contents: bytes) -> None:
    files.write_file(champion_file(registry), contents)
    code, said = run("releases", "--registry", registry)
    assert code == 0
    assert "  one  " in said
    assert "  two  " in said
    assert "! champion  " in said
    assert f"paligemma rollback VERSION --registry {registry}" in said
    code, said = run("rollback", "--registry", registry)
    assert code == 3
    assert "one, two" in said
    assert run("rollback", "two", "--registry", registry) == (0, "the champion is two, it was damaged\n")
    assert read_champion_release(registry).version == "two"


@pytest.mark.parametrize("name", ["../../x", "/etc", "..", ".", "", "a/b", "a\0b", "a\x1b[2J", "x" * 300, "one/release/.."])
def test_no_folder_outside_the_registry_is_a_release(on_disk: str, name: str, tmp_path: Path) -> None:
    shutil.copytree(Path(on_disk) / "releases" / "one", tmp_path / "x")
    before = champion_file(on_disk).read_bytes()
    for act in (read_release, lambda *where: release_part(*where, "release")):
        with pytest.raises(InputError, match="The version cannot be used"):
            act(on_disk, name)
    if name:  # none named is the one before
        with pytest.raises(InputError, match="The version cannot be used"):
            roll_back(on_disk, name)
    assert champion_file(on_disk).read_bytes() == before


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        (champion("gone"), "The champion, gone, is not there any more"),
        (champion("two"), "The champion, two, is not the release that was promoted"),
    ],
)
def test_a_champion_that_is_none_of_the_releases_is_shown(registry: str, contents: bytes, why: str) -> None:
    files.write_file(champion_file(registry), contents)
    code, said = run("releases", "--registry", registry)
    assert code == 0
    assert why in said
    assert "  one  " in said
    with pytest.raises(DamagedError, match=why):
        read_champion_release(registry)
    assert run("rollback", "one", "--registry", registry)[0] == 0
    assert read_champion_release(registry).version == "one"


def copy(registry: str, source: str, target: str) -> None:
    """Copies a release as somebody with access to the files would."""
    if registry.startswith("/"):
        shutil.copytree(Path(registry) / "releases" / source, Path(registry) / "releases" / target)
        return
    from paligemma.storage import gcs

    start = parse_location(registry) / "releases"
    for found in list(gcs.list_objects(start / source)):
        path = found.location.name.removeprefix(f"{start.name}/{source}/")
        gcs.write_bytes(start / target / path, gcs.read_bytes(found.location)[0])


def test_a_release_copied_under_another_version_is_found_out(registry: str) -> None:
    copy(registry, "one", "three")
    with pytest.raises(DamagedError, match="What is there is release one, under the name of three"):
        read_release(registry, "three")
    assert run("verify", "three", "--registry", registry)[0] == 3
    assert run("rollback", "three", "--registry", registry)[0] == 3
    code, said = run("releases", "--registry", registry)
    assert code == 0
    assert "! three  What is there is release one" in said
    assert "* two  " in said


def test_a_folder_called_what_no_release_is_is_passed_over(registry: str) -> None:
    for name in ("-x", "with space", "a\x1b[2J", ".hidden"):
        copy(registry, "one", name)
    assert versions(registry) == ["one", "two"]
    assert run("releases", "--registry", registry)[0] == 0


BAD_FILES = {
    "nothing": b"",
    "deep": b"[" * 100_000,
    "not UTF-8": b"\xff",
    "no manifest": b"{}",
    "other fields": b'{"version": "one", "formats": []}',
    "a path as a format": b'{"version": "one", "formats": [{"folder": "../../x", "tree_sha256": "'
    + b"0" * 64
    + b'", "files": []}]}',
}


@pytest.mark.parametrize("name", ["manifest.json", "lineage.json", "evaluation/metrics.json"])
@pytest.mark.parametrize("contents", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_one_bad_release_does_not_take_down_the_listing(name: str, contents: bytes, on_disk: str) -> None:
    place = on_disk
    bad = Path(place) / "releases" / "one" / "release" / name
    bad.write_bytes(contents)
    code, said = run("releases", "--registry", place)
    assert code == 0
    assert "* two  " in said
    assert " one  " in said
    assert [found.version for found in list_releases(place)[0]][-1:] == ["two"]


@pytest.mark.parametrize("score", [None, "x", [], {}])
def test_a_release_without_a_score_is_listed_as_such(score: object, tmp_path: Path) -> None:
    place = str(tmp_path / "registry")
    release(place, "one", score)
    assert "The evaluation of the release has no score." in run("releases", "--registry", place)[1]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_champion_that_is_no_file_does_not_hang(make, tmp_path: Path) -> None:
    place = str(tmp_path / "registry")
    release(place, "one")
    make(champion_file(place))
    code, said = run("releases", "--registry", place)
    assert code == 0
    assert "  one  " in said
    assert "remove what is there instead" in said
    assert run("rollback", "one", "--registry", place)[0] == 3


def test_whole_releases_verify(registry: str) -> None:
    assert verify_release(read_release(registry, "one")) == 3
    assert run("verify", "two", "--registry", registry) == (0, "3 files are as they were recorded\n")
