"""fetch_checkpoint from Kaggle and from the web: real clients, local servers, faults between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kagglehub
import pytest
from kagglehub.exceptions import DataCorruptionError

from components.fetch_checkpoint.__main__ import run
from conftest import ONE_DEVICE, REPOSITORY, XLA_FLAGS
from paligemma import retry
from paligemma.artifacts.record import file_sha256, read_record
from paligemma.checkpoints.npz import verify_weights
from paligemma.checkpoints.open_checkpoint import resolve_embedded
from paligemma.checkpoints.sources.kaggle import SECRET_VARIABLE
from paligemma.checkpoints.sources.remote import DOWNLOADS, redacted
from paligemma.errors import DamagedError, InputError
from paligemma.google import secret_manager
from paligemma.storage import cache, disk_space, failures
from paligemma.storage.location import GcsLocation
from paligemma.web_client import HOSTS_VARIABLE
from servers.fault_proxy import Corrupt, FaultProxy, ResetBody, Status, Truncate
from servers.gcs import GcsServer
from servers.kaggle import KaggleServer
from servers.secret_manager import ACCOUNT, SecretServer

TINY = resolve_embedded("embedded:tiny")
WEIGHTS = (TINY / "checkpoint.npz").read_bytes()
SHA256 = file_sha256(TINY / "checkpoint.npz")
TOKENIZER = str(TINY / "tokenizer.model")
HANDLE = "kaggle://google/paligemma/jax/paligemma-3b-pt-224/1"
FILE = "paligemma-3b-pt-224.f16.npz"


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", SECRET_VARIABLE, "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(HOSTS_VARIABLE, "127.0.0.1")
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.001, maximum=0.01, timeout=30.0))


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


@pytest.mark.parametrize("times", [2, 99])
def test_what_kagglehub_itself_finds_damaged_is_fetched_anew(
    kaggle: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """kagglehub compares the MD5 of an answer that has one, and removes the file."""
    download, failures = kagglehub.model_download, iter([DataCorruptionError("The MD5 checksum is wrong.")] * times)

    def model_download(*arguments: str, **options: object) -> str:
        for failure in failures:
            raise failure
        return download(*arguments, **options)

    monkeypatch.setattr(kagglehub, "model_download", model_download)
    if times == 2:
        assert (fetch(tmp_path, HANDLE) / FILE).read_bytes() == WEIGHTS
        return
    with pytest.raises(DamagedError, match="never arrived whole: The MD5 checksum is wrong"):
        fetch(tmp_path, HANDLE)
    assert len(list(failures)) == times - DOWNLOADS


def test_no_credential_is_in_any_output(kaggle: KaggleServer, tmp_path: Path) -> None:
    """Of a run that succeeds and of one that fails: standard output and error, and every file written."""
    secret = kaggle.environment()["KAGGLE_KEY"]
    environment = {**ONE_DEVICE, **kaggle.environment(), "HOME": str(tmp_path), "KAGGLEHUB_CACHE": str(tmp_path / "kagglehub")}
    command = [sys.executable, "-m", "components.fetch_checkpoint", "--source", HANDLE, "--tokenizer", TOKENIZER]
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


SECRET = "projects/project/secrets/kaggle/versions/latest"
NO_JSON = "projects/project/secrets/other/versions/3"
WITHOUT_KEY = "projects/project/secrets/half/versions/1"


@pytest.fixture
def vault(kaggle: KaggleServer, tmp_path: Path, monkeypatch) -> Iterator[SecretServer]:
    """Secret Manager with Kaggle's credentials, which are nowhere else; the process runs as a service account."""
    environment = kaggle.environment()
    username, key = environment["KAGGLE_USERNAME"], environment["KAGGLE_KEY"]
    payloads = {
        SECRET: json.dumps({"username": username, "key": key}).encode() + b"\n",
        NO_JSON: f"{username}:{key}".encode(),
        WITHOUT_KEY: json.dumps({"username": username, "key": " ", "note": key}).encode(),
    }
    with SecretServer(payloads) as server:
        credentials = server.credentials_file(tmp_path / "account.json")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(credentials))
        monkeypatch.setenv(SECRET_VARIABLE, SECRET)
        monkeypatch.setattr(secret_manager, "ENDPOINT", server.url)
        monkeypatch.delenv("KAGGLE_USERNAME")
        monkeypatch.delenv("KAGGLE_KEY")
        yield server


