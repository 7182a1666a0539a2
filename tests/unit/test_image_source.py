"""Images in folders, in tar files, and in neither."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from paligemma.data.image_source import _Bucket, open_images
from paligemma.data.rows import RowError
from paligemma.storage.location import GcsLocation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file in a tree, and a tar file with two, a link out of it, and a name that leads out."""
    root = tmp_path / "images"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "a.png").write_bytes(b"a")
    (tmp_path / "secret").write_bytes(b"secret")
    with tarfile.open(root / "deep" / "x.tar", "w") as tar:
        for name, data in (("./b.png", b"bb"), ("c/c.png", b"ccc"), ("../../secret", b"inside")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../../secret"
        tar.addfile(link)
    (root / "cut.tar").write_bytes((root / "deep" / "x.tar").read_bytes()[:700])
    (root / "folder.tar").mkdir()
    (root / "folder.tar" / "d.png").write_bytes(b"dddd")
    return root


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("deep/er/a.png", b"a"),
        ("deep/x.tar/b.png", b"bb"),
        ("deep/x.tar/c/c.png", b"ccc"),
        ("deep/x.tar/../../secret", b"inside"),  # the member of that name
        ("folder.tar/d.png", b"dddd"),
    ],
)
def test_a_name_goes_through_folders_and_tar_files(folder: Path, name: str, data: bytes) -> None:
    assert open_images(folder).read(name) == data


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("deep/x.tar/none.png", "image_missing"),
        ("deep/x.tar/link", "image_missing"),
        ("deep/x.tar", None),
        ("none.tar/a.png", "image_missing"),
        ("cut.tar/c/c.png", "image_missing"),
        ("../images/deep/x.tar/b.png", None),
        ("../secret", "image_path_unsafe"),
        ("../none.tar/a.png", "image_path_unsafe"),
    ],
)
def test_what_is_not_there_has_a_code(folder: Path, name: str, code: str | None) -> None:
    if code is None:  # it stays inside the folder: whether it is an image is for others to say
        assert open_images(folder).read(name)
        return
    with pytest.raises(RowError) as caught:
        open_images(folder).read(name)
    assert caught.value.code == code


def test_a_link_out_is_unsafe_in_a_folder_that_is_known_too(folder: Path) -> None:
    images = open_images(folder)
    assert images.read("deep/er/a.png") == images.read("deep/er/a.png") == b"a"
    (folder / "deep/er/out").symlink_to(folder.parent / "secret")
    (folder / "deep/er/in").symlink_to("a.png")
    (folder / "away").symlink_to(folder.parent)
    (folder.parent / "back").symlink_to(folder / "deep/er/a.png")
    assert images.read("deep/er/in") == b"a"
    assert images.read("away/back") == b"a"  # a way through outside that ends inside does not open that folder
    codes = {"deep/er/out": "image_path_unsafe", "away/secret": "image_path_unsafe", "deep/er/..": "image_missing"}
    for name, code in codes.items():
        with pytest.raises(RowError) as caught:
            images.read(name)
        assert caught.value.code == code


def test_what_is_fetched_ahead_is_bounded_in_bytes_and_nothing_is_lost(monkeypatch) -> None:
    objects = {f"{number}.png": bytes([number]) * 400 for number in range(8)}
    fetched: list[str] = []

    def read_bytes(where, generation) -> tuple[bytes, int]:
        fetched.append(str(where).rpartition("/")[2])
        return objects[fetched[-1]], generation

    monkeypatch.setattr("paligemma.data.image_source.MOST_AHEAD", 1000)
    monkeypatch.setattr("paligemma.storage.gcs.stat", lambda where: SimpleNamespace(location=where, size=400, generation=1))
    monkeypatch.setattr("paligemma.storage.gcs.read_bytes", read_bytes)
    monkeypatch.setattr("paligemma.storage.gcs.STREAMS", 1)
    source = _Bucket(GcsLocation("bucket", "images"))
    source.expect(objects)
    source._pool.shutdown()  # when everything has come that may
    assert fetched == ["0.png", "1.png"]
    assert [source.read(name) for name in objects] == list(objects.values())
    assert len(fetched) == 8
