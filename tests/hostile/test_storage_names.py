"""Objects called what no file can be called, and a cache in which something else is where a copy belongs.

Which names an object may have: cloud.google.com/storage/docs/objects#naming. The Cloud Console makes an object of no bytes
whose name ends in `/` for every folder that is made in it (cloud.google.com/storage/docs/folders).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paligemma import retry
from paligemma.artifacts import store
from paligemma.artifacts.store import localize, produce
from paligemma.errors import DamagedError, InputError
from paligemma.storage import cache, folders, gcs
from paligemma.storage.location import GcsLocation, parse_location
from servers.gcs import GcsServer

BUCKET = "bucket-of-names"
STRANGE = [
    "ckpt/..",
    "ckpt/.",
    "ckpt/../../escape",
    "ckpt//b",
    "ckpt/a/",
    "ckpt/ctrl\x1b[2J",
    "ckpt/nul\x00",
    "ckpt/" + "x" * 256,
]
STRANGE += ["ckpt/a\\..\\b", "ckpt/c:evil", "ckpt/right\u202eleft"]


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with GcsServer() as running:
        running.create_bucket(BUCKET)
        yield running


@pytest.fixture(autouse=True)
def storage(server: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty bucket; gives the cache folder."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.002, maximum=0.02, timeout=1.0))
    for found in gcs.list_objects(GcsLocation(BUCKET, "")):
        gcs.delete(found.location)
    return tmp_path / "cache"


def put(name: str, data: bytes = b"data") -> None:
    gcs.write_bytes(GcsLocation(BUCKET, name), data)


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_consoles_folder_marker_is_no_file_of_the_folder(storage: Path) -> None:
    put("ckpt/", b"")
    put("ckpt/weights.npz")
    for _ in range(2):
        folder = cache.local_copy(GcsLocation(BUCKET, "ckpt"))
        assert [path.name for path in folder.iterdir()] == ["weights.npz"]
    assert list(folders.list_files(GcsLocation(BUCKET, "ckpt"))) == ["weights.npz"]
    assert folders.checksums(GcsLocation(BUCKET, "ckpt")).keys() == {"weights.npz"}


def test_an_empty_object_of_a_folders_name_stands_for_the_folder() -> None:
    put("ckpt", b"")
    put("ckpt/weights.npz")
    assert [path.name for path in cache.local_copy(GcsLocation(BUCKET, "ckpt")).iterdir()] == ["weights.npz"]


def test_an_object_and_others_below_it_are_both_to_be_had() -> None:
    put("ckpt", b"one")
    put("ckpt/weights.npz", b"two")
    assert cache.local_copy(GcsLocation(BUCKET, "ckpt")).read_bytes() == b"one"
    assert cache.local_copy(GcsLocation(BUCKET, "ckpt/weights.npz")).read_bytes() == b"two"


@pytest.mark.parametrize("name", STRANGE)
def test_an_object_that_can_be_no_file_is_passed_over(name: str, storage: Path, caplog: pytest.LogCaptureFixture) -> None:
    put("ckpt/weights.npz")
    put(name)
    assert name in {found.location.name for found in gcs.list_objects(GcsLocation(BUCKET, ""))}
    folder = cache.local_copy(GcsLocation(BUCKET, "ckpt"))
    assert everything(folder) == {"weights.npz"}
    assert everything(storage) == {"objects", f"objects/{folder.name}", f"objects/.{folder.name}.lock"} | {
        f"objects/{folder.name}/weights.npz"
    }
    assert all(character.isprintable() for message in caplog.messages for character in message)


@pytest.mark.parametrize("name", ["ckpt/..", "ckpt/.", "ckpt/ctrl\x1b[2J", "ckpt/" + "x" * 256])
def test_an_object_that_can_be_no_file_is_refused_when_it_is_named(name: str, storage: Path) -> None:
    put(name)
    with pytest.raises(InputError, match="The object's name cannot be used"):
        cache.local_copy(GcsLocation(BUCKET, name))
    assert everything(storage) == set()


def test_a_prefix_of_nothing_but_strange_names_has_no_files(storage: Path) -> None:
    put("ckpt/")
    put("ckpt/..")
    with pytest.raises(InputError, match="none directly below it"):
        cache.local_copy(GcsLocation(BUCKET, "ckpt"))
    assert everything(storage) == set()


def test_a_name_as_long_as_a_file_can_have_is_fetched() -> None:
    put("ckpt/" + "x" * 255)
    assert (cache.local_copy(GcsLocation(BUCKET, "ckpt")) / ("x" * 255)).read_bytes() == b"data"


def _file(path: Path) -> None:
    path.write_text("in the way")


def _folder(path: Path) -> None:
    (path / "in" / "the").mkdir(parents=True)
    (path / "in" / "the" / "way").write_text("x")


def _link(path: Path) -> None:
    path.symlink_to(path.parents[3] / "precious")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


OBSTACLES = [_file, _folder, _link, _dangling, _fifo]


def _remove(path: Path) -> None:
    cache.shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.parametrize("make", OBSTACLES)
def test_the_cache_of_a_prefix_heals(make: Callable[[Path], None], storage: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").write_text("mine")
    put("ckpt/weights.npz")
    place = GcsLocation(BUCKET, "ckpt")
    folder = cache.local_copy(place)
    generation = gcs.stat(place / "weights.npz").generation
    for broken in (folder / "weights.npz", folder, folder / f".weights.npz.{generation}.partial"):
        if os.path.lexists(broken):
            _remove(broken)
        make(broken)
        assert (cache.local_copy(place) / "weights.npz").read_bytes() == b"data"
        if broken.parent == folder and "partial" in broken.name:
            continue  # nothing had to be fetched
        assert stat.S_ISREG(os.lstat(folder / "weights.npz").st_mode)
        assert stat.S_ISDIR(os.lstat(folder).st_mode)
    (folder / "weights.npz").unlink()
    assert (cache.local_copy(place) / "weights.npz").read_bytes() == b"data"
    assert (tmp_path / "precious" / "thesis").read_text() == "mine"


@pytest.mark.parametrize("make", OBSTACLES)
def test_the_cache_of_an_artifact_heals(make: Callable[[Path], None], storage: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").write_text("mine")
    with produce(f"gs://{BUCKET}/made", "thing", "test", {}, []) as draft:
        (draft.folder / "file").write_text("contents")
    place = parse_location(f"gs://{BUCKET}/made")
    folder = localize(place)
    for broken in (folder, folder / "file"):
        _forget()
        _remove(broken)
        make(broken)
        assert localize(place) == folder
        assert (folder / "file").read_text() == "contents"
        assert stat.S_ISDIR(os.lstat(folder).st_mode)
    assert (tmp_path / "precious" / "thesis").read_text() == "mine"


def _forget() -> None:
    """As a new process, which has hashed nothing yet."""

    store._verified.clear()


@pytest.mark.parametrize("make", [_file, _dangling])
def test_something_in_the_way_of_the_whole_cache_is_named_and_left_alone(
    make: Callable[[Path], None], storage: Path, tmp_path: Path
) -> None:
    put("ckpt/weights.npz")
    make(storage)
    with pytest.raises(InputError, match=r"point \$PALIGEMMA_CACHE to a folder of yours"):
        cache.local_copy(GcsLocation(BUCKET, "ckpt"))
    assert os.path.lexists(storage)


def test_a_cache_of_somebody_else_is_named(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("ckpt/weights.npz")
    real = os.open

    def refuse(path: object, *arguments: object, **named: object) -> int:
        if str(path).startswith(str(storage)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)  # root may write everywhere
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        cache.local_copy(GcsLocation(BUCKET, "ckpt"))


def test_a_half_written_copy_is_fetched_again(storage: Path) -> None:
    put("ckpt/weights.npz")
    folder = cache.local_copy(GcsLocation(BUCKET, "ckpt"))
    (folder / "weights.npz").write_bytes(b"da")
    assert (cache.local_copy(GcsLocation(BUCKET, "ckpt")) / "weights.npz").read_bytes() == b"data"
    assert folder.name == hashlib.sha256(f"gs://{BUCKET}/ckpt".encode()).hexdigest()


def test_an_object_too_large_to_be_a_small_file_is_damage_and_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    put("ckpt/lineage.json", b"x" * 1000)
    monkeypatch.setattr(folders, "DOCUMENT_BYTES", 999)
    with pytest.raises(DamagedError, match="1,000 bytes"):
        folders.read_file(GcsLocation(BUCKET, "ckpt/lineage.json"))