def accesses(vault: SecretServer) -> list[int]:
    """Statuses of the requests for secrets, without those for tokens."""
    return [status for request, status in vault.requests if request.path != "/token"]


def test_credentials_from_secret_manager_stay_in_memory(vault: SecretServer, kaggle: KaggleServer, tmp_path: Path) -> None:
    from kagglehub.config import get_kaggle_credentials

    before = dict(os.environ)
    assert (fetch(tmp_path, HANDLE) / FILE).read_bytes() == WEIGHTS
    assert accesses(vault) == [200]
    assert dict(os.environ) == before
    assert get_kaggle_credentials() is None


def test_the_environment_comes_before_a_file_and_a_file_before_secret_manager(
    vault: SecretServer, kaggle: KaggleServer, tmp_path: Path, monkeypatch
) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    environment = kaggle.environment()
    good = {"username": environment["KAGGLE_USERNAME"], "key": environment["KAGGLE_KEY"]}
    (folder / "kaggle.json").write_text(json.dumps(good))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(folder))
    fetch(tmp_path, HANDLE)
    assert vault.requests == []
    (folder / "kaggle.json").write_text(json.dumps({**good, "key": "wrong"}))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "another"))
    with pytest.raises(InputError, match="requires credentials"):
        fetch(tmp_path, HANDLE)
    monkeypatch.setenv("KAGGLE_USERNAME", good["username"])
    monkeypatch.setenv("KAGGLE_KEY", good["key"])
    fetch(tmp_path, HANDLE)
    assert vault.requests == []


def test_a_mounted_file_that_is_broken_is_named(kaggle: KaggleServer, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "kaggle.json").write_text('{"username": "somebody"')
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("KAGGLE_KEY")
    with pytest.raises(InputError, match=f"Invalid Kaggle credentials file at {tmp_path}"):
        fetch(tmp_path, HANDLE)


@pytest.mark.parametrize(
    ("refusal", "what", "step"),
    [
        (
            (403, "Permission 'secretmanager.versions.access' denied"),
            "Not allowed to read the secret",
            "gcloud secrets add-iam-policy-binding kaggle --project project --member serviceAccount:"
            f"{ACCOUNT} --role roles/secretmanager.secretAccessor",
        ),
        (
            (403, "SERVICE_DISABLED"),
            "not enabled in the project",
            "gcloud services enable secretmanager.googleapis.com --project project",
        ),
        ((404, "not found"), "There is no secret", "gcloud secrets create kaggle --project project --data-file"),
        ((400, "Version is in DESTROYED state"), "does not give", "gcloud secrets versions list kaggle --project project"),
    ],
)
def test_a_refused_secret_gives_the_step_to_take(
    vault: SecretServer, tmp_path: Path, refusal: tuple[int, str], what: str, step: str
) -> None:
    vault.refusals[SECRET] = refusal
    with pytest.raises(InputError, match=what) as caught:
        fetch(tmp_path, HANDLE)
    assert f"to do:    {step}" in str(caught.value) or f": {step}" in str(caught.value)
    assert refusal[1] in str(caught.value)
    assert accesses(vault) == [refusal[0]]  # asked once


@pytest.mark.parametrize("name", [NO_JSON, WITHOUT_KEY])
def test_a_secret_that_is_no_kaggle_json_is_not_shown(
    vault: SecretServer, kaggle: KaggleServer, tmp_path: Path, monkeypatch, name: str
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, name)
    with pytest.raises(InputError, match=r"gcloud secrets versions add (other|half) --project project") as caught:
        fetch(tmp_path, HANDLE)
    assert kaggle.environment()["KAGGLE_KEY"] not in str(caught.value)
    assert kaggle.requests == []


