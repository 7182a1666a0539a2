"""Kaggle on 127.0.0.1, as far as kagglehub 1.0.2 asks it to list and download the files of one version of a model.

kagglehub has no variable for an endpoint: KAGGLE_API_ENVIRONMENT chooses among built-in ones, all https or at a fixed port
(kagglesdk/kaggle_env.py). What leads it here without a change to it is the endpoint LOCALHOST, which is http://localhost, and
HTTP_PROXY, which its HTTP library obeys for localhost too: this server reads the request lines of a proxy. `environment`
returns:

- KAGGLE_API_ENVIRONMENT=LOCALHOST: the API is at http://localhost/api/v1/<service>/<method>, always POST, with a JSON body.
- HTTP_PROXY=<this server, or a FaultProxy before it>; NO_PROXY=127.0.0.1, for other test servers of the same process.
- KAGGLE_USERNAME and KAGGLE_KEY: basic authentication. KAGGLE_API_TOKEN, if set, takes precedence: bearer authentication.

A test gives kagglehub a HOME of its own as well (it reads ~/.kaggle) and KAGGLEHUB_CACHE.

The API answers a download with a redirect (302) to a signed URL of the file in Cloud Storage, which needs no credentials. The
bodies of errors are those of kaggle-cli issue 46 (401) and keras-hub issue 2160 (403).
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import secrets
from collections.abc import Mapping
from email.utils import formatdate
from types import TracebackType
from typing import Self
from urllib.parse import quote, unquote

import google_crc32c

from servers.local_http import Exchange, Headers, LocalServer, Request

MODEL = "google/paligemma/jax/paligemma-3b-pt-224/1"
CONTENT = "/kaggle-models-data/"
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
NOT_CONSENTED = "User has not consented to terms of use."


class KaggleServer:
    """Serves `files`, by their path inside the model, for the length of a `with`.

    `username` with `key`, or `token` if given, must come with each API request. While `accepted` is False, the licence has not
    been consented to; a test may change it. `send_md5` is off because Cloud Storage knows no MD5 of objects composed of parts.
    """

    url: str

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        model: str = MODEL,
        username: str = "somebody",
        key: str = "0123456789abcdef",
        token: str | None = None,
        accepted: bool = True,
        send_md5: bool = False,
    ) -> None:
        self.files = files
        self.accepted = accepted
        self.requests: list[tuple[Request, int]] = []
        """Requests and the statuses they were answered with."""
        self._model = model
        self._username = username
        self._key = key
        self._send_md5 = send_md5
        basic = base64.b64encode(f"{username}:{key}".encode()).decode()
        self._credentials = {f"Basic {basic}"} | ({f"Bearer {token}"} if token else set())
        self._signature = secrets.token_hex(16)
        self._numbers = itertools.count()
        self._server = LocalServer(self._serve)

    def __enter__(self) -> Self:
        self._server.__enter__()
        self.url = self._server.url
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.__exit__(kind, error, trace)

    def environment(self, url: str | None = None) -> dict[str, str]:
        """The variables that lead kagglehub here, or to a proxy in front, with the right user name and key."""
        proxy = url or self.url
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_USERNAME": self._username,
            "KAGGLE_KEY": self._key,
            # Lower case takes precedence, and may be set on a developer's machine.
            "HTTP_PROXY": proxy,
            "http_proxy": proxy,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def _serve(self, exchange: Exchange) -> None:
        body = exchange.read_body()
        request = exchange.logged(self._numbers)
        if request.path.startswith(CONTENT):
            status, headers, content = self._content(request)
        else:
            status, headers, content = self._api(request, exchange.headers.get("Authorization"), body)
        self.requests.append((request, status))
        exchange.answer(status, headers, content)

    def _api(self, request: Request, authorization: str | None, body: bytes) -> tuple[int, Headers, bytes]:
        if authorization not in self._credentials:
            return _error(401, "Unauthorized")
        asked = json.loads(body or b"{}")
        framework = asked.get("framework", "").removeprefix("MODEL_FRAMEWORK_").replace("_", "").lower()
        owner, name, variation, version = (
            asked.get(key) for key in ("ownerSlug", "modelSlug", "instanceSlug", "versionNumber")
        )
        if f"{owner}/{name}/{framework}/{variation}/{version}" != self._model:
            return _error(404, "Not found")
        if not self.accepted:
            return _error(403, NOT_CONSENTED)
        match request.path.rpartition("/api")[2]:
            case "/v1/models.ModelApiService/ListModelInstanceVersionFiles":
                return self._list(int(asked.get("pageToken") or 0), asked.get("pageSize") or 20)
            case "/v1/models.ModelApiService/DownloadModelInstanceVersion" if asked.get("path") in self.files:
                place = f"{self.url}{CONTENT}{quote(self._model)}/{quote(asked['path'])}?X-Goog-Signature={self._signature}"
                return 302, [("Location", place)], b""
        return _error(404, "Not found")

    def _list(self, start: int, size: int) -> tuple[int, Headers, bytes]:
        page = list(self.files.items())[start : start + size]
        answer = {
            "files": [{"name": name, "size": len(file), "creationDate": "2024-05-14T00:00:00.0000000Z"} for name, file in page],
            "nextPageToken": str(start + size) if start + size < len(self.files) else "",
        }
        return 200, [("Content-Type", "application/json")], json.dumps(answer).encode()

    def _content(self, request: Request) -> tuple[int, Headers, bytes]:
        """A file as Cloud Storage serves it by its signed URL."""
        name = unquote(request.path).removeprefix(f"{CONTENT}{self._model}/")
        if request.query != f"X-Goog-Signature={self._signature}":
            return 403, [("Content-Type", "application/xml")], b"<Error><Code>SignatureDoesNotMatch</Code></Error>"
        if name not in self.files:
            return 404, [("Content-Type", "application/xml")], b"<Error><Code>NoSuchKey</Code></Error>"
        file = self.files[name]
        headers = [
            ("Accept-Ranges", "bytes"),
            ("Content-Type", "application/octet-stream"),
            ("Last-Modified", formatdate(0, usegmt=True)),
            ("x-goog-hash", f"crc32c={_base64(google_crc32c.Checksum(file).digest())}"),
        ]
        if self._send_md5:
            headers.append(("x-goog-hash", f"md5={_base64(hashlib.md5(file).digest())}"))
        match = RANGE.fullmatch(request.range or "")
        if match is None or match.groups() == ("", ""):
            return 200, headers, file
        first, last = match.groups()
        start = int(first) if first else max(0, len(file) - int(last))
        if start >= len(file):
            return 416, [("Content-Range", f"bytes */{len(file)}")], b""
        stop = min(int(last) + 1, len(file)) if first and last else len(file)
        return 206, [*headers, ("Content-Range", f"bytes {start}-{stop - 1}/{len(file)}")], file[start:stop]


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _error(status: int, message: str) -> tuple[int, Headers, bytes]:
    return status, [("Content-Type", "application/json")], json.dumps({"code": status, "message": message}).encode()
