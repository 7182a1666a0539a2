"""Secret Manager on 127.0.0.1, as far as reading a version of a secret goes, and the token service of Google's accounts.

A client comes with application default credentials: `credentials_file` writes a service account's file whose token service is
this server. It answers a signed assertion with an access token, and without that token no secret is given. The bodies of
errors are those of https://cloud.google.com/apis/design/errors and of the service itself.
"""

from __future__ import annotations

import base64
import itertools
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs

import google_crc32c
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from servers.local_http import Exchange, Headers, LocalServer, Request

ACCOUNT = "fetcher@project.iam.gserviceaccount.com"
JWT_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


class SecretServer:
    """Serves `payloads`, by the names of versions, for the length of a `with`.

    A test may make an entry of `refusals`, by name too: the status and message that are given instead.
    """

    url: str

    def __init__(self, payloads: Mapping[str, bytes]) -> None:
        self.token = f"ya29.{secrets.token_hex(16)}"
        self.requests: list[tuple[Request, int]] = []
        """Requests and the statuses they were answered with."""
        self.refusals: dict[str, tuple[int, str]] = {}
        self.private_key = ""
        self._payloads = payloads
        self._numbers = itertools.count()
        self._server = LocalServer(self._serve)

    def __enter__(self) -> Self:
        self._server.__enter__()
        self.url = self._server.url
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.__exit__(kind, error, trace)

    def credentials_file(self, path: Path) -> Path:
        """Writes what GOOGLE_APPLICATION_CREDENTIALS names."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.private_key = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        account = {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "1",
            "private_key": self.private_key,
            "client_email": ACCOUNT,
            "token_uri": f"{self.url}/token",
        }
        path.write_text(json.dumps(account))
        return path

    def _serve(self, exchange: Exchange) -> None:
        body = exchange.read_body()
        request = exchange.logged(self._numbers)
        if request.path == "/token":
            status, answer = self._grant(body)
        else:
            status, answer = self._access(request, exchange.headers.get("Authorization"))
        self.requests.append((request, status))
        headers: Headers = [("Content-Type", "application/json")]
        exchange.answer(status, headers, json.dumps(answer).encode())

    def _grant(self, body: bytes) -> tuple[int, dict]:
        asked = parse_qs(body.decode())
        if asked.get("grant_type") != [JWT_GRANT] or asked.get("assertion", [""])[0].count(".") != 2:
            return 400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
        return 200, {"access_token": self.token, "expires_in": 3600, "token_type": "Bearer"}

    def _access(self, request: Request, authorization: str | None) -> tuple[int, dict]:
        name = request.path.removeprefix("/v1/").removesuffix(":access")
        if authorization != f"Bearer {self.token}":
            return _error(401, "Request had invalid authentication credentials.")
        if name in self.refusals:
            return _error(*self.refusals[name])
        if request.method != "GET" or name not in self._payloads:
            return _error(404, f"Secret [{name}] not found or has no versions.")
        data = self._payloads[name]
        payload = {"data": base64.b64encode(data).decode(), "dataCrc32c": str(google_crc32c.value(data))}
        return 200, {"name": name, "payload": payload}


def _error(status: int, message: str) -> tuple[int, dict]:
    return status, {"error": {"code": status, "message": message}}
