"""Downloaded Hugging Face snapshots: found without network, and never a file that is not the cache's."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paligemma.checkpoints.safetensors_files import INDEX_FILE
from paligemma.checkpoints.sources.fetch import fetch_first
from paligemma.checkpoints.sources.huggingface import cache_folder, checkpoint_files, fetch, snapshot_folder
from paligemma.errors import DamagedError, InputError
from paligemma.extras import how_to_install
from paligemma.storage.failures import StorageUnavailableError

SOURCE = "hf://google/paligemma-3b-pt-224"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
FILES = {
    "config.json": b"{}",
    INDEX_FILE: json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}}).encode(),
    SHARDS[0]: b"first",
    SHARDS[1]: b"second",
    "tokenizer.model": b"pieces",
    "preprocessor_config.json": b"{}",
}
OTHERS = {"pytorch_model.bin": b"pickle", "flax_model.msgpack": b"m", "README.md": b"r", "consolidated.safetensors": b"twice"}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `hf download` makes of FILES and OTHERS, on the branch `main`."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--google--paligemma-3b-pt-224"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    for number, (name, contents) in enumerate({**FILES, **OTHERS}.items()):
        (folder / "blobs" / f"{number:040x}").write_bytes(contents)
        (snapshot / name).symlink_to(f"../../blobs/{number:040x}")
    add_reference(folder, "main")
    return folder


def add_reference(repository: Path, revision: str) -> None:
    reference = repository / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(COMMIT)


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}", "@float16", "@refs/pr/3"])
def test_a_snapshot_is_found_by_branch_and_by_commit(repository: Path, revision: str) -> None:
    add_reference(repository, "float16")
    add_reference(repository, "refs/pr/3")
    assert snapshot_folder(SOURCE + revision) == repository / "snapshots" / COMMIT
    assert fetch_first(SOURCE + revision) == (SOURCE + revision, str(repository / "snapshots" / COMMIT))


def test_its_files_are_those_of_a_checkpoint_with_links_followed(repository: Path) -> None:
    files = checkpoint_files(snapshot_folder(SOURCE))
    assert {name: path.read_bytes() for name, path in files.items()} == FILES
    assert {path.parent for path in files.values()} == {repository.resolve() / "blobs"}


def test_weights_in_one_file_need_no_index(repository: Path) -> None:
    snapshot = repository / "snapshots" / COMMIT
    for path in [snapshot / INDEX_FILE, *snapshot.glob("*.safetensors")]:
        path.unlink()
    (snapshot / "model.safetensors").write_bytes(b"all")  # a cache without links, as on Windows
    assert checkpoint_files(snapshot_folder(SOURCE))["model.safetensors"].read_bytes() == b"all"


@pytest.mark.parametrize("source", [f"{SOURCE}@float16", f"{SOURCE}@{'f' * 40}", "hf://google/paligemma2-3b-pt-224"])
def test_what_was_not_downloaded_gives_the_command_and_the_page(repository: Path, source: str) -> None:
    with pytest.raises(InputError) as caught:
        snapshot_folder(source)
    model, _, revision = source.removeprefix("hf://").partition("@")
    assert f"hf download {model} --revision {revision or 'main'}" in str(caught.value)
    assert f"accept the licence at https://huggingface.co/{model}," in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", SHARDS[1]])
@pytest.mark.parametrize("blob_only", [True, False])
def test_an_incomplete_download_is_named(repository: Path, name: str, blob_only: bool) -> None:
    link = repository / "snapshots" / COMMIT / name
    (link.resolve() if blob_only else link).unlink()
    with pytest.raises(InputError, match="not complete") as caught:
        snapshot_folder(SOURCE)
    assert name in str(caught.value)
    assert "hf download google/paligemma-3b-pt-224 --revision main" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", SHARDS[0]])
def test_a_link_out_of_the_cache_is_not_followed(repository: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    link = repository / "snapshots" / COMMIT / name
    link.unlink()
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(DamagedError, match="leads out of the Hugging Face cache"):
        snapshot_folder(SOURCE)


@pytest.mark.parametrize(
    "index",
    [b"", b"[]", b'{"weight_map": ["a"]}', b'{"weight_map": {"a": "../../x.safetensors"}}', b'{"weight_map": {"a": "x.bin"}}'],
)
def test_an_index_that_names_anything_else_is_damaged(repository: Path, index: bytes) -> None:
    (repository / "snapshots" / COMMIT / INDEX_FILE).resolve().write_bytes(index)
    with pytest.raises(DamagedError, match="index of the weights"):
        snapshot_folder(SOURCE)


@pytest.mark.parametrize("source", ["hf://gpt2", "hf://a/b/c", "hf://a/b@", "hf://../b", "hf://a/b@../../x", "hf://a/b@-x"])
def test_what_names_no_model_is_refused(repository: Path, source: str) -> None:
    with pytest.raises(InputError, match="hf://owner/name"):
        snapshot_folder(source)


def test_a_reference_that_is_no_commit_leads_nowhere(repository: Path) -> None:
    (repository / "refs" / "main").write_text("../../elsewhere")
    with pytest.raises(InputError, match="has not been downloaded"):
        snapshot_folder(SOURCE)


def test_the_cache_is_where_hugging_face_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/x")
    assert cache_folder() == Path("/home/x/.cache/huggingface/hub")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert cache_folder() == Path("/home/x/hf/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/mounted")
    assert cache_folder() == Path("/mounted")


class Hub:
    """Stands for the library, which is optional: downloads by `answer`, which writes a cache or raises."""

    class errors:  # noqa: N801
        class HfHubHTTPError(OSError):
            pass

        class RepositoryNotFoundError(HfHubHTTPError):
            pass

        class GatedRepoError(RepositoryNotFoundError):
            pass

        class RevisionNotFoundError(HfHubHTTPError):
            pass

    def __init__(self, answer: Callable[[], None]) -> None:
        self.asked: list[tuple[str, dict]] = []
        self._answer = answer

    def snapshot_download(self, repo_id: str, **options: object) -> None:
        self.asked.append((repo_id, options))
        self._answer()


def stand_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


def test_what_is_not_there_is_downloaded_once(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = repository.with_name("aside")
    repository.rename(aside)
    hub = Hub(lambda: aside.rename(repository))
    stand_in(hub, monkeypatch)
    for _ in range(2):
        assert fetch(SOURCE) == repository / "snapshots" / COMMIT
    ((name, options),) = hub.asked
    assert (name, options["revision"], options["cache_dir"]) == ("google/paligemma-3b-pt-224", "main", repository.parent)
    assert {"config.json", "tokenizer.model", "*.safetensors"} < set(options["allow_patterns"])
    assert not any(pattern.endswith((".bin", "*")) for pattern in options["allow_patterns"])  # nothing pickled


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (Hub.errors.GatedRepoError(), InputError, "accept the licence on the page; set HF_TOKEN"),
        (Hub.errors.RepositoryNotFoundError(), InputError, "or it is private"),
        (Hub.errors.RevisionNotFoundError(), InputError, "no such revision"),
        (Hub.errors.HfHubHTTPError("503, with a signed address"), StorageUnavailableError, "could not be fetched"),
        (ConnectionError("no network"), StorageUnavailableError, "could not be fetched"),
    ],
)
def test_a_download_that_fails_says_what_to_do(
    repository: Path, error: Exception, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(repository / "none"))
    stand_in(Hub(fail), monkeypatch)
    with pytest.raises(kind, match=said) as caught:
        fetch("hf://google/paligemma2-3b-pt-224")
    assert "signed" not in str(caught.value)


def test_without_the_library_the_message_says_how_to_add_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError) as caught:
        fetch("hf://google/paligemma2-3b-pt-224")
    assert "hf download google/paligemma2-3b-pt-224" in str(caught.value)
    assert how_to_install("huggingface") in str(caught.value)
