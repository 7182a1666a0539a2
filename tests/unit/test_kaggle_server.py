"""The Kaggle that tests talk to, through the real kagglehub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from servers.fault_proxy import (
    Corrupt,
    Fault,
    FaultProxy,
    Request,
    Status,
    Truncate,
)
from servers.kaggle import MODEL, KaggleServer

CONTENT = np.random.default_rng(0).bytes(600_000)

DOWNLOAD = """
import json, sys
import kagglehub
for path in sys.argv[2:]:
    try:
        with open(kagglehub.model_download(sys.argv[1], path=path or None) + ("" if path else "/config.json"), "rb") as file:
            print("\\n" + json.dumps(["read", len(file.read())]))
    except Exception as error:
        print("\\n" + json.dumps([type(error).__name__, str(error)]))
"""


def download(home: Path, environment: dict[str, str], *paths: str) -> list[list[object]]:
    """Lets the real kagglehub download each path; "" is the whole model. Returns each file's size or the error."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KAGGLE")}
    private = {"HOME": str(home), "KAGGLEHUB_CACHE": str(home / "cache"), "KAGGLEHUB_VERBOSITY": "error"}
    command = [sys.executable, "-c", DOWNLOAD, MODEL, *paths]
    run = subprocess.run(
        command, env={**clean, **private, **environment}, capture_output=True, text=True, timeout=600, check=True
    )
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]


def cached(home: Path, path: str) -> Path:
    return home / "cache" / "models" / MODEL / path


def test_kagglehub_lists_and_downloads_a_model(tmp_path: Path) -> None:
    with KaggleServer({"config.json": b"{}", "deep/x y.npz": CONTENT}) as kaggle:
        assert download(tmp_path, kaggle.environment(), "deep/x y.npz", "") == [["read", 600_000], ["read", 2]]
        assert cached(tmp_path, "deep/x y.npz").read_bytes() == CONTENT
        names = [(request.method, request.path.rpartition("/")[2], status) for request, status in kaggle.requests]
        assert names[:3] == [
            ("POST", "DownloadModelInstanceVersion", 302),
            ("GET", "x%20y.npz", 200),
            ("POST", "ListModelInstanceVersionFiles", 200),
        ]


def test_kagglehub_asks_for_consent(tmp_path: Path) -> None:
    with KaggleServer({"config.json": b"{}"}, accepted=False) as kaggle:
        ((error, message),) = download(tmp_path, kaggle.environment(), "config.json")
        assert error == "KaggleApiHTTPError"
        assert str(message).startswith("403 Client Error.\n\nYou don't have permission to access resource at URL: ")
        assert "a resource requiring consent" in str(message)
        assert [status for _, status in kaggle.requests] == [403]


def test_kagglehub_is_refused_without_the_right_credentials_or_for_an_unknown_file(tmp_path: Path) -> None:
    with KaggleServer({"config.json": b"{}"}, token="KGAT_secret") as kaggle:
        environment = kaggle.environment()
        ((wrong, message),) = download(tmp_path, {**environment, "KAGGLE_KEY": "guess"}, "config.json")
        assert (wrong, str(message)[:3]) == ("KaggleApiHTTPError", "401")
        ((missing, message),) = download(tmp_path, {**environment, "KAGGLE_KEY": ""}, "config.json")
        assert (missing, str(message)[:3]) == ("KaggleApiHTTPError", "401")
        by_token = {**environment, "KAGGLE_KEY": "", "KAGGLE_API_TOKEN": "KGAT_secret"}
        known, (unknown, message) = download(tmp_path, by_token, "config.json", "other")
        assert known == ["read", 2]
        assert (unknown, str(message)[:3]) == ("KaggleApiHTTPError", "404")


def test_kagglehub_resumes_a_download_and_checks_md5_if_it_is_sent(tmp_path: Path) -> None:
    content = CONTENT * 5  # kagglehub writes whole MiB only

    def break_first_two(request: Request) -> Fault | None:
        # 0, 2 and 5 ask the API; 1, 3 and 6 are its redirects; 4 is the rest of the file.
        return {1: Truncate(2_500_000), 4: Corrupt(3)}.get(request.number)

    with KaggleServer({"x": content}, send_md5=True) as kaggle, FaultProxy(kaggle.url, break_first_two) as proxy:
        interrupted, damaged, whole = download(tmp_path, kaggle.environment(proxy.url), "x", "x", "x")
        assert interrupted[0] == "ChunkedEncodingError"
        assert damaged[0] == "DataCorruptionError"
        assert whole == ["read", 3_000_000]
        assert [request.range for request, _, _ in proxy.log] == [None, None, None, None, "bytes=2097152-", None, None]
    assert cached(tmp_path, "x").read_bytes() == content


def test_kagglehub_takes_an_error_for_the_rest_of_a_file(tmp_path: Path) -> None:
    """Why a download is checked by a sum of our own: kagglehub reports this one as complete."""
    content = CONTENT * 5
    faults = {1: Truncate(2_500_000), 4: Status(503)}
    with KaggleServer({"x": content}) as kaggle, FaultProxy(kaggle.url, lambda request: faults.get(request.number)) as proxy:
        _, resumed = download(tmp_path, kaggle.environment(proxy.url), "x", "x")
        assert resumed[0] == "read"
    assert cached(tmp_path, "x").read_bytes() == content[: 2 * 2**20] + b'{"error": {"code": 503}}'