@pytest.mark.parametrize("name", ["the key itself", "projects/p/secrets/../versions/1", f"{SECRET}:access?x="])
def test_what_is_no_name_of_a_secret_is_not_shown_and_not_asked_for(
    vault: SecretServer, tmp_path: Path, monkeypatch, name: str
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, name)
    with pytest.raises(InputError, match="projects/PROJECT/secrets/SECRET/versions/latest") as caught:
        fetch(tmp_path, HANDLE)
    assert name not in str(caught.value)
    assert vault.requests == []


def test_without_google_credentials_the_step_is_given(vault: SecretServer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(InputError, match="gcloud auth application-default login"):
        fetch(tmp_path, HANDLE)
    assert vault.requests == []


@pytest.mark.parametrize("fault", [Status(503), Status(429), ResetBody(10), Truncate(20), Corrupt(90), Corrupt(0)])
def test_a_secret_through_faults(vault: SecretServer, tmp_path: Path, monkeypatch, fault) -> None:
    with FaultProxy(vault.url, lambda request: fault if request.number < 2 else None) as proxy:
        monkeypatch.setattr(secret_manager, "ENDPOINT", proxy.url)
        assert json.loads(secret_manager.read_secret(SECRET))["username"] == "somebody"
        assert len(proxy.log) == 3


@pytest.mark.parametrize(("fault", "error"), [(Status(503), failures.StorageUnavailableError), (Corrupt(90), DamagedError)])
def test_a_secret_that_never_arrives_whole(vault: SecretServer, tmp_path: Path, monkeypatch, fault, error) -> None:
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.001, maximum=0.01, timeout=0.5))
    with FaultProxy(vault.url, lambda _: fault) as proxy:
        monkeypatch.setattr(secret_manager, "ENDPOINT", proxy.url)
        with pytest.raises(error, match="projects/project/secrets/kaggle/versions/latest"):
            secret_manager.read_secret(SECRET)


def test_nothing_from_secret_manager_is_in_any_output(vault: SecretServer, kaggle: KaggleServer, tmp_path: Path) -> None:
    """Of a run that succeeds and of two that fail, with every library's own log lines shown."""
    hidden = [kaggle.environment()["KAGGLE_KEY"], vault.token, *vault.private_key.splitlines()[1:-1]]
    program = f"""
import logging
logging.basicConfig(level=logging.DEBUG)
from paligemma.google import secret_manager
secret_manager.ENDPOINT = {vault.url!r}
from components.fetch_checkpoint.__main__ import main
main()
"""
    arguments = ["--source", HANDLE, "--tokenizer", TOKENIZER]
    for number, (name, accepted, code) in enumerate([(SECRET, True, 0), (SECRET, False, 2), (NO_JSON, True, 2)]):
        kaggle.accepted = accepted
        environment = {
            **os.environ, "XLA_FLAGS": XLA_FLAGS, SECRET_VARIABLE: name, "HOME": str(tmp_path),
            "KAGGLE_LOGGING_ENABLED": "true", "KAGGLEHUB_VERBOSITY": "debug",
            "KAGGLEHUB_CACHE": str(tmp_path / f"kagglehub{number}"),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments, "--output", str(tmp_path / f"out{number}")],
            cwd=REPOSITORY, env=environment, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert not [one for one in hidden if one.encode() in done.stdout + done.stderr]
    assert (tmp_path / "out0" / FILE).read_bytes() == WEIGHTS
    (tmp_path / "account.json").unlink()  # the test's own
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or not [one for one in hidden if one.encode() in path.read_bytes()], path


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
    assert "/nowhere.npz is not available" in caplog.text
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
    monkeypatch.setattr(disk_space, "MARGIN", 1 << 60)
    with pytest.raises(InputError, match="not enough room"):
        fetch(tmp_path, "embedded:tiny")
    assert not (tmp_path / "x").exists()


def test_secrets_of_an_address_are_left_out() -> None:
    assert redacted("https://user:password@host/a.npz?token=1#2") == "https://host/a.npz"
    assert redacted("gs://b/x") == "gs://b/x"
    assert redacted("embedded:tiny") == "embedded:tiny"
    assert str(GcsLocation("b", "x")) == "gs://b/x"
