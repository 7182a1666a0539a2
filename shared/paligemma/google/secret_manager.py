"""Reads secrets from Google Secret Manager over its REST API, into memory only: never to a disk, a log or the environment.

https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets.versions/access
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

import google_crc32c

from paligemma.errors import DamagedError, InputError, PaliGemmaError
from paligemma.foreign_json import SMALL_BYTES, parse_json
from paligemma.retry import RETRYABLE, BadBytesError, is_transient, retrying, status_of
from paligemma.storage.failures import StorageUnavailableError

if TYPE_CHECKING:
    import requests

# Never taken from the environment: whoever sets it there could send our account's token anywhere.
ENDPOINT = "https://secretmanager.googleapis.com"

_SECONDS = 60.0
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_NAME = re.compile(r"projects/([\w.:-]+)/secrets/([\w-]+)/versions/[\w-]+")


def read_secret(name: str) -> bytes:
    """The payload of a secret version, verified by its checksum.

    Args:
        name: `projects/PROJECT/secrets/SECRET/versions/VERSION`; a version is a number, an alias or `latest`.

    Raises:
        InputError: the name is invalid, credentials or permission are missing, or there is no such secret or version.
        DamagedError: the payload never matched its checksum.
        StorageUnavailableError: the service did not answer.
    """
    import google.auth
    import requests
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import AuthorizedSession

    if _NAME.fullmatch(name) is None:
        # The value may be the secret itself, so it is not shown.
        raise InputError("This is not a secret version name.", expected="projects/PROJECT/secrets/SECRET/versions/latest")
    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
    except GoogleAuthError as error:
        raise _no_credentials(name, error) from None
    with AuthorizedSession(credentials) as session:

        def access() -> bytes:
            response = session.get(f"{ENDPOINT}/v1/{name}:access", timeout=60)
            if response.status_code != 200 and response.status_code not in RETRYABLE:
                raise _refused(name, response, getattr(credentials, "service_account_email", None))
            response.raise_for_status()
            return _payload(response)

        try:
            return retrying(access, _SECONDS)
        except BadBytesError as error:
            raise DamagedError(f"The secret {name} arrived damaged: {error}.", fix="run again") from None
        except (requests.RequestException, GoogleAuthError) as error:
            if isinstance(error, GoogleAuthError) and not is_transient(error):
                raise _no_credentials(name, error) from None
            status = status_of(error)
            raise StorageUnavailableError(
                f"Secret Manager did not answer for {name}.",
                where=f"HTTP {status}" if status else type(error).__name__,
                fix="run the same command again",
            ) from None


def secret_and_project(name: str) -> str:
    """The secret in a version's name, as arguments for `gcloud secrets` commands."""
    _, project, _, secret, *_ = name.split("/")
    return f"{secret} --project {project}"


def _payload(response: requests.Response) -> bytes:
    try:
        payload = _read(response)["payload"]
        data = base64.b64decode(payload.get("data", ""), validate=True)
        checksum = int(payload["dataCrc32c"])
    except (DamagedError, ValueError, LookupError, TypeError, AttributeError, binascii.Error):
        raise BadBytesError("no answer of Secret Manager") from None
    if google_crc32c.value(data) != checksum:
        raise BadBytesError("its bytes do not match its checksum")
    return data


def _read(response: requests.Response) -> dict:
    return parse_json(response.content, ENDPOINT, "The answer", most=SMALL_BYTES)


def _refused(name: str, response: requests.Response, account: str | None) -> PaliGemmaError:
    where = f"HTTP {response.status_code}: {_message(response)}"
    secret = secret_and_project(name)
    if response.status_code == 403 and "SERVICE_DISABLED" in response.text:
        fix = f"gcloud services enable secretmanager.googleapis.com --project {secret.split()[-1]}"
        return InputError(f"Secret Manager is not enabled in the project of {name}.", where=where, fix=fix)
    if response.status_code in (401, 403):
        member = f"serviceAccount:{account}" if "@" in (account or "") else "serviceAccount:ACCOUNT"
        role = "roles/secretmanager.secretAccessor"
        return InputError(
            f"Not allowed to read the secret {name}.",
            where=where,
            expected=f"the role Secret Manager Secret Accessor ({role}) on it",
            fix=f"gcloud secrets add-iam-policy-binding {secret} --member {member} --role {role}",
        )
    if response.status_code == 404:
        return InputError(
            f"There is no secret {name}, or no such version of it.",
            where=where,
            fix=f"check the name, or make it: gcloud secrets create {secret} --data-file FILE",
        )
    # A disabled or destroyed version gives a 400.
    return InputError(
        f"Secret Manager does not give {name}.", where=where, fix=f"see its versions: gcloud secrets versions list {secret}"
    )


def _message(response: requests.Response) -> str:
    try:
        return str(_read(response)["error"]["message"])
    except (DamagedError, LookupError, TypeError):
        return "no reason given"


def _no_credentials(name: str, error: Exception) -> PaliGemmaError:
    return InputError(
        f"There are no Google credentials to read the secret {name} with.",
        where=str(error.args[0] if error.args else "").partition("\n")[0],  # further arguments may hold the answer's contents
        fix="run `gcloud auth application-default login`, or give the pod or job a service account",
    )
