"""fetch_checkpoint from Kaggle and from the web: real clients, local servers, faults between."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.fetch_checkpoint.main import run
from conftest import ONE_DEVICE, REPOSITORY
from paligemma.checkpoints.npz import verify_weights
from paligemma.checkpoints.open import resolve_embedded
from paligemma.checkpoints.sources.remote import redacted
from paligemma.errors import DamagedError, InputError
from paligemma.lineage.record import file_sha256, read_record
from paligemma.storage import cache, retry, space
from paligemma.storage.location import GcsLocation
from servers.fault_proxy import Corrupt, FaultProxy, ResetBody, Status, Truncate
from servers.gcs import GcsServer
from servers.kaggle import KaggleServer

TINY = resolve_embedded("embedded:tiny")
WEIGHTS = (TINY / "checkpoint.npz").read_bytes()
SHA256 = file_sha256(TINY / "checkpoint.npz")
TOKENIZER = str(TINY / "tokenizer.model")
HANDLE = "kaggle://google/paligemma/jax/paligemma-3b-pt-224/1"
FILE = "paligemma-3b-pt-224.f16.npz"


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.001, maximum=0.01, timeout=2.0))


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    with KaggleServer({FILE: WEIGHTS, "paligemma-3b-pt-224.npz": b"the float32 file"}) as server:
        lead_to(server, monkeypatch)
        yield server


def lead_to(server: KaggleServer, monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy | None = None) -> None:
    for name, value in server.environment(proxy.url if proxy else None).items():
        monkeypatch.setenv(name, value)


def fetch(tmp_path: Path, source: str, **options: str) -> Path:
    run(output=str(tmp_path / "x"), source=source, tokenizer=TOKENIZER, **options)
    return tmp_path / "x"


def test_kaggle_gives_the_file_of_the_precision(kaggle: KaggleServer, tmp_path: Path) -> None:
    folder = fetch(tmp_path, HANDLE, sha256=SHA256)
    assert (folder / FILE).read_bytes() == WEIGHTS
    (weights,) = (entry for entry in read_record(folder).inputs if entry.role == "weights")
    assert (weights.uri, weights.sha256) == (HANDLE, SHA256)
    asked = len(kaggle.requests)
    fetch(tmp_path, HANDLE, sha256=SHA256)
    content = [request for request, _ in kaggle.requests[asked:] if request.method == "GET"]
    assert content == []  # a second run copies nothing


def test_a_version_is_required(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no version"):
        fetch(tmp_path, HANDLE.removesuffix("/1"))


def test_an_unaccepted_licence_gives_the_page_and_the_step(kaggle: KaggleServer, tmp_path: Path) -> None:
    kaggle.accepted = False
    with pytest.raises(InputError, match=r"accept the model's licence at https://www\.kaggle\.com/models/google/paligemma"):
        fetch(tmp_path, HANDLE)


def test_missing_credentials_give_the_page_and_the_step(kaggle: KaggleServer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("KAGGLE_KEY")
    with pytest.raises(InputError, match=r"https://www\.kaggle\.com/settings"):
        fetch(tmp_path, HANDLE)


def test_credentials_from_a_mounted_file(kaggle: KaggleServer, tmp_path: Path, monkeypatch) -> None:
    import json

    environment = kaggle.environment()
    folder = tmp_path / "home" / ".kaggle"
    folder.mkdir(parents=True)
    file = folder / "kaggle.json"
    file.write_text(json.dumps({"username": environment["KAGGLE_USERNAME"], "key": environment["KAGGLE_KEY"]}))
    file.chmod(0o600)
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(folder))
    assert (fetch(tmp_path, HANDLE) / FILE).read_bytes() == WEIGHTS


def test_a_file_that_is_not_there_is_named(kaggle: KaggleServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file paligemma-3b-pt-224\.bf16\.npz"):
        fetch(tmp_path, HANDLE, precision="bfloat16")


@pytest.mark.parametrize("fault", [Status(503), ResetBody(1_000_000), Truncate(500_000), Corrupt(1_500_000)])
def test_kaggle_through_faults(kaggle: KaggleServer, tmp_path: Path, monkeypatch, fault) -> None:
    """The first two transfers of contents fail; what kagglehub does not notice, we do."""
    met: list[int] = []

    def faults(request):
        if request.method != "GET" or len(met) == 2:
            return None
        met.append(request.number)
        return fault

    with FaultProxy(kaggle.url, faults) as proxy:
        lead_to(kaggle, monkeypatch, proxy)
        folder = fetch(tmp_path, HANDLE)
    assert (folder / FILE).read_bytes() == WEIGHTS
    assert met


def test_no_credential_is_in_any_output(kaggle: KaggleServer, tmp_path: Path) -> None:
    """Of a run that succeeds and of one that fails: standard output and error, and every file written."""
    secret = kaggle.environment()["KAGGLE_KEY"]
    environment = {**ONE_DEVICE, **kaggle.environment(), "HOME": str(tmp_path), "KAGGLEHUB_CACHE": str(tmp_path / "kagglehub")}
    command = [sys.executable, "-m", "components.fetch_checkpoint.main", "--source", HANDLE, "--tokenizer", TOKENIZER]
    for accepted in (True, False):
        kaggle.accepted = accepted
        done = subprocess.run(
            [*command, "--output", str(tmp_path / f"out{accepted}"), "--precision", "float16" if accepted else "bfloat16"],
            cwd=REPOSITORY, env=environment, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == (0 if accepted else 2), done.stderr
        assert secret.encode() not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """Address of the weights on a web server that serves ranges."""
    with GcsServer() as server:
        server.create_bucket("bucket-of-the-web")
        blob = server.client().bucket("bucket-of-the-web").blob("tiny.npz")
        blob.upload_from_string(WEIGHTS)
        yield f"{server.url}/download/storage/v1/b/bucket-of-the-web/o/tiny.npz?alt=media&signature=SECRET"


def test_the_web_with_a_hash(web: str, tmp_path: Path) -> None:
    folder = fetch(tmp_path, web, sha256=SHA256)
    assert (folder / "tiny.npz").read_bytes() == WEIGHTS
    assert "SECRET" not in (folder / "lineage.json").read_text()


def test_the_web_without_a_hash_is_refused(web: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sha256") as caught:
        fetch(tmp_path, web)
    assert "SECRET" not in str(caught.value)


def test_another_file_than_expected_is_damaged(web: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="not the expected file"):
        fetch(tmp_path, web, sha256="0" * 64)
    assert not (tmp_path / "x").exists()


def test_an_interrupted_download_goes_on(web: str, tmp_path: Path) -> None:
    def faults(request):
        first = (ResetBody(1_000_000), Truncate(400_000), Status(503), Corrupt(3))
        return first[request.number] if request.number < len(first) else None

    host, _, rest = web.removeprefix("http://").partition("/")
    with FaultProxy(f"http://{host}", faults) as proxy:
        folder = fetch(tmp_path, f"{proxy.url}/{rest}", sha256=SHA256)
        ranges = [request.range for request, _, _ in proxy.log]
    assert (folder / "tiny.npz").read_bytes() == WEIGHTS
    assert ranges[0] is None
    assert ranges[1].startswith("bytes=")
    assert ranges[1] != "bytes=0-"


def test_sources_are_tried_in_turn(web: str, tmp_path: Path, caplog) -> None:
    folder = fetch(tmp_path, f"/nowhere.npz, {web}", sha256=SHA256)
    assert (folder / "tiny.npz").exists()
    assert "/nowhere.npz cannot be had" in caplog.text
    with pytest.raises(InputError, match="no checkpoint file"):
        fetch(tmp_path, "/nowhere.npz, /nor/here.npz")


@pytest.mark.parametrize("source", ["ftp://x/y.npz", " , "])
def test_what_is_no_source_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(InputError):
        fetch(tmp_path, source)


def test_a_flipped_byte_of_the_weights_is_found(tmp_path: Path) -> None:
    damaged = bytearray(WEIGHTS)
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "x.npz").write_bytes(damaged)
    with pytest.raises(DamagedError, match="do not match its checksum"):
        verify_weights(tmp_path / "x.npz")
    with pytest.raises(DamagedError):
        fetch(tmp_path, str(tmp_path / "x.npz"))


def test_a_disk_without_room_is_found_first(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(space, "MARGIN", 1 << 60)
    with pytest.raises(InputError, match="not enough room"):
        fetch(tmp_path, "embedded:tiny")
    assert not (tmp_path / "x").exists()


def test_secrets_of_an_address_are_left_out() -> None:
    assert redacted("https://user:password@host/a.npz?token=1#2") == "https://host/a.npz"
    assert redacted("gs://b/x") == "gs://b/x"
    assert redacted("embedded:tiny") == "embedded:tiny"
    assert str(GcsLocation("b", "x")) == "gs://b/x"
