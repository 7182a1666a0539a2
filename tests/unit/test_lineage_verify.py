"""What was changed, deleted, added or forged is found, and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from lineage_runs import make_run

from paligemma.artifacts.record import Record, parse_record, render_record
from paligemma.artifacts.signing import KEY_VARIABLE, read_public_key
from paligemma.errors import InputError
from paligemma.lineage.index import Index
from paligemma.lineage.verify import Problem, verify
from paligemma.storage import cache, gcs
from paligemma.storage.location import parse_location
from servers.gcs import GcsServer

ROWS = [("1.png", "one"), ("2.png", "two")]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("rows\n")
    make_run(tmp_path / "root", "one", ROWS, tmp_path / "rows.jsonl", release=True)
    return tmp_path / "root"


def problems(root: Path | str) -> list[Problem]:
    with Index(root, thorough=True) as index:
        return verify(index).problems


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def files_of(root: Path) -> Iterator[Path]:
    yield from (path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith("."))


def test_a_whole_root_has_no_problems(root: Path) -> None:
    with Index(root) as index:
        found = verify(index)
    assert (found.problems, found.records, found.artifacts) == ([], 6, 6)
    assert found.bytes == sum(path.stat().st_size for path in files_of(root) if path.name in ("file", "rows.jsonl"))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_flipped_byte_in_any_file_is_found_and_named(root: Path, share: float) -> None:
    for file in list(files_of(root)):
        before = file.read_bytes()
        flip(file, int(share * len(before)))
        assert str(file) in {problem.where for problem in problems(root)}, file
        file.write_bytes(before)
    assert problems(root) == []


def test_any_deleted_file_is_found_and_named(root: Path) -> None:
    assert problems(root) == []
    for file in list(files_of(root)):
        before = file.read_bytes()
        file.unlink()
        found = {problem.where: problem.kind for problem in problems(root)}
        assert found[str(file)] == "missing"
        file.write_bytes(before)
    assert problems(root) == []


def test_a_deleted_record_is_missed_by_its_users(root: Path) -> None:
    (record,) = (root / "lineage/one/train").iterdir()
    record.unlink()
    found = {(problem.kind, problem.where) for problem in problems(root)}
    users = {str(path) for task in ("validation", "finetune") for path in (root / "lineage/one" / task).iterdir()}
    assert {where for kind, where in found if kind == "broken chain"} == users
    assert ("orphaned", str(root / "one/train/records")) in found


@pytest.mark.parametrize("name", ["train/records", "publish/release"])
def test_a_deleted_artifact_is_found(root: Path, name: str) -> None:
    shutil.rmtree(root / "one" / name)
    assert [(problem.kind, problem.where) for problem in problems(root)] == [("missing", str(root / "one" / name))]


def test_an_added_file_is_found(root: Path) -> None:
    (root / "one/train/records/more").write_text("x")
    assert [problem.where for problem in problems(root)] == [str(root / "one/train/records/more")]


def test_a_replaced_artifact_is_no_problem(root: Path, tmp_path: Path) -> None:
    make_run(root, "one", ROWS[:1], tmp_path / "rows.jsonl")
    with Index(root) as index:
        found = verify(index)
    assert found.problems == []
    assert str(root / "one/train/records") in found.replaced


def test_a_record_in_another_ones_place_is_found(root: Path) -> None:
    (of_train,), (of_fetch,) = ((root / "lineage/one" / task).iterdir() for task in ("train", "fetch"))
    of_train.write_bytes(of_fetch.read_bytes())
    assert Problem("altered", str(of_train), f"it is the record of one/fetch/{of_fetch.stem}") in problems(root)


def rewrite(root: Path, change: Callable[[Record], Record]) -> None:
    """Forges the release's record in both places, with a hash that fits."""
    from paligemma.artifacts.recording import seal

    (copy,) = (root / "lineage/one/publish").iterdir()
    forged = render_record(seal(change(parse_record(copy.read_bytes(), copy))))
    for path in (copy, root / "one/publish/release/lineage.json"):
        path.write_bytes(forged)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    private = Ed25519PrivateKey.generate()
    file = tmp_path / "key.pem"
    file.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "key.pub").write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return file


def signature_problems(root: Path, public: Path) -> list[Problem]:
    with Index(root) as index:
        return verify(index, read_public_key(public)).problems


def test_signed_records_are_checked_with_the_public_key(key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text("rows\n")
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    root = tmp_path / "root"
    make_run(root, "one", ROWS, tmp_path / "rows.jsonl", release=True)
    assert signature_problems(root, key.with_suffix(".pub")) == []
    monkeypatch.delenv(KEY_VARIABLE)
    rewrite(root, lambda record: record.model_copy(update={"metrics": {"exact_match": 1.0}}))
    assert problems(root) == []  # nothing but a signature tells
    (found,) = signature_problems(root, key.with_suffix(".pub"))
    assert (found.kind, found.what) == ("bad signature", "it is not signed")


def test_a_signature_is_of_one_record_and_one_key(
    key: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {problem.what for problem in signature_problems(root, key.with_suffix(".pub"))} == {"it is not signed"}
    (tmp_path / "other").mkdir()
    other = Ed25519PrivateKey.generate()
    (tmp_path / "other/key.pem").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "other/key.pem"))
    rewrite(root, lambda record: record)
    assert "it is signed with another key" in {problem.what for problem in signature_problems(root, key.with_suffix(".pub"))}
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    rewrite(root, lambda record: record)
    signed = parse_record((root / "one/publish/release/lineage.json").read_bytes(), "x").signature
    monkeypatch.delenv(KEY_VARIABLE)
    rewrite(root, lambda record: record.model_copy(update={"seconds": 1.0}))
    for path in (root / "one/publish/release/lineage.json", *(root / "lineage/one/publish").iterdir()):
        path.write_bytes(render_record(parse_record(path.read_bytes(), path).model_copy(update={"signature": signed})))
    found = signature_problems(root, key.with_suffix(".pub"))
    assert "its signature does not fit its contents" in {problem.what for problem in found}


def test_what_is_no_key_is_refused(key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no public key"):
        read_public_key(key)
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "none.pem"))
    with pytest.raises(InputError, match="cannot be signed"):
        make_run(tmp_path / "root", "one", ROWS, key)


def test_a_prefix_in_cloud_storage_is_verified_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text("rows\n")
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    with GcsServer() as server:
        server.create_bucket("bucket")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        made = make_run("gs://bucket/root", "one", ROWS, tmp_path / "rows.jsonl")
        assert problems("gs://bucket/root") == []
        train = parse_location(made["train"])
        (file,) = (found for found in gcs.list_objects(train) if found.location.name.endswith("/file"))
        gcs.write_bytes(file.location, b"other")
        gcs.delete(parse_location(made["finetune"]) / "lineage.json")
        (record,) = (found.location for found in gcs.list_objects(parse_location("gs://bucket/root/lineage/one/fetch")))
        gcs.write_bytes(record, gcs.read_bytes(record)[0].replace(b'"seconds": ', b'"seconds": 1'))
        found = {(problem.kind, problem.where) for problem in problems("gs://bucket/root")}
    assert ("altered", str(file.location)) in found
    assert ("missing", f"{made['finetune']}/lineage.json") in found
    assert ("altered", str(record)) in found
